"""The client's side of snapshots: a remote session's state told, read and given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from genie.errors import NodeError, ProtocolError, UnsupportedOperation
from genie.graph import TensorSpec
from genie.host import HostValue, flat
from genie.interfaces import Buffer
from genie.remote.client.conversation import Conversation
from genie.snapshots import STAGING, MemoryState, Snapshot, content_specs
from genie.wire import PROTOCOL, Kind, messages, snapshots

_PIECE: Final = 64 << 20  # bytes of a memory that are asked for at a time
_LETTER: Final = messages.LARGEST_HANDLE  # the handle of what travels as a value to RESTORE


class RemoteState:
    """Of one conversation, nobody else's question being under way. ``value`` reads a VALUE, ``upload`` sends one."""

    def __init__(
        self,
        conversation: Conversation,
        value: Callable[[memoryview, memoryview | None], HostValue],
        upload: Callable[[int, TensorSpec, memoryview], None],
    ) -> None:
        self.minor = PROTOCOL[1]  # of the version the node speaks
        self._conversation = conversation
        self._value = value
        self._upload = upload

    def snapshot(self) -> Snapshot:
        self._check()
        told = self._conversation.read(self._value, *self._conversation.ask(Kind.SNAPSHOT, b"", Kind.VALUE))
        return self._conversation.read(snapshots.get_snapshot, told.data)

    def read(self, id: int, out: memoryview | None, offset: int, size: int | None, version: int) -> memoryview:
        self._check()
        if out is None and size is None:
            return self._piece(id, None, offset, None, version)
        target = flat(memoryview(bytearray(size or 0)) if out is None else out)
        if size is not None and size != len(target):
            raise NodeError(f"{size} bytes of memory {id} do not fit `out`, which has {len(target)}")
        for start in range(0, len(target), _PIECE):
            part = target[start : start + _PIECE]
            self._piece(id, part, offset + start, len(part), version)
        return target

    def _piece(self, id: int, target: memoryview | None, offset: int, size: int | None, version: int) -> memoryview:
        talk = self._conversation
        try:
            talk.target = target
            answer = talk.ask(Kind.READ_MEMORY, snapshots.put_read(id, version, offset, size), Kind.VALUE)
            return talk.read(self._value, *answer).data
        finally:
            talk.target = None

    def send(self, outlet: int, id: int, version: int) -> None:
        self._check()
        self._conversation.queue(Kind.SEND_MEMORY, snapshots.put_send(outlet, id, version))
        self._conversation.push()

    def stage(self, handle: int, spec: TensorSpec, digest: bytes) -> bool:
        self._check()
        talk = self._conversation
        spec = TensorSpec(tuple(spec.shape), spec.dtype)
        answer, _ = talk.ask(Kind.STAGE, messages.put_commit(digest, handle, spec), Kind.HELD)
        held, _ = talk.read(messages.get_held, answer)
        if held not in (0, messages.spec_bytes(spec, talk.limits)):
            talk.fail(ProtocolError(f"the node says it holds {held} bytes of a whole content"))
        return held > 0

    def restore_staged(self, snapshot: Snapshot, staged: Mapping[int, int]) -> None:
        self._check()
        wanted = snapshots.Restoration(snapshot, tuple(staged.items()))
        data = memoryview(snapshots.put_restoration(wanted))
        self._upload(_LETTER, TensorSpec((len(data),), "uint8"), data)
        self._conversation.ask(Kind.RESTORE, messages.HANDLE.pack(_LETTER), Kind.DONE)

    def _check(self) -> None:
        if self.minor < snapshots.MINOR:
            raise UnsupportedOperation(
                f"{self._conversation.node} speaks version {PROTOCOL[0]}.{self.minor} of the protocol: it tells no "
                "session's state",
                hint="upgrade the node",
            )


def stage_all(
    snapshot: Snapshot,
    memories: Callable[[MemoryState], Buffer | None],
    stage: Callable[[int, TensorSpec, bytes], bool],
    upload: Callable[[int, TensorSpec, Buffer, bool], None],
) -> dict[int, int]:
    """Have the bytes of every memory be a value: by digest where the node knows it, else sent; the handles."""
    staged = {}
    specs = content_specs(snapshot)
    for number, memory in enumerate(snapshot.memories):
        if not memory.bytes:
            continue
        handle = staged[memory.id] = STAGING + number
        spec = specs[memory.id]
        if memory.digest and stage(handle, spec, memory.digest):
            continue
        data = memories(memory)
        if data is None:
            raise NodeError(
                f"nobody has the {memory.bytes} bytes of memory {memory.id}",
                hint="a node that was started anew knows no contents by their digest" if memory.digest else "",
            )
        upload(handle, spec, data, bool(memory.digest))
    return staged
