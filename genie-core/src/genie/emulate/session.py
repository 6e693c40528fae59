"""A session on an emulated device: real work on a thread of its own, and virtual time beside it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import attrs

from genie import codec, telemetry
from genie.device import Device
from genie.emulate.ledger import Ledger
from genie.emulate.virtual import Request
from genie.emulate.virtual import Way as VirtualWay
from genie.emulate.ways import Way, packed, unpack
from genie.errors import GenieError, LocalProtocolError, NodeError, OutOfMemory, SessionClosed
from genie.graph import DTYPES, TensorSpec, spec_text
from genie.host import HostValue, flat
from genie.interfaces import Buffer, Poisoning, Session
from genie.plan import ExecutionPlan, bare

log = telemetry.get_logger("genie.emulate")

_T = TypeVar("_T")
_MOST_WAITING = 1 << 12
_WAITING_BYTES = 256 << 20  # of uploads that the worker has not come to
_CLOSE_SECONDS = 20.0


@attrs.frozen
class Estimated:
    """What an execution of a plan takes on the emulated device, in seconds, and as a share of what it takes here."""

    seconds: float
    scale: float
    what: str


@attrs.frozen
class Place:
    """What the sessions of one emulated device have in common. ``real`` is the device it runs on; ``turn`` lets one
    session at a time compute; ``measured`` says that times are measured."""

    device: Device
    real: Device
    ledger: Ledger
    estimate: Callable[[ExecutionPlan], Estimated]
    measured: bool
    turn: threading.Lock = attrs.field(factory=threading.Lock)


class _Answer:
    """Of a look, from the worker."""

    __slots__ = ("done", "error", "value", "wanted")

    def __init__(self) -> None:
        self.wanted = True
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None


@attrs.frozen
class _Task:
    """For the worker. ``run`` gives seconds or bytes, where they are not known before."""

    run: Callable[[], object]
    request: Request | None = None
    answer: _Answer | None = None
    size: int = 0
    counted: bool = True


class EmulatedSession:
    """See :class:`genie.interfaces.Session` and :class:`genie.interfaces.Linked`. ``real`` does the work."""

    def __init__(self, place: Place, real: Session) -> None:
        self.device = place.device
        self._place = place
        self._ledger = place.ledger
        self._real = real
        self._stream = place.ledger.open(place.device.id)
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._waiting = self._waiting_bytes = 0
        self._plans: list[Estimated] = []
        self._numbers: dict[str, int] = {}
        self._inlets: list[Way] = []
        self._outlets: list[Way] = []
        self._sent = self._received = self._round_trips = 0
        self._closed = False
        # Of the worker:
        self._real_plans: list[int | GenieError] = []
        self._failed: dict[int, GenieError] = {}
        self._deferred: GenieError | None = None
        self._worker = threading.Thread(target=self._work, name=f"genie-{self.device.id}", daemon=True)
        self._worker.start()

    # --- asking -------------------------------------------------------------------------------------

    def _put(self, run: Callable[[], object], request: Request | None = None, size: int = 0) -> None:
        """Have it done, after all that was asked before. A program much ahead waits."""

        def room() -> bool:
            return self._closed or (self._waiting < _MOST_WAITING and self._waiting_bytes + size <= _WAITING_BYTES)

        with self._lock:
            fits = room() or not self._waiting
        if not fits:
            self._ledger.wait(lambda: room() or not self._waiting, f"{self.device.id} to catch up")
        with self._lock:
            self._waiting += 1
            self._waiting_bytes += size
        self._tasks.put(_Task(run, request, size=size))

    def _look(self, run: Callable[[], _T], request: Request | None = None) -> _T:
        """What ``run`` gives, once all that was asked before is done."""
        answer = _Answer()
        self._tasks.put(_Task(run, request, answer, counted=False))
        try:
            self._ledger.wait(lambda: answer.done, self.device.id)
            if request is not None:
                self._ledger.pass_time(request)
        except BaseException:
            answer.wanted = False
            self._ledger.know(request, 0)
            raise
        self._round_trips += request is not None
        if answer.error is not None:
            raise answer.error
        return cast(_T, answer.value)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("the session was closed", where=self.device.id)

    def load(self, plan: ExecutionPlan) -> int:
        self._check_open()
        content = codec.digest(codec.encode(bare(plan)))
        number = self._numbers.get(content)
        if number is None:
            estimated = self._place.estimate(plan)
            number = self._numbers[content] = len(self._plans)
            self._plans.append(estimated)
            self._put(lambda: self._load(plan))
        return number

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        self._check_open()
        if not 0 <= plan < len(self._plans):
            raise LocalProtocolError(f"plan {plan} was never loaded in this session")
        taken, its = bytes(bindings), self._plans[plan]
        seconds = None if self._place.measured else its.seconds
        request = self._ledger.ask(self._stream, "work", its.what, seconds)
        self._put(lambda: self._execute(plan, taken), request)

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        self._check_open()
        view = flat(data)
        if spec.dtype not in DTYPES or spec.nbytes != len(view):
            raise LocalProtocolError(f"{len(view)} bytes for a value of shape {spec.shape}, {spec.dtype}")
        taken = bytes(view)
        request = self._ledger.ask(self._stream, "upload", spec_text(spec), len(taken))
        self._sent += len(taken)
        self._put(lambda: self._upload(handle, spec, taken), request, len(taken))

    def free(self, handles: Sequence[int]) -> None:
        """Garbage collection may call this at any moment, also while this thread holds a lock."""
        freed = tuple(handles)
        self._tasks.put(_Task(lambda: self._free(freed), counted=False))

    def seed(self, generator: int, seed: int) -> None:
        self._check_open()
        self._put(lambda: self._real.seed(generator, seed))

    def set_generator_state(self, generator: int, state: Buffer) -> None:
        self._check_open()
        taken = bytes(state)
        self._put(lambda: self._real.set_generator_state(generator, taken))

    def poison(self, handle: int, error: GenieError) -> None:
        """``handle`` stands for a value that failed to come."""
        self._check_open()
        self._put(lambda: self._fail(handle, error))

    # --- values from and to other devices -----------------------------------------------------------

    def inlet(self, source: str) -> Way:
        self._check_open()
        way = Way(source, VirtualWay(self._stream))
        self._inlets.append(way)
        return way

    def outlet(self, inlet: Way) -> int:
        self._check_open()
        self._outlets.append(inlet)
        return len(self._outlets) - 1

    def send(self, outlet: int, handle: int) -> None:
        self._check_open()
        way = self._outlets[outlet]
        request = self._ledger.ask(self._stream, "send", way=way.virtual)
        self._put(lambda: self._send(way, handle, request), request)

    def receive(self, inlet: Way, position: int, handle: int) -> None:
        self._check_open()
        request = self._ledger.ask(self._stream, "receive", way=inlet.virtual, position=position)
        self._put(lambda: self._receive(inlet, position, handle), request)

    # --- looks --------------------------------------------------------------------------------------

    def fetch(self, handle: int, out: memoryview | None = None) -> HostValue:
        self._check_open()
        request = self._ledger.ask(self._stream, "fetch")

        def look() -> HostValue:
            self._looked_at(handle)
            value = self._real.fetch(handle, out)
            fetched = HostValue(value.spec, memoryview(value.data))
            request.what = spec_text(fetched.spec)
            self._ledger.know(request, fetched.data.nbytes)
            return fetched

        fetched = self._look(look, request)
        self._received += fetched.data.nbytes
        return fetched

    def describe(self, handle: int) -> TensorSpec:
        self._check_open()

        def look() -> TensorSpec:
            self._looked_at(handle)
            return self._real.describe(handle)

        return self._look(look, self._ledger.ask(self._stream, "ask", amount=0))

    def generator_state(self, generator: int) -> bytes:
        self._check_open()
        request = self._ledger.ask(self._stream, "ask", amount=0)
        return self._look(lambda: self._real.generator_state(generator), request)

    def synchronize(self) -> None:
        self._check_open()
        self._look(self._real.synchronize, self._ledger.ask(self._stream, "ask", amount=0))

    # --- about it -----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed

    def stats(self) -> Mapping[str, int]:
        """The real session's counters; bytes and round trips are those of the emulated link."""
        counters = {} if self._closed else self._look(lambda: dict(self._real.stats()))
        traffic = {"bytes_sent": self._sent, "bytes_received": self._received, "round_trips": self._round_trips}
        return {**counters, **traffic}

    def close(self) -> None:
        """What was asked and is not begun is not done any more."""
        if self._closed:
            return
        self._closed = True
        for way in (*self._inlets, *self._outlets):
            way.end()
        self._tasks.put(None)
        if self._worker is not threading.current_thread():
            self._worker.join(_CLOSE_SECONDS)

    # --- the worker ---------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            amount: object = 0
            error: BaseException | None = None
            try:
                if self._closed:
                    raise SessionClosed("the session was closed", where=self.device.id)
                if task.answer is None or task.answer.wanted:
                    amount = task.run()
            except GenieError as raised:
                error = raised
            except Exception as raised:
                log.exception("an emulated device failed", device=self.device.id)
                error = NodeError(f"the device failed: {type(raised).__name__}: {raised}", where=self.device.id)
            if task.answer is not None:
                task.answer.value, task.answer.error = amount, error
                task.answer.done = True
                amount = 0
            elif error is not None and not self._closed:
                self._defer(cast(GenieError, error))
            if task.counted:
                with self._lock:
                    self._waiting -= 1
                    self._waiting_bytes -= task.size
            self._ledger.know(task.request, float(amount) if isinstance(amount, int | float) else 0.0)
            del task
        self._ledger.end(self._stream)
        try:
            self._real.close()
        except Exception as raised:
            log.warning("not closed in order", device=self.device.id, error=str(raised))

    def _load(self, plan: ExecutionPlan) -> None:
        try:
            self._real_plans.append(self._real.load(plan))
        except GenieError as error:
            self._real_plans.append(error)
            raise

    def _execute(self, plan: int, bindings: bytes) -> float:
        number = self._real_plans[plan]
        if isinstance(number, GenieError):
            raise number
        with self._place.turn:
            started = time.perf_counter()
            try:
                self._real.execute(number, bindings)
                if self._place.measured:
                    self._real.synchronize()
            except GenieError as error:
                # What it needed may be missing because its upload failed: that is the reason to tell.
                raise next(iter(self._failed.values()), error) from None
            return (time.perf_counter() - started) * self._plans[plan].scale

    def _upload(self, handle: int, spec: TensorSpec, data: bytes) -> None:
        try:
            self._check_room(len(data))
            self._real.upload(handle, spec, data)
        except (GenieError, MemoryError) as error:
            self._fail(handle, error)

    def _check_room(self, size: int) -> None:
        have = self.device.memory_bytes
        if size > have:
            raise OutOfMemory(
                f"a value of {size} bytes does not fit: {self.device.id} has {have} bytes in all "
                f"(memory_gb: {self.device.memory_gb:g})",
                device=self.device.id,
                kind="OutOfMemoryError",
            )

    def _free(self, handles: Sequence[int]) -> None:
        for handle in handles:
            self._failed.pop(handle, None)
        self._real.free(handles)

    def _send(self, way: Way, handle: int, request: Request) -> int:
        try:
            parcel, spec = packed(self._real, self._place.real.id, handle)
        except GenieError as error:
            # What it needed may be missing because of an earlier failure: that is the reason to tell.
            way.put(self._failed.get(handle) or self._deferred or error)
            request.what = "an error"
            return 0
        way.put(parcel)
        request.what = spec_text(spec)
        return spec.nbytes

    def _receive(self, way: Way, position: int, handle: int) -> None:
        try:
            unpack(way.take(position), self._real, self._place.real.id, handle)
        except (GenieError, MemoryError) as error:
            self._fail(handle, error)

    def _looked_at(self, handle: int) -> None:
        """Raises what is to be told at this look. What has no handle is told once."""
        if self._deferred is not None:
            error, self._deferred = self._deferred, None
            raise error
        if self._failed and handle in self._failed:
            raise self._failed[handle]

    def _defer(self, error: GenieError) -> None:
        if self._deferred is None:
            self._deferred = error

    def _fail(self, handle: int, error: GenieError | MemoryError) -> None:
        if not isinstance(error, GenieError):
            error = OutOfMemory(str(error) or "no memory for a value", device=self.device.id, kind="MemoryError")
        if isinstance(error, OutOfMemory):
            error.device = error.device or self.device.id
        if isinstance(self._real, Poisoning):
            self._real.poison(handle, error)
        else:
            self._failed[handle] = error
