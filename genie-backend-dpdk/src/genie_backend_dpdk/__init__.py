"""Genie's messages over DPDK."""

from genie_backend_dpdk.transport import DpdkTransport

__all__ = ["DpdkTransport"]
