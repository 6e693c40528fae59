"""Runs plans on this machine's CPU and GPUs.

>>> backend = LocalBackend()
>>> session = backend.connect(backend.devices()[0])
"""

from genie_backend_local.backend import LocalBackend
from genie_backend_local.session import Allocation, LocalSession, SharedValue

__all__ = ["Allocation", "LocalBackend", "LocalSession", "SharedValue"]
