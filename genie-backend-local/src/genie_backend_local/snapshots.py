"""The native session's snapshots as :mod:`genie.snapshots` has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genie.errors import NodeError, OutOfMemory, RemoteOpError
from genie.graph import TensorSpec
from genie.host import flat
from genie.interfaces import Buffer
from genie.snapshots import (
    STAGING,
    FailedValue,
    GeneratorState,
    MemoryState,
    Snapshot,
    ValueState,
    error_of,
    fault,
    strides_of,
)
from genie_backend_local.native import NativeSession, NativeSnapshot

_EXHAUSTED = "OutOfMemoryError"  # what the native session calls it


def take(session: NativeSession) -> Snapshot:
    memories, values, generators, seeds, failures = session.snapshot()
    return Snapshot(
        tuple(MemoryState(id, size, version, host=host) for id, size, version, host in memories),
        tuple(_value(*row) for row in values),
        tuple(GeneratorState(*row) for row in generators),
        seeds,
        tuple(_failure(*row) for row in failures),
    )


def read(
    session: NativeSession, id: int, out: memoryview | None, offset: int, size: int | None, version: int
) -> memoryview:
    target = None if out is None else flat(out)
    if size is None and target is not None:
        size = len(target)
    data = memoryview(session.read_memory(id, version, offset, -1 if size is None else size))
    if target is None:
        return data
    if len(target) != len(data):
        raise NodeError(f"{len(data)} bytes of memory {id} do not fit `out`, which has {len(target)}")
    target[:] = data
    return target


def restore(session: NativeSession, snapshot: Snapshot, memories: Callable[[MemoryState], Buffer | None]) -> None:
    staged = {}
    for number, memory in enumerate(snapshot.memories):
        if not memory.bytes:
            continue
        data = memories(memory)
        if data is None:
            raise NodeError(f"nobody has the {memory.bytes} bytes of memory {memory.id}")
        staged[memory.id] = STAGING + number
        session.upload(STAGING + number, (memory.bytes,), "uint8", flat(data))
    restore_staged(session, snapshot, staged)


def restore_staged(session: NativeSession, snapshot: Snapshot, staged: Mapping[int, int]) -> None:
    if wrong := fault(snapshot):
        raise NodeError(f"this is no session's state: {wrong}")
    session.restore(_native(snapshot), dict(staged))


def _value(
    handle: int,
    memory: int,
    shape: tuple[int, ...],
    dtype: str,
    stride: tuple[int, ...],
    offset: int,
    conj: bool,
    neg: bool,
    wrapped: bool,
) -> ValueState:
    spec = TensorSpec(shape, dtype)
    if stride != strides_of(spec):
        spec = TensorSpec(shape, dtype, stride)
    return ValueState(handle, memory, spec, offset, conj, neg, wrapped)


def _failure(
    handle: int, kind: str, message: str, op: str, source: str, device: str, plan: int, step: int
) -> FailedValue:
    error = OutOfMemory if kind == _EXHAUSTED else RemoteOpError
    return FailedValue(
        handle,
        error.__name__,
        message,
        op=op,
        plan=plan,
        step=step,
        kind=kind,
        device=device,
        source=source,
    )


def _native(snapshot: Snapshot) -> NativeSnapshot:
    return (
        [(each.id, each.bytes, each.version, each.host) for each in snapshot.memories],
        [
            (
                each.handle,
                each.memory,
                each.spec.shape,
                each.spec.dtype,
                strides_of(each.spec),
                each.offset,
                each.conj,
                each.neg,
                each.wrapped,
            )
            for each in snapshot.values
        ],
        [(each.number, each.state, each.host) for each in snapshot.generators],
        dict(snapshot.seeds),
        [_native_failure(each) for each in snapshot.failures if each.handle],
    )


def _native_failure(failure: FailedValue) -> tuple[Any, ...]:
    error = error_of(failure)
    kind = failure.kind
    if isinstance(error, OutOfMemory):
        kind = _EXHAUSTED
    elif not isinstance(error, RemoteOpError):
        kind = failure.error
    return (
        failure.handle,
        kind,
        failure.message,
        failure.op,
        failure.source,
        failure.device or failure.where,
        failure.plan,
        failure.step,
    )
