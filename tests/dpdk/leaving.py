"""Ends while both ends of a link poll and messages go over it: ``leaving.py busy|idle SIZE``; or while they wait,
and one deadline after the other passes: ``leaving.py waiting``."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Sequence
from itertools import count

from genie.errors import DeadlineExceeded
from genie.interfaces import Connection
from genie.wire import Kind, frames
from genie_backend_dpdk import DpdkTransport

SECONDS = 30.0


def fresh(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def wait(connection: Connection) -> None:
    while True:
        with contextlib.suppress(DeadlineExceeded):
            connection.receive(fresh, 0.0005)


def main(polling: str, size: str = "0") -> None:
    data = bytes(int(size))
    transport = DpdkTransport(stall_timeout=SECONDS, busy=polling == "busy")
    under_way = threading.Event()
    with tempfile.TemporaryDirectory() as directory:
        listener = transport.listen(f"memif:{directory}/node.sock")

        def serve() -> None:
            connection = listener.accept(SECONDS)
            if polling == "waiting":
                wait(connection)
            while True:
                connection.receive(fresh)

        def call() -> None:
            connection = transport.connect(listener.address, SECONDS)
            if polling == "waiting":
                under_way.set()
                wait(connection)
            for seq in count():
                connection.send(frames.message(seq, 1, frames.record(Kind.UPLOAD), (len(data),)), (data,))
                if seq == 3:
                    under_way.set()

        for work in (serve, call):
            threading.Thread(target=work, daemon=True).start()
        assert under_way.wait(SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
