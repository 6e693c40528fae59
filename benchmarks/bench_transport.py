"""Every transport carrying the same messages, in one run: a large one each way, and small round trips.

    python benchmarks/bench_transport.py [--megabytes 256] [--rounds 5] [--count 2000] [--json] [--no-interfaces]

Both ends are processes of this host. ``one way`` is from the first byte sent until the peer, which has it all, has said
so; the memory is touched before. ``CPU`` is what both processes took for it, their threads that poll included: where
other programs want the cores, it says more than the time. ``raw C socket`` is two processes of C over TCP, blocking,
the least that a socket costs. DPDK's rows need genie-backend-dpdk, and are left out, visibly, without it.

The rows of DPDK's af_packet devices go over a veth pair (MTU 8050). As root the program makes one by itself, in a
network namespace of its own, where all rows are then measured; ``--no-interfaces`` leaves them out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
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
RAW = "raw C socket, blocking"
SMALL = 64  # bytes of a round trip
IN_NAMESPACE = """
ip link set lo up
ip link add node0 type veth peer name client0
for each in node0 client0; do ip link set $each up mtu 8050; done
ip address add 10.71.0.1/24 dev node0
ip address add 10.71.0.2/24 dev client0
for each in all node0 client0; do
  sysctl -qw net.ipv4.conf.$each.accept_local=1 net.ipv4.conf.$each.rp_filter=0
done
exec "$@"
"""
ONE_WAY, CPU, TRIP = "one way GB/s", "CPU s/GB", "64 B round trip µs"
VETH_ROWS = {"dpdk af_packet, blocking": 0.0, "dpdk af_packet, spinning": 50.0}


def transport_for(address: str, spin_us: float, interface: str) -> Transport:
    if not (interface or address.startswith("memif:")):
        return TcpTransport(spin_us=spin_us)
    from genie_backend_dpdk import DpdkTransport
    from genie_backend_dpdk.device import Device

    return DpdkTransport(Device(interface), spin_us=spin_us)


def address_of(interface: str) -> str:
    from genie_backend_dpdk.interface import read

    return str(read(interface).address.ip)


def header(*sizes: int) -> bytes:
    return frames.message(0, 1, frames.record(Kind.UPLOAD, b"." * 40), sizes)


def no_buffers(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    raise AssertionError("a small message has no buffers")


def serve(address: str, spin_us: float, size: int, interface: str) -> None:
    memory = memoryview(bytearray(os.urandom(1 << 20) * (size >> 20)))
    listener = transport_for(address, spin_us, interface).listen(address)
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


def cpu_seconds(process: int) -> float:
    """Of a process, until now, in user and kernel mode (proc(5), utime and stime)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Link:
    """One row: a transport's connection to a peer of its own."""

    def __init__(self, row: str, ends: tuple[str, str], directory: str, megabytes: int) -> None:
        node_end, client_end = ends if row in VETH_ROWS else ("", "")
        listen, spin_us = ("0.0.0.0:0", VETH_ROWS[row]) if node_end else ROWS[row]
        command = [sys.executable, __file__, "--serve", listen.format(directory=directory)]
        command += ["--spin", str(spin_us), "--megabytes", str(megabytes), "--interface", node_end]
        self._peer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._peer.stdout is not None
        address = self._peer.stdout.readline().strip()
        if node_end:
            address = address.replace("0.0.0.0", address_of(node_end))
        self._connection = transport_for(address, spin_us, client_end).connect(address, SECONDS)

    def measure(self, data: bytearray, count: int) -> dict[str, float]:
        start = cpu_seconds(self._peer.pid) + time.process_time()
        rate = one_way(self._connection, data)
        spent = cpu_seconds(self._peer.pid) + time.process_time() - start
        return {ONE_WAY: rate, CPU: spent / len(data) * 1e9, TRIP: round_trip(self._connection, count)}

    def close(self) -> None:
        self._connection.close()
        self._peer.kill()
        self._peer.wait(SECONDS)


class RawLink:
    """``raw_socket.c``: two processes of their own."""

    def __init__(self, directory: str, megabytes: int, count: int) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit("there is no C compiler to build the raw socket's row with")
        program, size = f"{directory}/raw_socket", str(megabytes << 20)
        subprocess.run([compiler, "-O2", "-o", program, Path(__file__).with_name("raw_socket.c")], check=True)
        self._node = subprocess.Popen([program, "serve", size, str(SMALL)], stdout=subprocess.PIPE, text=True)
        assert self._node.stdout is not None
        port = self._node.stdout.readline().strip()
        self._client = subprocess.Popen(
            [program, "call", port, size, str(SMALL), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, data: bytearray, count: int) -> dict[str, float]:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        print("go", file=self._client.stdin, flush=True)
        rate, trip = map(float, self._client.stdout.readline().split())
        return {ONE_WAY: rate, TRIP: trip}

    def close(self) -> None:
        for each in (self._client, self._node):
            each.kill()
            each.wait(SECONDS)


def measure(
    rows: Sequence[str], ends: tuple[str, str], megabytes: int, rounds: int, count: int
) -> dict[str, dict[str, float]]:
    """Rounds of all rows are interleaved. Medians."""
    data = bytearray(os.urandom(1 << 20) * megabytes)
    found: dict[str, list[dict[str, float]]] = {row: [] for row in [*rows, RAW]}
    links: dict[str, Link | RawLink] = {}
    with tempfile.TemporaryDirectory() as directory:
        try:
            for row in rows:
                links[row] = Link(row, ends, directory, megabytes)
            links[RAW] = RawLink(directory, megabytes, count)
            for _ in range(rounds):
                for row, link in links.items():
                    found[row].append(link.measure(data, count))
        finally:
            for link in links.values():
                link.close()
    return {
        row: {name: statistics.median(each[name] for each in taken) for name in taken[0]}
        for row, taken in found.items()
    }


def show(found: dict[str, dict[str, float]]) -> None:
    table = Table(title="messages between two processes of this host, medians")
    table.add_column("")
    for column in [ONE_WAY, "× tcp, blocking", CPU, TRIP]:
        table.add_column(column, justify="right")
    plain = found["tcp, blocking"][ONE_WAY]
    for row, numbers in found.items():
        cpu = f"{numbers[CPU]:.2f}" if CPU in numbers else ""
        rate = numbers[ONE_WAY]
        table.add_row(row, f"{rate:.2f}", f"{rate / plain:.2f}", cpu, f"{numbers[TRIP]:.2f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="small round trips per round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--no-interfaces", action="store_true", help="without the rows over network interfaces")
    parser.add_argument("--veth", default="", help=argparse.SUPPRESS)
    parser.add_argument("--interface", default="", help=argparse.SUPPRESS)
    parser.add_argument("--spin", type=float, help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.spin, options.megabytes << 20, options.interface)
    rows = list(ROWS)
    if find_spec("genie_backend_dpdk") is None:
        print("genie-backend-dpdk is not installed: its rows are left out", file=sys.stderr)
        rows = [row for row in rows if not row.startswith("dpdk")]
    elif not options.veth and not options.no_interfaces:
        if os.geteuid() == 0 and shutil.which("ip") and shutil.which("unshare"):
            again = [sys.executable, *sys.argv, "--veth", "node0,client0"]
            os.execvp("unshare", ["unshare", "-n", "sh", "-ec", IN_NAMESPACE, "sh", *again])
        print(
            "without root, ip and unshare there is no network interface to use: its rows are left out", file=sys.stderr
        )
    node_end, _, client_end = options.veth.partition(",")
    if options.veth:
        rows += VETH_ROWS
    found = measure(rows, (node_end, client_end), options.megabytes, options.rounds, options.count)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
