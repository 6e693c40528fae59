"""The state of a node's session, told to its client and taken from it (:mod:`genie.snapshots`)."""

from __future__ import annotations

import msgspec

from genie.errors import LimitExceeded, RemoteOpError, UnsupportedOperation
from genie.failures import error_of, failure_of
from genie.graph import TensorSpec
from genie.host import HostValue, flat
from genie.interfaces import Session, Snapshotting
from genie.remote.abilities import Placing, Sharing
from genie.remote.node.session.answers import Answer, valued
from genie.remote.node.session.failures import Failures
from genie.snapshots import FailedValue, MemoryState
from genie.wire import Limits, messages, snapshots

_MOST_CONTENTS = 1 << 16


class NodeState:
    """What is the node's of a session's state counts, too: its failures that were not told yet, and which memories
    are contents known by digest."""

    def __init__(self, session: Session, limits: Limits, failures: Failures) -> None:
        self._session = session
        self._limits = limits
        self._failures = failures
        self._contents: dict[int, tuple[int, bytes]] = {}  # memory → the version that had this digest

    def known(self, handle: int, digest: bytes) -> None:
        """The value's memory has the content with this digest, as long as nobody writes to it."""
        if isinstance(self._session, Placing):
            memory = self._session.memory_of(handle)
            self._remember(memory, digest)

    def _remember(self, memory: MemoryState, digest: bytes) -> None:
        if len(self._contents) >= _MOST_CONTENTS:  # most of them freed long ago
            del self._contents[next(iter(self._contents))]
        self._contents[memory.id] = (memory.version, digest)

    def _digest(self, memory: MemoryState) -> bytes:
        version, digest = self._contents.get(memory.id, (0, b""))
        return digest if version == memory.version else b""

    def tell(self, body: memoryview) -> Answer:
        """A SNAPSHOT."""
        taken = self._told().snapshot()
        memories = tuple(msgspec.structs.replace(each, digest=self._digest(each)) for each in taken.memories)
        self._contents = {each.id: (each.version, each.digest) for each in memories if each.digest}
        failures = [*taken.failures]
        failures += [FailedValue(handle, failure_of(error)) for handle, error in self._failures.by_handle.items()]
        if self._failures.untold is not None:
            failures.append(FailedValue(0, failure_of(self._failures.untold)))
        data = snapshots.put_snapshot(msgspec.structs.replace(taken, memories=memories, failures=tuple(failures)))
        if len(data) > snapshots.MOST_BYTES:
            raise LimitExceeded(f"a snapshot of {len(data)} bytes; the limit is {snapshots.MOST_BYTES}")
        return valued(TensorSpec((len(data),), "uint8"), memoryview(data))

    def read(self, body: memoryview) -> Answer:
        """A READ_MEMORY."""
        id, version, offset, size = snapshots.get_read(body)
        value = self._bytes(id, version, offset, size)
        return valued(value.spec, value.data)

    def sent(self, id: int, version: int) -> HostValue:
        """What a SEND_MEMORY sends: it leaves later, and nobody may write to it before."""
        value = self._bytes(id, version)
        if not isinstance(self._session, Sharing):
            value.data = memoryview(bytes(value.data))
        return value

    def _bytes(self, id: int, version: int, offset: int = 0, size: int | None = None) -> HostValue:
        if size is not None and size > self._limits.tensor:
            raise LimitExceeded(f"{size} bytes of a memory; the limit is {self._limits.tensor}: read it in parts")
        data = flat(self._told().read_memory(id, None, offset, size, version=version))
        spec = TensorSpec((len(data),), "uint8")
        messages.spec_bytes(spec, self._limits)
        return HostValue(spec, data)

    def take(self, body: memoryview) -> dict[int, int]:
        """A RESTORE: the snapshot has come as a value's bytes, as have the memories. Of each staged value, by handle:
        one that lies in its memory now."""
        session = self._told()
        wanted = self._received(messages.get_handle(body, "RESTORE"))
        for _, handle in wanted.staged:
            self._failures.check(handle)
        digests = {memory: self._staged_digest(handle) for memory, handle in wanted.staged}
        told = wanted.snapshot.failures
        operators = tuple(each for each in told if each.handle and isinstance(error_of(each.failure), RemoteOpError))
        session.restore_staged(msgspec.structs.replace(wanted.snapshot, failures=operators), dict(wanted.staged))
        for each in set(told).difference(operators):
            error = error_of(each.failure)
            if each.handle:
                self._failures.add(each.handle, error)
            else:
                self._failures.defer(error)
        self._contents.clear()
        for memory in wanted.snapshot.memories:
            if digests.get(memory.id):
                self._remember(memory, digests[memory.id])
        users = {value.memory: value.handle for value in reversed(wanted.snapshot.values)}
        return {handle: users[memory] for memory, handle in wanted.staged if memory in users}

    def _received(self, handle: int) -> snapshots.Restoration:
        self._failures.check(handle)
        size = self._session.describe(handle).nbytes
        if size > snapshots.MOST_BYTES:  # before it is copied from a device
            raise LimitExceeded(f"a snapshot of {size} bytes; the limit is {snapshots.MOST_BYTES}")
        wanted = snapshots.get_restoration(flat(self._session.fetch(handle).data))
        self._session.free((handle,))
        return wanted

    def _staged_digest(self, handle: int) -> bytes:
        return self._digest(self._session.memory_of(handle)) if isinstance(self._session, Placing) else b""

    def _told(self) -> Snapshotting:
        if not isinstance(self._session, Snapshotting):
            raise UnsupportedOperation(f"the backend of {self._session.device.id} tells no session's state")
        return self._session
