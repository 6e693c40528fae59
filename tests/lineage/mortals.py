"""Nodes in this process that die, and sessions recovered from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genie.device import Device
from genie.interfaces import Backend, Session
from genie.lineage import Terms, guarded
from genie.remote import NodeServer, RemoteBackend
from genie.testing import MemoryTransport, NullBackend


class Mortals:
    """Nodes at fixed addresses of one transport."""

    def __init__(self, count: int, local: Callable[[], Backend] = NullBackend) -> None:
        self.transport = MemoryTransport(stall_timeout=10.0)
        self._local = local
        self.addresses = [f"mortal:{number + 1}" for number in range(count)]
        self._nodes: dict[int, NodeServer] = {}
        for number in range(count):
            self.rise(number)

    def rise(self, number: int) -> None:
        node = self._nodes[number] = NodeServer(self._local(), self.transport, self.addresses[number])
        node.start()

    def die(self, number: int) -> None:
        self._nodes.pop(number).close()

    def again(self, number: int = 0) -> None:
        self.die(number)
        self.rise(number)

    def sessions(self, number: int = 0) -> int:
        return len(self._nodes[number].sessions())

    def backend(self) -> RemoteBackend:
        return RemoteBackend("memory", self.transport, self.addresses, timeout=10.0, connect_timeout=2.0)

    def close(self) -> None:
        for number in list(self._nodes):
            self.die(number)


def terms(directory: Path, **more: Any) -> Terms:
    return Terms(**{"attempts": 5, "seconds": 5.0, "directory": directory, **more})


def recovered(backend: Backend, devices: Sequence[Device], its: Terms) -> list[Session]:
    """Sessions of one group."""
    return guarded([backend.connect(device) for device in devices], backend, its, devices)
