"""Values in host memory, as ``genie.host`` has them."""

from __future__ import annotations

from genie.host import HostValue, flat, host_value

__all__ = ["HostValue", "flat", "host_value"]
