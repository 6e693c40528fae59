"""Clients and nodes: sessions of a backend, over any transport.

``status`` and ``serve`` need the control plane's libraries, which clients of the data plane do without: they are
imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genie.host import HostValue
from genie.remote.client.backend import RemoteBackend
from genie.remote.client.operations import RemoteClient
from genie.remote.client.session import RemoteSession
from genie.remote.node.server import NodeServer
from genie.remote.node.session.info import SessionInfo

if TYPE_CHECKING:
    from genie.remote.client.inspection import NodeStatus, status
    from genie.remote.node.serve import serve

__all__ = [
    "HostValue",
    "NodeServer",
    "NodeStatus",
    "RemoteBackend",
    "RemoteClient",
    "RemoteSession",
    "SessionInfo",
    "serve",
    "status",
]


def __getattr__(name: str) -> Any:
    if name == "serve":
        from genie.remote.node.serve import serve

        return serve
    if name in ("status", "NodeStatus"):
        from genie.remote.client import inspection

        return getattr(inspection, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
