"""A node in this process whose clients are scripts, without sockets or threads, and a bystander who must not notice."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import blake3

from genie.errors import ConnectionLost
from genie.graph import TensorSpec
from genie.interfaces import Session
from genie.remote import NodeServer
from genie.remote.channels import inlets
from genie.remote.node.content_store import ContentStore
from genie.testing import MemoryTransport
from genie.wire import Allocate, Buffer, Limits, Message, frames
from genie_backend_local import LocalBackend
from genie_fuzz.harness import check

MEMORY = 1 << 20  # of a session
CONTENT = 1 << 18  # of the store
LIMITS = Limits(header=1 << 16, records=64, buffers=1, tensor=1 << 17, rank=64, plan=1 << 16)
WEIGHT = bytes(range(256)) * 64  # the content that the bystander shares with whoever knows its digest
DIGEST = blake3.blake3(WEIGHT).digest()
_SECRET = b"what others must not see"
_OWN, _SHARED = 1, 2  # the bystander's handles


class Script:
    """A connection whose peer has said everything at once and hung up. What it is told is kept."""

    peer = "memory:script"

    def __init__(self, messages: Sequence[tuple[bytes, bytes | None]]) -> None:
        self._messages = deque(messages)
        self.told: list[tuple[bytes, bytes | None]] = []
        self.closed = False

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        if self.closed or not self._messages:
            raise ConnectionLost("the script is over", where=self.peer)
        header, data = self._messages.popleft()
        # What a stream's reader checks before it believes a header.
        if len(header) < frames.PREFIX.size or frames.header_length(header, LIMITS) != len(header):
            raise ConnectionLost("a header of another length than it says", where=self.peer)
        sizes = frames.sizes(header, LIMITS)
        if not sizes:
            return Message(header)
        targets = [memoryview(target).cast("B") for target in allocate(header, sizes)]
        check(tuple(map(len, targets)) == sizes, "memory of another size than is received into it")
        for target in targets:
            part = (data or b"")[: len(target)]
            target[: len(part)] = part
        return Message(header, targets)

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        if self.closed:
            raise ConnectionLost("the peer closed the connection", where=self.peer)
        frames.split(bytes(header))
        self.told.append((bytes(header), bytes(memoryview(buffers[0])) if buffers else None))

    def hung_up(self) -> bool:
        return not self._messages

    def close(self) -> None:
        self.closed = True


class Bench:
    """A node of the local backend on the CPU, made once; :meth:`serve` runs one client's script on it, and checks that
    nothing is left of it, and that the bystander's values are as they were."""

    def __init__(self, **options: Any) -> None:
        self.backend = LocalBackend(memory_limit_gb=MEMORY / (1 << 30), batching=False)
        self.server = NodeServer(
            self.backend, MemoryTransport(limits=LIMITS), "node:0", local=False, limits=LIMITS, content_bytes=CONTENT,
            **{"lease_seconds": 0.0, **options},
        )  # fmt: skip
        self.server.start()
        self.bystander: Session = self.backend.connect(self.server._devices[0])
        self.bystander.upload(_OWN, TensorSpec((len(_SECRET),), "uint8"), _SECRET)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Contents as they were at first, no waiting for what scripts don't send, and the checks at the end."""
        threads = self._busy()
        store = self.server._store = ContentStore(CONTENT)
        self.bystander.free([_SHARED])
        self._offer(store)
        with brief():
            yield
        check(not self.server.sessions(), "a session is still listed")
        check(not self.server._inlets._waiting, "an inlet is still open")
        check(not any(entry.busy for entry in store._entries.values()), "a content is still held by a session")
        check(store.stats()["content_bytes"] <= CONTENT, "more contents are kept than there is room for")
        end = time.monotonic() + 5.0
        while self._busy() > threads and time.monotonic() < end:
            time.sleep(0.0005)
        check(self._busy() <= threads, f"threads are left: {threading.enumerate()}")
        for session in [each for each in self.backend._sessions if each is not self.bystander]:
            left = session.stats()
            check(
                not (left["values"] or left["plans"] or left["memory_bytes"]), f"a session that ended still has {left}"
            )
            self.backend._sessions.discard(session)
        check(bytes(self.bystander.fetch(_OWN).data) == _SECRET, "another session's value was changed")
        check(bytes(self.bystander.fetch(_SHARED).data) == WEIGHT, "another session's shared weight was changed")

    def _busy(self) -> int:
        """Threads, but for those that wait for the next session."""
        return threading.active_count() - self.server.idle_threads

    def _offer(self, store: ContentStore) -> None:
        """The bystander's weight, as sessions bring theirs."""
        spec = TensorSpec((len(WEIGHT),), "uint8")
        store.begin("bystander", DIGEST, len(WEIGHT))
        store.room("bystander", DIGEST, 0, len(WEIGHT))[:] = WEIGHT
        store.received("bystander", DIGEST, len(WEIGHT))
        self.bystander.upload(_SHARED, spec, store.take("bystander", DIGEST))
        value = self.bystander.share(_SHARED)  # type: ignore[attr-defined]
        store.keep(DIGEST, (self.bystander.device.id, spec), value)
        store.done("bystander", DIGEST)

    def serve(self, messages: Sequence[tuple[bytes, bytes | None]]) -> Script:
        """One client, from its greeting to its end. What it was told is in the script."""
        script = Script(messages)
        with self.fresh():
            self.server._serve(script)
            check(script.closed, "the connection was not closed")
            for header, _ in script.told:
                check(_SECRET not in header, "another session's value was told")
        return script


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """Nobody waits long for a sender of values that is a script, too."""
    names = ("_CONNECT_SECONDS", "_LOOK_SECONDS")
    before = {name: getattr(inlets, name) for name in names}
    for name in names:
        setattr(inlets, name, 0.001)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(inlets, name, value)


def once(make: Callable[[], Bench]) -> Callable[[], Bench]:
    """Made when it is first wanted: whoever only asks for seeds starts no node."""
    made: list[Bench] = []

    def bench() -> Bench:
        if not made:
            made.append(make())
        return made[0]

    return bench
