"""A node over TCP, with compilers."""

from __future__ import annotations

from typing import Any

import genie
from genie.remote import NodeServer
from genie_backend_local import LocalBackend
from genie_backend_local.engines import Engines
from genie_backend_tcp import TcpTransport


class Node:
    """A node over TCP, and this process as its client."""

    def __init__(self, compilers: dict[str, Any], **options: Any) -> None:
        bounded = options.pop("bounded", False)
        backend = LocalBackend(engines=Engines(compilers, bounded=bounded), **options)
        self.server = NodeServer(backend, TcpTransport(stall_timeout=10.0), "127.0.0.1:0", local=False)
        self.server.__enter__()
        genie.shutdown()
        genie.init(nodes=[self.server.address])

    def close(self) -> None:
        genie.shutdown()
        self.server.__exit__(None, None, None)
