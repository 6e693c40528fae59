"""A process at the other end of a transport: ``peer.py listen|connect ADDRESS receive|send``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from genie.wire import Kind, frames
from genie_backend_dpdk import DpdkTransport

SIZE = 4 << 20


def header(seq: int) -> bytes:
    return frames.message(seq, 1, frames.record(Kind.UPLOAD), (SIZE,))


def main(role: str, address: str, work: str) -> None:
    transport = DpdkTransport(stall_timeout=10.0)
    if role == "listen":
        listener = transport.listen(address)
        print(listener.address, flush=True)
        connection = listener.accept(30.0)
    else:
        connection = transport.connect(address, 30.0)
    memory = memoryview(bytearray(SIZE))

    def allocate(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
        return [memory]

    seq = 0
    while True:
        if work == "send":
            connection.send(header(seq), (memory,))
            seq += 1
        else:
            connection.receive(allocate)


if __name__ == "__main__":
    main(*sys.argv[1:])
