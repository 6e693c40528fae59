"""Two ends of a link over memif, both in this process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from genie.interfaces import Connection, Listener
from genie_backend_dpdk import DpdkTransport

SECONDS = 10.0


def joined(transport: DpdkTransport, listener: Listener) -> tuple[Connection, Connection]:
    """Client and node."""
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listener.accept, SECONDS)
        return transport.connect(listener.address, SECONDS), accepted.result(SECONDS)


@contextmanager
def pair(directory: Path) -> Iterator[tuple[Connection, Connection]]:
    """Client and node, of a listener in ``directory``."""
    transport = DpdkTransport(stall_timeout=SECONDS)
    listener = transport.listen(f"memif:{directory / 'node.sock'}")
    client, node = joined(transport, listener)
    yield client, node
    client.close()
    node.close()
    listener.close()
