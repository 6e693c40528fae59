"""A session of the local backend: the native one, speaking in the values of genie-core."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import msgspec
import structlog

from genie import plan as plans
from genie.device import Device
from genie.errors import GenieError, RemoteOpError
from genie.graph import TensorSpec, bare
from genie.host import HostValue
from genie.interfaces import Buffer
from genie.loops import Loop
from genie.plan import ExecutionPlan
from genie.snapshots import MemoryState, Snapshot
from genie.timing import Operand, Timing
from genie_backend_local import snapshots
from genie_backend_local.engines import Engines
from genie_backend_local.native import NativeLoop, NativeSession, NativeShared

_log = structlog.get_logger("genie.local")
_encode = msgspec.msgpack.Encoder().encode
_WORD = (1 << 64) - 1


@attrs.frozen
class SharedValue:
    """A value's memory, for other sessions on the device to adopt. It lives as long as anyone refers to it."""

    spec: TensorSpec
    nbytes: int
    _native: NativeShared

    @property
    def held(self) -> bool:
        """Whether a session has it."""
        return self._native.held

    @property
    def off_device(self) -> bool:
        """Whether its bytes have left the device."""
        return self._native.away

    def back(self, content: Buffer) -> None:
        """``content`` are its elements in C order, and stay so: while nobody uses the value, it may leave the device,
        and is made of them again. Does nothing for a value that lies otherwise in its memory."""
        if self.spec.stride is None and len(content) == self._native.nbytes:
            self._native.back(content)

    def forsake(self) -> bool:
        """What :meth:`back` was given is wanted elsewhere. False: the value has left, and a session needs it."""
        return self._native.forsake()


class Allocation:
    """Memory for a value to come: fill ``data``, then ``commit``. Dropped without, it is gone."""

    def __init__(self, session: NativeSession, spec: TensorSpec) -> None:
        self._session = session
        self._native = session.allocate(spec.shape, spec.dtype)
        self.data = memoryview(self._native)

    def commit(self, handle: int) -> None:
        """The value is ``handle`` from now on; ``data`` must not be written any more."""
        self._session.commit(handle, self._native)


class LocalSession:
    """See :class:`genie.interfaces.Session`; work is done when a call returns (CUDA kernels: queued).

    Beyond the protocol: :meth:`allocate` receives bytes straight into a value's memory, :meth:`share` and
    :meth:`adopt` let sessions use one memory, copied by the first that writes into it.
    """

    def __init__(self, device: Device, session: NativeSession, engines: Engines | None = None) -> None:
        self.device = device
        self._native = session
        self._engines = engines or Engines({})
        self._plans: dict[bytes, int] = {}  # by content: in Python 1 == 1.0 == True, in a graph they differ

    def load(self, plan: ExecutionPlan) -> int:
        plans.verify(plan)
        engine = plan.engine.name if plan.engine is not None else ""
        content = hashlib.blake2b(_encode((bare(plan.graph), engine)), digest_size=16).digest()
        known = self._plans.get(content)
        if known is None:
            known = len(self._plans)
            if not (engine and self._engines.load(self._native, known, plan, self.device)):
                self._native.load(known, plan.graph)
            self._plans[content] = known
        return known

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        self._native.execute(plan, bindings)

    def loop(self, plan: int, bindings: Buffer, loop: Loop, times: int) -> Iterator[tuple[Buffer, ...]]:
        """See :class:`genie.interfaces.Looping`. Each step of the iterator runs one iteration, natively."""
        begun = self._native.loop(plan, bindings, loop.carries, loop.strides, loop.emit, loop.stop, times)
        return _iterations(self._native, begun)

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        # In one process there is nobody to have known the content before.
        self._native.upload(handle, spec.shape, spec.dtype, data, spec.stride or ())

    def allocate(self, spec: TensorSpec) -> Allocation:
        """Memory for a contiguous value: the value's own on the CPU, on other devices copied there by ``commit``.

        Raises :class:`genie.errors.OutOfMemory` before allocating what the session may not have.
        """
        return Allocation(self._native, spec)

    def poison(self, handle: int, error: GenieError) -> None:
        """``handle`` stands for a value that failed to come: looking at it, or at what is made of it, raises."""
        told = error if isinstance(error, RemoteOpError) else RemoteOpError(error.message, kind=type(error).__name__)
        self._native.poison(
            handle,
            kind=told.kind,
            message=told.message,
            op=told.op,
            source=told.source,
            device=told.device or error.where,
            plan=told.plan,
            step=told.step,
        )

    def fetch(self, handle: int, out: memoryview | None = None) -> HostValue:
        """See the protocol. Without ``out`` a contiguous CPU value is not copied: later in-place operators of the
        session make their own copy as long as somebody holds the memoryview."""
        if out is None:
            shape, dtype, data = self._native.fetch(handle)
        else:
            data = out
            shape, dtype = self._native.fetch_into(handle, out)
        return HostValue(TensorSpec(shape, dtype), data)

    def describe(self, handle: int) -> TensorSpec:
        shape, dtype, stride = self._native.describe(handle)
        return TensorSpec(shape, dtype, None if stride == _contiguous(shape) else stride)

    def free(self, handles: Sequence[int]) -> None:
        self._native.free(handles)

    def share(self, handle: int) -> SharedValue:
        value = self._native.share(handle)
        return SharedValue(self.describe(handle), value.nbytes, value)

    def share_content(self, handle: int) -> SharedValue:
        """The same of a value known by its content: the device's memory counts it once, whoever has it."""
        value = self._native.share_content(handle)
        return SharedValue(self.describe(handle), value.nbytes, value)

    def adopt(self, handle: int, value: SharedValue) -> None:
        """A new value over memory another session on this device shared."""
        self._native.adopt(handle, value._native)

    @property
    def off_device_bytes(self) -> int:
        """Of its values: what has left the device, and comes back when it is used."""
        return self._native.away()

    def prefetch(self) -> None:
        """What the last execution used comes back, unless there is no room. From any thread."""
        with contextlib.suppress(GenieError):  # who uses it will be told
            self._native.prefetch()

    def name(self, label: str, tenant: str) -> None:
        """Who it works for: sessions of one tenant are told each other's names when memory is short."""
        self._native.name(label, tenant)

    def seed(self, generator: int, seed: int) -> None:
        self._native.seed(generator, seed & _WORD)

    def generator_state(self, generator: int) -> bytes:
        """As ``torch.Generator.get_state()`` has it."""
        return self._native.generator_state(generator)

    def set_generator_state(self, generator: int, state: Buffer) -> None:
        self._native.set_generator_state(generator, state)

    def snapshot(self) -> Snapshot:
        """See :class:`genie.interfaces.Snapshotting`. No digests: in one process nobody needs them."""
        return snapshots.take(self._native)

    def read_memory(
        self, id: int, out: memoryview | None = None, offset: int = 0, size: int | None = None, *, version: int = 0
    ) -> memoryview:
        """See the protocol. Without ``out`` as :meth:`fetch`: what is held is not written."""
        return snapshots.read(self._native, id, out, offset, size, version)

    def memory_of(self, handle: int) -> MemoryState:
        """The memory that a value lies in; of an undefined tensor one with id 0."""
        id, size, version, host = self._native.memory_of(handle)
        return MemoryState(id, size, version, host=host)

    def restore(self, snapshot: Snapshot, memories: Callable[[MemoryState], Buffer | None]) -> None:
        snapshots.restore(self._native, snapshot, memories)

    def restore_staged(self, snapshot: Snapshot, staged: Mapping[int, int]) -> None:
        snapshots.restore_staged(self._native, snapshot, staged)

    def cancel(self, reason: str) -> None:
        """See :class:`genie.interfaces.Cancelling`."""
        self._native.cancel(reason)

    def resume(self) -> None:
        self._native.resume()

    def synchronize(self) -> None:
        self._native.synchronize()

    def profile(self, share: float | None = None) -> tuple[Timing, ...]:
        """See :class:`genie.interfaces.Profiling`."""
        rows = self._native.take_timings()
        if share is not None:
            self._native.set_timing(share)
        return tuple(_timing(*row) for row in rows)

    def stats(self) -> Mapping[str, int]:
        self._log_warnings()
        return {"bytes_sent": 0, "bytes_received": 0, "round_trips": 0, **self._native.counters()}

    def close(self) -> None:
        self._log_warnings()
        self._native.close()
        self._plans.clear()

    def _log_warnings(self) -> None:
        for text in self._native.take_warnings():
            _log.info("warning of an operator", device=self.device.id, text=text)


def _iterations(session: NativeSession, loop: NativeLoop) -> Iterator[tuple[Buffer, ...]]:
    while (emitted := session.iterate(loop)) is not None:
        yield emitted


def _timing(
    target: str,
    phase: str,
    operands: Sequence[tuple[str, tuple[int, ...], bool]],
    results: Sequence[tuple[str, tuple[int, ...], bool]],
    *times: Any,
) -> Timing:
    given, made = (tuple(Operand(*one) for one in tensors) for tensors in (operands, results))
    return Timing(target, phase, given, made, *times)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for dim in reversed(shape):
        strides.append(step)
        step *= max(dim, 1)
    return tuple(reversed(strides))
