"""A node of a campaign: ``genie serve`` in a process of its own, with tokens of several tenants, and what it has."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from genie.remote import RemoteBackend
from genie.remote.client.access import Access
from genie.remote.control import ControlClient
from genie.remote.seen.observed import NodeView
from genie.security import Scope, tokens
from genie_backend_tcp import TcpTransport

_START_SECONDS = 120.0
_OPERATOR = "operator"
CONTROL_THREADS = 4
REST_SECONDS = 35.0  # longer than the pauses between two times that a node gives back what it kept


@dataclass(frozen=True, slots=True)
class Standing:
    """What a node has at one moment. Bytes; ``kept`` is free, for what sessions will be sent, ``anonymous`` all memory
    of the process that no file backs, and ``heap`` what of the C library's heaps is in use. ``threads`` are those but
    for the node's that wait for the next session."""

    sessions: int
    values: int
    kept: int
    contents: int
    anonymous: int
    heap: int
    descriptors: int
    threads: int

    def left_since(self, before: Standing) -> tuple[str, ...]:
        """What of clients is left, in words. The control plane's workers come as they are needed, and stay."""
        left = {
            "sessions": self.sessions,
            "bytes of values": self.values,
            "descriptors": self.descriptors - before.descriptors,
            "threads": self.threads - before.threads - CONTROL_THREADS,
        }
        return tuple(f"{count} {name}" for name, count in left.items() if count > 0)

    def clean_since(self, before: Standing) -> bool:
        return not self.left_since(before)


@dataclass
class Node:
    """A node that runs. ``directory`` has a file ``NAME.token`` per tenant."""

    process: subprocess.Popen[bytes]
    address: str
    control: str
    directory: Path
    log: Path

    def token(self, tenant: str) -> str:
        return str(self.directory / f"{tenant}.token")

    def view(self) -> NodeView:
        token = Path(self.token(_OPERATOR)).read_text().strip()
        with ControlClient(self.control, 60.0, token=token) as control:
            return control.view()

    def standing(self) -> Standing:
        view = self.view()
        proc = Path(f"/proc/{self.process.pid}")
        anonymous = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("RssAnon:"))
        return Standing(
            sessions=len(view.sessions),
            values=sum(device.used_bytes for device in view.devices),
            kept=view.memory.buffers,
            contents=view.content.get("content_bytes", 0),
            anonymous=int(anonymous.split()[1]) << 10,
            heap=view.process.heap_bytes,
            descriptors=_fewest(proc / "fd"),
            threads=len(list((proc / "task").iterdir())) - view.process.idle_threads,
        )

    def settled(self, seconds: float, rest: float = 0.0) -> Standing:
        """Once nobody is there any more and what served them has ended, or as it is after so many seconds; and after a
        ``rest``, in which a node looks after itself."""
        self._left_alone(seconds)
        time.sleep(rest)
        return self.standing()

    def _left_alone(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        before = self.standing()
        while True:
            time.sleep(0.25)  # the control plane has no way to tell by itself
            now = self.standing()
            same = (now.descriptors, now.threads) == (before.descriptors, before.threads)
            if (not now.sessions and same) or time.monotonic() > deadline:
                return
            before = now


def _fewest(directory: Path) -> int:
    """Entries, but for those that come and go: the node closes the connection by which it was asked a little later."""
    fewest = len(os.listdir(directory))
    for _ in range(10):
        time.sleep(0.02)
        fewest = min(fewest, len(os.listdir(directory)))
    return fewest


def client(
    address: str, token: str, *, checksums: str = "off", timeout: float = 120.0, heartbeat: float = 10.0
) -> RemoteBackend:
    """A backend with a session to come. It does not poll: there are many, and few cores."""
    transport = TcpTransport(stall_timeout=timeout, spin_us=0, checksums=checksums)
    return RemoteBackend(
        "tcp",
        transport,
        (address,),
        timeout=timeout,
        connect_timeout=60.0,
        shortcut=False,
        access=Access(None, token),
        heartbeat=heartbeat,
    )


@contextlib.contextmanager
def serve(
    directory: Path, tenants: Sequence[str], *options: str, sessions: int = 64, lease: float = 30.0, **settings: str
) -> Iterator[Node]:
    """A node for these tenants. Ends it, whatever happens; raises if it had ended by itself."""
    file = directory / "tokens.json"
    for tenant in tenants:
        (directory / f"{tenant}.token").write_text(tokens.add(file, tenant, tenant=tenant))
        (directory / f"{tenant}.token").chmod(0o600)
    secret = directory / f"{_OPERATOR}.token"
    secret.write_text(tokens.add(file, _OPERATOR, (Scope.USE, Scope.ADMIN)))
    secret.chmod(0o600)
    command = [sys.executable, "-m", "genie", "serve", "--port", "0", "--device", "cpu", "--threads", "1", "--json"]
    command += ["--tokens", str(file), "--max-sessions", str(sessions), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENIE_LEASE_SECONDS": str(lease), **settings}
    log = directory / "node.log"
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        if not select.select([process.stdout], [], [], _START_SECONDS)[0]:
            raise RuntimeError(f"the node was not ready within {_START_SECONDS:g} s")
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the node ended with status {process.wait(10)}: {log.read_text()[-2000:]}")
        facts = json.loads(line)
        host = facts["address"].rpartition(":")[0]
        yield Node(process, facts["address"], f"{host}:{facts['control_port']}", directory, log)
        if process.poll() is not None:
            raise RuntimeError(f"the node ended with status {process.returncode}: {log.read_text()[-2000:]}")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
