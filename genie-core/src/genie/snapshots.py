"""What a session holds at one point of its work, without the bytes.

A session's values are names for parts of *memories*: several may lie in one, at their own offsets and strides, and
whoever writes through one of them is seen through the others. A snapshot says which memories there are and how the
values lie in them, so that a session made from it and the bytes goes on as the first would have.

Plans are not part of it, nor what a connection has said and not heard yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

import genie.errors
from genie.errors import GenieError, RemoteOpError
from genie.graph import DTYPES, TensorSpec

LARGEST: Final = (1 << 63) - 1
STAGING: Final = 1 << 62  # handles from here on are for memories that wait to become a session's
DIGEST_BYTES: Final = 32
_LARGEST_RANK: Final = 64
_Digest: TypeAlias = bytes  # `bytes` is a field below


class MemoryState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One memory that values lie in, ``bytes`` long.

    Equal ``id`` and ``version`` mean equal bytes: in whatever session, before and after it was restored. ``digest`` is
    the BLAKE3 of the bytes where the session knows it (a weight nobody wrote to), or nothing. ``host``: it lies in the
    host's memory though the session's device has its own.
    """

    id: int
    bytes: int
    version: int
    digest: _Digest = b""
    host: bool = False


class ValueState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a value lies in a memory: from element ``offset`` on, by the strides of ``spec``. ``memory`` 0 is an
    undefined tensor. The flags are PyTorch's, of views that are computed when they are read (``conj``, ``neg``) and of
    numbers that yield when dtypes are promoted (``wrapped``)."""

    handle: int
    memory: int
    spec: TensorSpec
    offset: int = 0
    conj: bool = False
    neg: bool = False
    wrapped: bool = False


class GeneratorState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A random generator that was used, as ``torch.Generator.get_state()`` has it. ``host``: the one that draws on the
    host for a session whose device is another."""

    number: int
    state: bytes
    host: bool = False


class FailedValue(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A handle that stands for an error; the fields are those of :class:`genie.errors.RemoteOpError`, ``error`` names
    its class. Handle 0: an error that no handle has, to be told by the next look at any."""

    handle: int
    error: str
    message: str
    where: str = ""
    hint: str = ""
    op: str = ""
    plan: int = -1
    step: int = -1
    kind: str = ""
    device: str = ""
    source: str = ""


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """The state of a session. ``seeds`` are those generators were given, by number: such as were not used yet, or not
    on every device, start from them."""

    memories: tuple[MemoryState, ...] = ()
    values: tuple[ValueState, ...] = ()
    generators: tuple[GeneratorState, ...] = ()
    seeds: Mapping[int, int] = {}
    failures: tuple[FailedValue, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all memories together."""
        return sum(memory.bytes for memory in self.memories)


def failed(handle: int, error: GenieError) -> FailedValue:
    told = error if isinstance(error, RemoteOpError) else RemoteOpError()
    return FailedValue(
        handle,
        type(error).__name__,
        error.message,
        error.where,
        error.hint,
        told.op,
        told.plan,
        told.step,
        told.kind,
        told.device,
        told.source,
    )


def error_of(failure: FailedValue) -> GenieError:
    """The error to raise; only classes of :mod:`genie.errors` are ever built."""
    found = getattr(genie.errors, failure.error, None)
    where, hint = failure.where, failure.hint
    if isinstance(found, type) and issubclass(found, RemoteOpError):
        return found(
            failure.message,
            op=failure.op,
            plan=failure.plan,
            step=failure.step,
            kind=failure.kind,
            device=failure.device,
            source=failure.source,
            where=where,
            hint=hint,
        )
    if isinstance(found, type) and issubclass(found, GenieError):
        return found(failure.message, where=where, hint=hint)
    return genie.errors.NodeError(f"{failure.error}: {failure.message}", where=where, hint=hint)


def fault(snapshot: Snapshot) -> str:
    """Why it can't be one of a session; nothing if it can."""
    memories = {memory.id: memory for memory in snapshot.memories}
    if len(memories) != len(snapshot.memories):
        return "two memories have one id"
    for memory in snapshot.memories:
        if not (0 < memory.id <= LARGEST and 0 < memory.version <= LARGEST and 0 <= memory.bytes <= LARGEST):
            return f"an impossible memory: id {memory.id}, version {memory.version}, {memory.bytes} bytes"
        if len(memory.digest) not in (0, DIGEST_BYTES):
            return f"memory {memory.id} has a digest of {len(memory.digest)} bytes"
    handles = [value.handle for value in snapshot.values] + [failure.handle for failure in snapshot.failures]
    if len(set(handles)) != len(handles):
        return "two values have one handle"
    for handle in handles:
        if not 0 <= handle <= LARGEST:
            return f"{handle} is no handle"
    for value in snapshot.values:
        if wrong := _misplaced(value, memories):
            return f"handle {value.handle} {wrong}"
    for generator in snapshot.generators:
        if not 0 <= generator.number <= LARGEST:
            return f"{generator.number} is no generator"
    for number, seed in snapshot.seeds.items():
        if not (0 <= number <= LARGEST and 0 <= seed < 1 << 64):
            return f"{seed} is no seed of generator {number}"
    return ""


def _misplaced(value: ValueState, memories: Mapping[int, MemoryState]) -> str:
    spec = value.spec
    if value.handle == 0:
        return "is no handle"
    if not value.memory:
        return ""
    if value.memory not in memories:
        return f"lies in memory {value.memory}, which there is not"
    item = DTYPES.get(spec.dtype)
    if item is None:
        return f"has the unknown dtype {spec.dtype[:64]!r}"
    if len(spec.shape) > _LARGEST_RANK or any(not 0 <= size <= LARGEST for size in spec.shape):
        return f"has the impossible shape {spec.shape}"
    strides = strides_of(spec)
    if len(strides) != len(spec.shape) or any(not 0 <= step <= LARGEST for step in strides):
        return f"has the impossible strides {spec.stride}"
    if not 0 <= value.offset <= LARGEST:
        return f"has the impossible offset {value.offset}"
    if 0 in spec.shape:
        return ""
    last = value.offset + sum((size - 1) * step for size, step in zip(spec.shape, strides, strict=True))
    if (last + 1) * item > memories[value.memory].bytes:
        return f"reaches beyond the {memories[value.memory].bytes} bytes of its memory"
    return ""


def content_specs(snapshot: Snapshot) -> dict[int, TensorSpec]:
    """The contiguous value each memory may be staged as. Of a content known by its digest that is most likely the one
    as which it was sent first: nodes share it with others who have it so."""
    contents = {memory.id: memory.bytes for memory in snapshot.memories if memory.digest}
    return {memory.id: TensorSpec((memory.bytes,), "uint8") for memory in snapshot.memories} | {
        value.memory: value.spec
        for value in reversed(snapshot.values)
        if value.memory in contents
        and contents[value.memory] == value.spec.nbytes
        and not value.offset
        and value.spec.stride is None
    }


def strides_of(spec: TensorSpec) -> tuple[int, ...]:
    """In elements; those of a contiguous value are counted as PyTorch does."""
    if spec.stride is not None:
        return spec.stride
    strides: list[int] = []
    step = 1
    for size in reversed(spec.shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
