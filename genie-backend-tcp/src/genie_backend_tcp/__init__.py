"""Genie's messages over TCP and Unix sockets."""

from genie_backend_tcp.transport import TcpTransport

__all__ = ["TcpTransport"]
