"""Every transport carrying the same messages, in one run: a large one each way, and small round trips.

    python benchmarks/bench_transports.py [--megabytes 256] [--rounds 5] [--count 2000] [--json]

Both ends are processes of this host. ``one way`` is from the first byte sent until the peer, which has it all, has said
so; the memory is touched before. DPDK's rows need genie-backend-dpdk, and are left out, visibly, without it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.table import Table

from genie.errors import ConnectionLost
from genie.interfaces import Connection, Transport
from genie.wire import Kind, frames
from genie_backend_tcp import TcpTransport

SECONDS = 60.0
ROWS = {  # how it listens, and how long it polls (µs) before it sleeps
    "tcp, blocking": ("127.0.0.1:0", 0.0),
    "tcp, spinning": ("127.0.0.1:0", 50.0),
    "unix, spinning": ("unix:{directory}/unix.sock", 50.0),
    "dpdk memif, blocking": ("memif:{directory}/blocking.sock", 0.0),
    "dpdk memif, spinning": ("memif:{directory}/spinning.sock", 50.0),
}


def transport_for(address: str, spin_us: float) -> Transport:
    if not address.startswith("memif:"):
        return TcpTransport(spin_us=spin_us)
    from genie_backend_dpdk import DpdkTransport

    return DpdkTransport(spin_us=spin_us)


def header(*sizes: int) -> bytes:
    return frames.message(0, 1, frames.record(Kind.UPLOAD, b"." * 40), sizes)


def no_buffers(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    raise AssertionError("a small message has no buffers")


def serve(address: str, spin_us: float, size: int) -> None:
    memory = memoryview(bytearray(os.urandom(1 << 20) * (size >> 20)))
    listener = transport_for(address, spin_us).listen(address)
    print(listener.address, flush=True)
    connection = listener.accept(SECONDS)
    try:
        while True:
            connection.receive(lambda header, sizes: [memory])
            connection.send(header())
    except ConnectionLost:
        listener.close()


def one_way(connection: Connection, data: bytearray) -> float:
    start = time.perf_counter()
    connection.send(header(len(data)), (data,))
    connection.receive(no_buffers, SECONDS)
    return len(data) / (time.perf_counter() - start) / 1e9


def round_trip(connection: Connection, count: int) -> float:
    taken = []
    small = header()
    for _ in range(count):
        start = time.perf_counter()
        connection.send(small)
        connection.receive(no_buffers, SECONDS)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e6


def measure(rows: Sequence[str], megabytes: int, rounds: int, count: int) -> dict[str, dict[str, float]]:
    data = bytearray(os.urandom(1 << 20) * megabytes)
    found: dict[str, dict[str, list[float]]] = {row: {"one way GB/s": [], "64 B round trip µs": []} for row in rows}
    peers: list[subprocess.Popen[str]] = []
    links: dict[str, Connection] = {}
    with tempfile.TemporaryDirectory() as directory:
        try:
            for row in rows:
                listen, spin_us = ROWS[row]
                command = [sys.executable, __file__, "--serve", listen.format(directory=directory)]
                command += ["--spin", str(spin_us), "--megabytes", str(megabytes)]
                peers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                stdout = peers[-1].stdout
                assert stdout is not None
                address = stdout.readline().strip()
                links[row] = transport_for(address, spin_us).connect(address, SECONDS)
            for _ in range(rounds):
                for row, connection in links.items():
                    found[row]["one way GB/s"].append(one_way(connection, data))
                    found[row]["64 B round trip µs"].append(round_trip(connection, count))
        finally:
            for connection in links.values():
                connection.close()
            for peer in peers:
                peer.kill()
                peer.wait(SECONDS)
    return {row: {name: statistics.median(each) for name, each in columns.items()} for row, columns in found.items()}


def show(found: dict[str, dict[str, float]]) -> None:
    table = Table(title="messages between two processes of this host, medians")
    columns = list(next(iter(found.values())))
    table.add_column("")
    for column in [*columns, "× tcp, blocking"]:
        table.add_column(column, justify="right")
    plain = found["tcp, blocking"][columns[0]]
    for row, numbers in found.items():
        table.add_row(row, *(f"{numbers[column]:.2f}" for column in columns), f"{numbers[columns[0]] / plain:.2f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="small round trips per round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--spin", type=float, help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.spin, options.megabytes << 20)
    rows = list(ROWS)
    if find_spec("genie_backend_dpdk") is None:
        print("genie-backend-dpdk is not installed: its rows are left out", file=sys.stderr)
        rows = [row for row in rows if not row.startswith("dpdk")]
    found = measure(rows, options.megabytes, options.rounds, options.count)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
