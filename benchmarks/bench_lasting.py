"""What it costs that sessions outlive their connections: clients with and without a lease, side by side in one run.

    python benchmarks/bench_lasting.py [--megabytes 32] [--rounds 15] [--count 1000] [--json]

The node runs the null backend, in a process of its own. Rounds of both are interleaved; the table gives medians, and
the median of each round's ratio. The last row is how long a look takes whose connection was cut before it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable

from genie import telemetry
from genie.bindings import Prediction
from genie.graph import TensorSpec
from genie.interfaces import Connection
from genie.remote import NodeServer, RemoteBackend
from genie.schedule import Scheduler
from genie.testing import NullBackend, single
from genie_backend_tcp import TcpTransport

_SPEC = TensorSpec((16,), "float32")  # 64 bytes


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


class Client:
    def __init__(self, address: str, resumes: bool) -> None:
        self._transport = _Transport()
        self._backend = RemoteBackend("tcp", self._transport, (address,), shortcut=False, resumes=resumes)
        device = self._backend.devices()[0]
        self.session = self._backend.connect(device)
        self._plan = self.session.load(
            Scheduler(devices=(device,)).schedule(single("aten::add.Tensor", [_SPEC, _SPEC], _SPEC, 1))
        )
        self._prediction = Prediction(2, (1,))
        self._next = 10
        self._one = self._fresh()
        self.session.upload(self._one, _SPEC, struct.pack("<16f", *range(16)))

    def _fresh(self) -> int:
        self._next += 1
        return self._next

    def fetch(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.session.fetch(self._one)
        return (time.perf_counter() - start) / count * 1e6

    def operation(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            made = self._fresh()
            self.session.execute(self._plan, self._prediction.encode((made, self._one, self._one, 1)), more=True)
            self.session.fetch(made)
            self.session.free((made,))
        return (time.perf_counter() - start) / count * 1e6

    def issue(self, count: int) -> float:
        bindings = [self._prediction.encode((self._fresh(), self._one, self._one, 1)) for _ in range(count)]
        self.session.synchronize()
        start = time.perf_counter()
        for each in bindings:
            self.session.execute(self._plan, each)
        elapsed = time.perf_counter() - start
        self.session.free(tuple(range(self._next - count + 1, self._next + 1)))
        self.session.synchronize()
        return elapsed / count * 1e6

    def up(self, data: bytearray) -> float:
        handle = self._fresh()
        start = time.perf_counter()
        self.session.upload(handle, TensorSpec((len(data),), "uint8"), data)
        self.session.synchronize()
        elapsed = time.perf_counter() - start
        self.session.free((handle,))
        return elapsed * 1e6

    def weight(self, data: bytearray) -> float:
        """Content the node has not seen."""
        data[:16] = os.urandom(16)
        handle = self._fresh()
        start = time.perf_counter()
        self.session.upload(handle, TensorSpec((len(data),), "uint8"), data, shared=True)
        self.session.synchronize()
        elapsed = time.perf_counter() - start
        self.session.free((handle,))
        return elapsed * 1e6

    def cut(self) -> float:
        self.session.fetch(self._one)
        self._transport.latest.close()
        start = time.perf_counter()
        self.session.fetch(self._one)
        return (time.perf_counter() - start) * 1e6

    def close(self) -> None:
        self._backend.close()


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
            "upload of 1 MiB": lambda client: client.up(data[: 1 << 20]),
            f"upload of {megabytes} MiB": lambda client: client.up(data),
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
