"""The transport beside raw sockets, in one run: round trips and bulk, over TCP, TLS and a Unix socket on loopback.

    python benchmarks/bench_data_plane.py [--backend local] [--megabytes 256] [--rounds 5] [--json]

The node runs the local backend (or ``null``, which is Python alone) in a process of its own, with one thread; the raw
peer is plain Python ``sendmsg`` and ``recv_into`` in another. TLS has a node of its own, with a certificate made for
the run, and "checked" has checksums;
``/ plain`` are their ratios to TCP. Rounds of all candidates are interleaved; the table gives medians. Every
transfer's content is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genie import config, telemetry
from genie.bindings import Prediction
from genie.config import Settings
from genie.graph import TensorSpec
from genie.plugins import registry
from genie.remote import NodeServer, RemoteBackend, RemoteSession
from genie.schedule import Scheduler
from genie.security import Tls, TlsFiles, certs
from genie.testing import NullBackend, single
from genie_backend_tcp import TcpTransport

_ASK = struct.Struct("<BQ")  # 0: echo, 1: take so many bytes, 2: give so many, 3: change links, 4: as 1, new memory,
# 5: as 0, polling
_SPEC = TensorSpec((16,), "float32")  # 64 bytes


def _read(sock: socket.socket, view: memoryview) -> None:
    while len(view):
        view = view[sock.recv_into(view) :]


def _poll(sock: socket.socket, view: memoryview) -> None:
    """As ``_read``, never asleep: what a socket can do at best, at the price of a core on both sides."""
    while len(view):
        with contextlib.suppress(BlockingIOError):
            view = view[sock.recv_into(view, 0, socket.MSG_DONTWAIT) :]


def _send(sock: socket.socket, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[sock.sendmsg([view]) :]


def _raw_peer(path: str) -> None:
    """Serves one TCP client, then one on a Unix socket."""
    memory = bytearray(b"\x5a") * (1 << 30)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path)
    unix.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    print(tcp.getsockname()[1], flush=True)
    links = [tcp.accept()[0], unix.accept()[0]]
    links[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    which = {link.fileno(): link for link in links}
    active = links[0]
    ask, small = bytearray(_ASK.size), bytearray(64)
    while True:
        try:
            first = active.recv_into(ask)
        except OSError:
            return
        if not first:
            return
        _read(active, memoryview(ask)[first:])
        kind, size = _ASK.unpack(ask)
        if kind in (0, 5):
            read = _poll if kind == 5 else _read
            for _ in range(size):
                read(active, memoryview(small))
                active.sendall(small)
        elif kind == 1:
            _read(active, memoryview(memory)[:size])
            active.sendall(b"k")
        elif kind == 4:
            _read(active, memoryview(bytearray(size)))
            active.sendall(b"k")
        elif kind == 2:
            _send(active, memoryview(memory)[:size])
        else:
            active = which[links[size].fileno()]
            active.sendall(b"k")


def _node(name: str, certificates: str) -> None:
    telemetry.configure("WARNING", False)
    backend = NullBackend(memory_bytes=4 << 30) if name == "null" else registry.make("backend", name, _one_thread())
    transport = TcpTransport(tls=_tls(certificates, node=True))
    with NodeServer(backend, transport, "127.0.0.1:0", content_bytes=1 << 30) as node:
        print(node.address, flush=True)
        sys.stdin.read()


def _one_thread() -> Settings:
    return config.resolve({"threads": 1}).settings


def _tls(certificates: str, *, node: bool) -> Tls | None:
    if not certificates:
        return None
    ca, name = f"{certificates}/ca.pem", f"{certificates}/node-127.0.0.1"
    return Tls(TlsFiles(ca=ca, cert=f"{name}.pem", key=f"{name}.key") if node else TlsFiles(ca=ca))


class Raw:
    def __init__(self, port: int, path: str) -> None:
        self._links = [socket.create_connection(("127.0.0.1", port)), socket.socket(socket.AF_UNIX)]
        self._links[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._links[1].connect(path)
        self._at = 0

    def link(self, number: int) -> socket.socket:
        if number != self._at:
            self._links[self._at].sendall(_ASK.pack(3, number))
            # The peer answers on the link it changed to.
            self._links[number].recv(1)
            self._at = number
        return self._links[number]

    def echo(self, number: int, count: int, polling: bool = False) -> float:
        sock, small = self.link(number), bytearray(64)
        sock.sendall(_ASK.pack(5 if polling else 0, count))
        read = _poll if polling else _read
        start = time.perf_counter()
        for _ in range(count):
            sock.sendall(small)
            read(sock, memoryview(small))
        return (time.perf_counter() - start) / count * 1e6

    def up(self, number: int, data: bytearray, fresh: bool = False) -> float:
        """``fresh``: into memory asked for now, as every value on a node is, not into memory used before."""
        sock = self.link(number)
        start = time.perf_counter()
        sock.sendall(_ASK.pack(4 if fresh else 1, len(data)))
        _send(sock, data)
        sock.recv(1)
        return len(data) / (time.perf_counter() - start) / 1e9

    def down(self, number: int, data: bytearray) -> float:
        sock = self.link(number)
        start = time.perf_counter()
        sock.sendall(_ASK.pack(2, len(data)))
        _read(sock, memoryview(data))
        return len(data) / (time.perf_counter() - start) / 1e9


class Genie:
    """A session on the first device of a backend, which it closes; what it fetches is compared with what it must be."""

    def __init__(self, backend: RemoteBackend) -> None:
        self._backend = backend
        device = self._backend.devices()[0]
        self.session: RemoteSession = self._backend.connect(device)
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
        session, handle = self.session, self._one
        start = time.perf_counter()
        for _ in range(count):
            value = session.fetch(handle)
        elapsed = time.perf_counter() - start
        assert struct.unpack("<16f", value.data) == tuple(range(16))
        return elapsed / count * 1e6

    def operation(self, count: int) -> float:
        """One small operator and its value. The backend's arithmetic is in it."""
        session, one = self.session, self._one
        start = time.perf_counter()
        for _ in range(count):
            made = self._fresh()
            session.execute(self._plan, self._prediction.encode((made, one, one, 1)), more=True)
            value = session.fetch(made)
            session.free((made,))
        elapsed = time.perf_counter() - start
        assert struct.unpack("<16f", value.data) == tuple(2 * number for number in range(16))
        return elapsed / count * 1e6

    def issue(self, count: int) -> float:
        """Operators nobody looks at: what one costs the caller."""
        session, one = self.session, self._one
        bindings = [self._prediction.encode((self._fresh(), one, one, 1)) for _ in range(count)]
        session.synchronize()
        start = time.perf_counter()
        for each in bindings:
            session.execute(self._plan, each)
        elapsed = time.perf_counter() - start
        session.free(tuple(range(self._next - count + 1, self._next + 1)))
        session.synchronize()
        return elapsed / count * 1e6

    def up(self, data: bytearray, shared: bool = False) -> float:
        handle = self._fresh()
        start = time.perf_counter()
        self.session.upload(handle, TensorSpec((len(data),), "uint8"), data, shared=shared)
        self.session.synchronize()
        rate = len(data) / (time.perf_counter() - start) / 1e9
        self.session.free((handle,))
        return rate

    def down(self, data: bytearray, out: bytearray) -> float:
        handle = self._fresh()
        self.session.upload(handle, TensorSpec((len(data),), "uint8"), data)
        self.session.synchronize()
        start = time.perf_counter()
        self.session.fetch(handle, memoryview(out))
        rate = len(data) / (time.perf_counter() - start) / 1e9
        assert out == data
        self.session.free((handle,))
        return rate

    def close(self) -> None:
        self._backend.close()


def _client(address: str, shortcut: bool, spin_us: float, certificates: str = "", checksums: str = "off") -> Genie:
    transport = TcpTransport(spin_us=spin_us, tls=_tls(certificates, node=False), checksums=checksums)
    return Genie(RemoteBackend("tcp", transport, (address,), shortcut=shortcut))


def measure(backend: str, megabytes: int, rounds: int, count: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {}

    def note(row: str, column: str, number: float) -> None:
        found.setdefault(row, {}).setdefault(column, []).append(number)

    size = megabytes << 20
    data, out = bytearray(os.urandom(1 << 20) * megabytes), bytearray(size)
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/raw"
        pki = Path(directory) / "pki"
        certs.create_authority(pki)
        certs.issue_node(pki, ["127.0.0.1"])
        here = [sys.executable, __file__]
        with (
            subprocess.Popen([*here, "--raw-peer", path], stdout=subprocess.PIPE, text=True) as peer,
            subprocess.Popen(
                [*here, "--node", backend], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as node,
            subprocess.Popen(
                [*here, "--node", backend, "--certificates", str(pki)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as secure,
        ):
            try:
                assert peer.stdout is not None
                assert node.stdout is not None
                raw = Raw(int(peer.stdout.readline()), path)
                assert secure.stdout is not None
                address = node.stdout.readline().strip()
                behind_tls = secure.stdout.readline().strip()
                links = {
                    "tcp": (0, _client(address, shortcut=False, spin_us=50)),
                    "tcp, no spin": (0, _client(address, shortcut=False, spin_us=0)),
                    "tcp, checked": (0, _client(address, shortcut=False, spin_us=50, checksums="on")),
                    "tls": (0, _client(behind_tls, shortcut=False, spin_us=50, certificates=str(pki))),
                    "unix": (1, _client(address, shortcut=True, spin_us=50)),
                }
                for _ in range(rounds):
                    for row, (number, genie) in links.items():
                        steps: list[tuple[str, Callable[[], float]]] = [
                            ("raw echo µs", lambda n=number: raw.echo(n, count)),  # type: ignore[misc]
                            ("polling echo µs", lambda n=number: raw.echo(n, count, polling=True)),  # type: ignore[misc]
                            ("fetch µs", lambda g=genie: g.fetch(count)),  # type: ignore[misc]
                            ("op+fetch µs", lambda g=genie: g.operation(count)),  # type: ignore[misc]
                            ("issue µs", lambda g=genie: g.issue(100)),  # type: ignore[misc]
                            ("raw up GB/s", lambda n=number: raw.up(n, data)),  # type: ignore[misc]
                            ("raw up, fresh GB/s", lambda n=number: raw.up(n, data, fresh=True)),  # type: ignore[misc]
                            ("up GB/s", lambda g=genie: g.up(data)),  # type: ignore[misc]
                            ("raw down GB/s", lambda n=number: raw.down(n, out)),  # type: ignore[misc]
                            ("down GB/s", lambda g=genie: g.down(data, out)),  # type: ignore[misc]
                            ("known content GB/s", lambda g=genie: g.up(data, shared=True)),  # type: ignore[misc]
                        ]
                        for column, step in steps:
                            note(row, column, step())
                for _, genie in links.values():
                    genie.close()
            finally:
                assert node.stdin is not None
                node.stdin.close()
                assert secure.stdin is not None
                secure.stdin.close()
                peer.kill()
    return {
        row: {column: statistics.median(numbers) for column, numbers in columns.items()}
        for row, columns in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["local", "null"], default="local")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="small round trips per round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--raw-peer", help=argparse.SUPPRESS)
    parser.add_argument("--node", help=argparse.SUPPRESS)
    parser.add_argument("--certificates", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw_peer:
        return _raw_peer(options.raw_peer)
    if options.node:
        return _node(options.node, options.certificates)
    result: dict[str, Any] = measure(options.backend, options.megabytes, options.rounds, options.count)
    for row in result.values():
        row["fetch / echo"] = row["fetch µs"] / row["raw echo µs"]
        row["fetch / polling echo"] = row["fetch µs"] / row["polling echo µs"]
        row["up / raw"] = row["up GB/s"] / row["raw up GB/s"]
        row["up / raw, fresh"] = row["up GB/s"] / row["raw up, fresh GB/s"]
        row["down / raw"] = row["down GB/s"] / row["raw down GB/s"]
    for row, plain in ((result["tls"], result["tcp"]), (result["tcp, checked"], result["tcp"])):
        for column in ("up GB/s", "down GB/s", "known content GB/s"):
            row[f"{column.removesuffix(' GB/s')} / plain"] = row[column] / plain[column]
        row["fetch / plain"] = row["fetch µs"] / plain["fetch µs"]
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
        return
    for name, row in result.items():
        print(f"\n{name}")
        for column, number in row.items():
            print(f"  {column:<20} {number:>8.2f}")


if __name__ == "__main__":
    main()
