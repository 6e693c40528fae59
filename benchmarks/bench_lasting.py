"""What it costs that sessions outlive their connections: clients with and without a lease, side by side in one run.

    python benchmarks/bench_lasting.py [--megabytes 32] [--rounds 15] [--count 1000] [--json]

The node runs the null backend, in a process of its own; what is fetched is compared with what it must be. Rounds of
both are interleaved; the table gives medians, and the median of each round's ratio. The last row is how long a look
takes whose connection was cut before it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

from bench_data_plane import Genie

from genie import telemetry
from genie.interfaces import Connection
from genie.remote import NodeServer, RemoteBackend
from genie.testing import NullBackend
from genie_backend_tcp import TcpTransport


def _node() -> None:
    telemetry.configure("ERROR", False)
    with NodeServer(NullBackend(memory_bytes=4 << 30), TcpTransport(), "127.0.0.1:0", content_bytes=1 << 30) as node:
        print(node.address, flush=True)
        sys.stdin.read()


class _Transport(TcpTransport):
    """Remembers the latest connection, to cut it."""

    latest: Connection

    def connect(self, address: str, timeout: float):  # type: ignore[no-untyped-def]
        self.latest = super().connect(address, timeout)
        return self.latest


class Client(Genie):
    def __init__(self, address: str, resumes: bool) -> None:
        self._transport = _Transport()
        super().__init__(RemoteBackend("tcp", self._transport, (address,), shortcut=False, resumes=resumes))

    def upload(self, data: bytearray) -> float:
        return len(data) / self.up(data) / 1e3  # µs, of GB/s

    def weight(self, data: bytearray) -> float:
        """Content the node has not seen."""
        data[:16] = os.urandom(16)
        return len(data) / self.up(data, shared=True) / 1e3

    def cut(self) -> float:
        self.fetch(1)
        self._transport.latest.close()
        return self.fetch(1)


def measure(megabytes: int, rounds: int, count: int) -> dict[str, dict[str, float]]:
    data = bytearray(os.urandom(1 << 20) * megabytes)
    command = [sys.executable, __file__, "--node"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdin is not None
        assert node.stdout is not None
        address = node.stdout.readline().strip()
        plain, lasting = Client(address, False), Client(address, True)
        steps: dict[str, Callable[[Client], float]] = {
            "64-byte fetch": lambda client: client.fetch(count),
            "operator and fetch": lambda client: client.operation(count),
            "issue": lambda client: client.issue(100),
            "upload of 1 MiB": lambda client: client.upload(data[: 1 << 20]),
            f"upload of {megabytes} MiB": lambda client: client.upload(data),
            f"weight of {megabytes} MiB": lambda client: client.weight(data),
        }
        found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in steps}
        for number in range(rounds):
            for name, step in steps.items():
                for index in (0, 1) if number % 2 else (1, 0):
                    found[name][index].append(step((plain, lasting)[index]))
        cuts = [lasting.cut() for _ in range(rounds)]
        plain.close()
        lasting.close()
        node.stdin.close()
    rows = {
        name: {
            "without µs": statistics.median(without),
            "with µs": statistics.median(with_),
            "ratio": statistics.median(b / a for a, b in zip(without, with_, strict=True)),
        }
        for name, (without, with_) in found.items()
    }
    return {**rows, "fetch after a cut": {"with µs": statistics.median(cuts)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=1000, help="small round trips per round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--node", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        return _node()
    result = measure(options.megabytes, options.rounds, options.count)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
        return
    for name, row in result.items():
        print(f"{name:<20}", "  ".join(f"{column} {number:>9.2f}" for column, number in row.items()))


if __name__ == "__main__":
    main()
