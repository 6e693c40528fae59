"""Client and nodes on a network of their own: namespaces whose only link is one we shape.

Each host is a network namespace with one TUN device; ``forwarder.py`` is the wire between them. A TUN device, not a
veth pair, since the delay has to be made outside of the kernel where it has no netem: what a namespace sends is read as
IP packets, kept until it would have arrived, and written to the other's device. Both ends run the kernel's own TCP.
Namespaces have no name and live as long as the processes in them, so nothing is left behind, however a run ends.

Where namespaces may not be made (it takes root), :func:`open_network` gives a relay of TCP connections in this
namespace, shaped the same way, and says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from disaggregation.shaping import Profile

BENCHMARKS = Path(__file__).resolve().parents[1]
MTU = 65_520
DEADLINE = 30.0  # of any answer of the forwarder
_START_SECONDS = 180.0
_STOP_SECONDS = 10.0

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x1, 0x1000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

# A path of 2.5 Gbit/s and 10 ms holds 3 MB: windows must not be what limits it.
_SYSCTLS = {
    "net/ipv4/tcp_rmem": "4096 1048576 67108864",
    "net/ipv4/tcp_wmem": "4096 1048576 67108864",
    "net/ipv4/tcp_congestion_control": "cubic",
    "net/ipv4/tcp_slow_start_after_idle": "0",
}

Counts = Mapping[str, Sequence[int]]
Start = Callable[[int, str], subprocess.Popen[bytes]]


class Network(Protocol):
    """What the harness needs. ``kind`` says in words what the network is made of."""

    kind: str
    addresses: tuple[str, ...]  # of the nodes, as the client reaches them
    probe: str  # where :func:`measure_link` finds its other end, beside the first node

    def shape(self, profile: Profile) -> None: ...

    def counts(self) -> Counts:
        """Packets and bytes so far by direction, ``"0>1"``; the client is 0, nodes count from 1."""

    def enter(self) -> None:
        """This thread, and those it starts from now on, are the client."""


class _Forwarder:
    """The process, and orders to it."""

    def __init__(self, *arguments: str, pass_fds: Sequence[int] = ()) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(DEADLINE)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "disaggregation.forwarder", "--control", str(theirs.fileno()), *arguments],
            cwd=BENCHMARKS,
            pass_fds=[theirs.fileno(), *pass_fds],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        theirs.close()

    def ask(self, **order: Any) -> Any:
        with self._lock:
            self._control.sendall(json.dumps(order).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                data = self._control.recv(1 << 16)
                if not data:
                    raise RuntimeError("the forwarder ended; its reason is above")
                answer += data
            return json.loads(answer)

    def shape(self, profile: Profile) -> None:
        self.ask(rate=profile.rate, delay=profile.round_trip / 2)

    def close(self) -> None:
        self._control.close()  # which ends it
        _end(self.process)


class Namespaces:
    """The client's namespace and one per node."""

    def __init__(self, nodes: int, start: Start) -> None:
        """``start`` runs node k so that it listens at the address given, in the namespace it is called in."""
        self.kind = f"network namespaces, TUN devices (MTU {MTU}), forwarded and shaped in user space"
        self._spaces: list[int] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._forwarder: _Forwarder | None = None
        home = self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        devices: list[int] = []
        try:
            for host in range(nodes + 1):
                _call(_libc.unshare, _CLONE_NEWNET)
                self._spaces.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
                devices.append(_tun(f"10.77.0.{host + 1}/24"))
            _call(_libc.setns, home, _CLONE_NEWNET)
            self._forwarder = _Forwarder("--tun", ",".join(map(str, devices)), pass_fds=devices)
            for index in range(nodes):
                _call(_libc.setns, self._spaces[index + 1], _CLONE_NEWNET)
                self._processes.append(start(index, f"10.77.0.{index + 2}"))
                if index == 0:
                    self._processes.append(_start_probe(index, "10.77.0.2"))
            first, self.probe, *others = (_address(process) for process in self._processes)
            self.addresses = (first, *others)
        except BaseException:
            self.close()
            raise
        finally:
            _call(_libc.setns, home, _CLONE_NEWNET)
            for device in devices:
                os.close(device)

    def shape(self, profile: Profile) -> None:
        assert self._forwarder is not None
        self._forwarder.shape(profile)

    def counts(self) -> Counts:
        assert self._forwarder is not None
        return dict(self._forwarder.ask(counters=True))

    def enter(self) -> None:
        _call(_libc.setns, self._spaces[0], _CLONE_NEWNET)

    def close(self) -> None:
        for process in self._processes:
            _end(process)
        if self._forwarder is not None:
            self._forwarder.close()
        _call(_libc.setns, self._home, _CLONE_NEWNET)
        for space in (*self._spaces, self._home):
            os.close(space)


class Relayed:
    """Everything in this namespace; the client's connections to nodes pass a relay. What nodes send to each other does
    not, so plans over several nodes are not to be judged here."""

    def __init__(self, nodes: int, start: Start, why: str) -> None:
        self.kind = f"one namespace, TCP connections relayed and shaped in user space ({why})"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._forwarder: _Forwarder | None = None
        try:
            for each in (start, *[start] * (nodes - 1), _start_probe):
                self._processes.append(each(len(self._processes), "127.0.0.1"))
            targets = [_address(process) for process in self._processes]
            self._forwarder = _Forwarder("--relay", ",".join(targets))
            ports = json.loads(_line(self._forwarder.process, DEADLINE))
            *nodes_at, self.probe = (f"127.0.0.1:{port}" for port in ports)
            self.addresses = tuple(nodes_at)
        except BaseException:
            self.close()
            raise

    def shape(self, profile: Profile) -> None:
        assert self._forwarder is not None
        self._forwarder.shape(profile)

    def counts(self) -> Counts:
        assert self._forwarder is not None
        return dict(self._forwarder.ask(counters=True))

    def enter(self) -> None:
        """Nothing to enter."""

    def close(self) -> None:
        for process in self._processes:
            _end(process)
        if self._forwarder is not None:
            self._forwarder.close()


def why_not() -> str:
    """Why namespaces can't be made here; empty if they can. Tried in a process of its own."""
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _call(_libc.unshare, _CLONE_NEWNET)
            os.close(_tun("10.77.0.1/24"))
            status = 0
        except (OSError, subprocess.SubprocessError):
            pass
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return "" if status == 0 else "namespaces and TUN devices take root"


@contextlib.contextmanager
def open_network(nodes: int = 1, threads: int = 1, relayed: bool = False) -> Iterator[Network]:
    """Nodes that run, on a network without limits so far. Call it before this process has threads."""

    def start(index: int, host: str) -> subprocess.Popen[bytes]:
        del index
        # Nobody else is in these namespaces.
        command = ["-m", "genie", "serve", "--host", host, "--insecure", "--port", "0", "--device", "cpu", "--json"]
        return _start([*command, "--threads", str(threads)], OMP_NUM_THREADS=str(threads), GENIE_UNIX_SOCKETS="0")

    why = "asked for" if relayed else why_not()
    network = Relayed(nodes, start, why) if why else Namespaces(nodes, start)
    try:
        yield network
    finally:
        network.close()


def _start(arguments: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """A Python process that ends with this one, however that ends."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=BENCHMARKS,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C is for this process, which then ends the others
        preexec_fn=_die_with_parent,
    )


def _start_probe(index: int, host: str) -> subprocess.Popen[bytes]:
    del index
    return _start(["-m", "disaggregation.probe", "--serve", host])


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _call(function: Any, *arguments: int) -> None:
    if function(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _tun(address: str) -> int:
    """A TUN device in this thread's namespace, up."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"link0", _IFF_TUN | _IFF_NO_PI))
        for command in (
            "link set lo up",
            f"addr add {address} dev link0",
            f"link set link0 mtu {MTU} txqueuelen 1000 up",
        ):
            subprocess.run(["ip", *command.split()], check=True, capture_output=True, timeout=DEADLINE)
        for name, value in _SYSCTLS.items():
            with contextlib.suppress(OSError):  # a kernel that has it otherwise: told by the probe of the link
                Path("/proc/sys", name).write_text(value)
    except BaseException:
        os.close(device)
        raise
    return device


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise RuntimeError(f"no answer from process {process.pid} within {seconds:g} s")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"process {process.pid} ended with status {process.wait(_STOP_SECONDS)}; see above")
    return line


def _address(process: subprocess.Popen[bytes]) -> str:
    return str(json.loads(_line(process, _START_SECONDS))["address"])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
