"""What it takes to keep a session's state, and to bring it back: on disk, on another node, and through the client.

    python benchmarks/bench_checkpoints.py [--megabytes 64] [--memories 64] [--rounds 5] [--json]

Three nodes with the local backend, each in a process of its own, on this machine; the state is so many memories, one in
eight of which changes between two checkpoints. What comes back is compared with what was there. Times are medians;
`through the client` is what a store would do that reads all memories and uploads them to the other node.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack

from measure import milliseconds, ratio, table

from genie import telemetry
from genie.checkpoints import CheckpointStore, DiskCheckpoints, NodeCheckpoints
from genie.graph import TensorSpec
from genie.remote import NodeServer, RemoteBackend, RemoteSession
from genie_backend_tcp import TcpTransport

CHANGED = 8  # one in so many


def _node() -> None:
    from genie_backend_local import LocalBackend

    telemetry.configure("ERROR", False)
    with NodeServer(LocalBackend(), TcpTransport(), "127.0.0.1:0") as node:
        print(node.address, flush=True)
        sys.stdin.read()


class Nodes:
    """Three of them, and a client of each."""

    def __init__(self, stack: ExitStack) -> None:
        self._clients = []
        for _ in range(3):
            node = subprocess.Popen(
                [sys.executable, __file__, "--node"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(node)
            assert node.stdin is not None
            assert node.stdout is not None
            stack.callback(node.stdin.close)
            address = node.stdout.readline().strip()
            client = RemoteBackend("tcp", TcpTransport(), (address,), shortcut=False)
            stack.callback(client.close)
            self._clients.append(client)

    def session(self, number: int) -> RemoteSession:
        client = self._clients[number]
        return client.connect(client.devices()[0])


class State:
    """A session's values, some of which change."""

    def __init__(self, session: RemoteSession, memories: int, size: int) -> None:
        self.session = session
        self._spec = TensorSpec((size,), "uint8")
        self._next = 0
        self._handles: list[int] = []
        for _ in range(memories):
            self._put()

    def _put(self) -> None:
        self._next += 1
        self._handles.append(self._next)
        self.session.upload(self._next, self._spec, os.urandom(self._spec.shape[0]))

    def change(self) -> None:
        """The oldest of them are others."""
        for _ in range(max(len(self._handles) // CHANGED, 1)):
            self.session.free([self._handles.pop(0)])
            self._put()
        self.session.synchronize()

    def everything(self, session: RemoteSession) -> list[bytes]:
        return [bytes(session.fetch(handle).data) for handle in self._handles]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def through_client(session: RemoteSession, target: RemoteSession) -> None:
    snapshot = session.snapshot()
    target.restore(snapshot, lambda memory: session.read_memory(memory.id, version=memory.version))


def traffic(*sessions: RemoteSession) -> int:
    return sum(each.traffic["bytes_sent"] + each.traffic["bytes_received"] for each in sessions)


def measure(megabytes: int, memories: int, rounds: int) -> list[dict[str, object]]:
    times: dict[str, list[float]] = {}
    moved: dict[str, int] = {}

    def note(name: str, work: Callable[[], object], *sessions: RemoteSession) -> None:
        before = traffic(*sessions)
        times.setdefault(name, []).append(timed(work))
        moved[name] = traffic(*sessions) - before

    with ExitStack() as stack:
        nodes = Nodes(stack)
        for _ in range(rounds):
            source = nodes.session(0)
            state = State(source, memories, (megabytes << 20) // memories)
            source.synchronize()
            standby = nodes.session(1)
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            stores: dict[str, CheckpointStore] = {"disk": DiskCheckpoints(directory), "node": NodeCheckpoints(standby)}
            for name, store in stores.items():
                note(f"{name}: first", lambda: store.save(source), source, standby)  # noqa: B023
            state.change()
            kept = {}
            for name, store in stores.items():
                note(f"{name}: next", lambda: kept.update({name: store.save(source)}), source, standby)  # noqa: B023
            wanted = state.everything(source)
            targets = {"disk: back": nodes.session(2), "node: back on a third": nodes.session(2)}
            for (name, target), store in zip(targets.items(), stores.values(), strict=True):
                checkpoint = kept[name.split(":")[0]]
                note(name, lambda: store.load(checkpoint, target), target, standby)  # noqa: B023
            targets["node: back in place"] = standby
            note("node: back in place", lambda: stores["node"].load(kept["node"], standby), standby)  # noqa: B023
            targets["through the client"] = nodes.session(2)
            note("through the client", lambda: through_client(source, targets["through the client"]), source)  # noqa: B023
            for name, target in targets.items():
                assert state.everything(target) == wanted, name
                target.close()
            source.close()
            stores["disk"].close()
    return [
        {
            "": name,
            "ms": milliseconds(each),
            "of the way through the client": ratio(times, name, "through the client")["pair_ratio_median"],
            "client's bytes": moved[name],
        }
        for name, each in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--memories", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--node", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        return _node()
    rows = measure(options.megabytes, options.memories, options.rounds)
    print(json.dumps(rows, ensure_ascii=False) if options.json else table(rows))


if __name__ == "__main__":
    main()
