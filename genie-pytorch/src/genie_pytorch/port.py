"""What the native recorder calls: per device index, the engine the application connected."""

from __future__ import annotations

import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from genie import telemetry, tracing
from genie.api import device_count, devices
from genie.api import engine as connect
from genie.api import settings as genie_settings
from genie.errors import OutOfMemory, RemoteOpError, SessionClosed, UnsupportedOperation
from genie.graph import Graph, TensorSpec
from genie.interfaces import Buffer, Engine, Expecting, Looping, Session, TakesWords
from genie.loops import Loop
from genie_pytorch import lower
from genie_pytorch.dtypes import CODE_OF_NAME, NAME_OF_CODE
from genie_pytorch.native import _C, source_text

# Indices from here on are engines that are no device of the cluster's list (genie.run(backend=…)).
FIRST_PRIVATE = 8

# c10::default_rng_seed_val: what PyTorch's generators start from.
DEFAULT_SEED = 67280421310721

log = telemetry.get_logger("genie.pytorch")

Progress = Callable[[int], None]


class Port:
    """Engines by device index, the graphs they were given, and seeds kept until there is an engine to seed."""

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}
        self._graphs: dict[int, Graph] = {}  # by number: graphs of one plan may differ in lines and marks
        self._numbered = itertools.count()
        self._last_of_plan: dict[tuple[int, int], Graph] = {}
        self._seed = DEFAULT_SEED
        self._seeds: dict[int, int] = {}
        self._lock = threading.RLock()
        self._warned: set[str] = set()
        self._log_operators = False
        self._ended = ""
        self.upload_progress: Progress | None = None

    # --- engines

    def engine(self, device: int) -> Engine:
        found = self._engines.get(device)
        if found is None:
            with self._lock:
                found = self._engines.get(device) or self._connected(device, connect(device))
        return found

    def index_of(self, engine: Engine) -> int:
        """The device index under which tensors of this engine live."""
        with self._lock:
            for index, known in self._engines.items():
                if known is engine:
                    return index
            for index, device in enumerate(devices()):
                if device.id == engine.device.id and self.engine(index) is engine:
                    return index
            if device_count() > 1 and self.engine(device_count()) is engine:
                return device_count()
            index = max([FIRST_PRIVATE - 1, *self._engines]) + 1
            self._connected(index, engine)
            return index

    def forget(self, why: str = "before genie.shutdown(), which ended its session") -> None:
        """The engines' sessions are about to end: their values with them."""
        self._ended = why
        with self._lock:
            self._engines.clear()
            self._graphs.clear()
            self._last_of_plan.clear()
            _C.reset()

    def indices(self) -> tuple[int, ...]:
        """Device indices in use, in order."""
        return tuple(sorted(self._engines))

    def connected(self, device: int) -> bool:
        return device in self._engines

    def _session(self, device: int) -> Session:
        engine = self._engines.get(device)
        if engine is None:
            self.ended(device)
        return engine.session

    def ended(self, device: int) -> NoReturn:
        raise SessionClosed(
            f"this tensor was on remote_accelerator:{device} {self._ended}",
            where=source_text(_C.current_source()),
            hint="make the tensor again, or bring it home (.cpu()) before",
        )

    def _connected(self, device: int, engine: Engine) -> Engine:
        self._engines[device] = engine
        settings = genie_settings()
        self._log_operators = settings.log_intercepts
        _C.check_geometry(settings.debug_checks)
        engine.session.seed(0, self._seeds.setdefault(device, self._seed))
        _C.set_host_like(device, engine.device.type.lower() == "cpu")
        _C.set_spread(device, isinstance(engine.session, TakesWords))
        return engine

    def graph(self, number: int) -> Graph:
        return self._graphs[number]

    # --- called by the recorder

    def prepare(self, device: int, segment: lower.Description, whole: bool) -> tuple[int, int]:
        """The plan's id, and the graph's number here."""
        with tracing.span("genie.capture"):
            graph = lower.to_graph(segment, device, "fx" if whole else "lazy_dag")
        plan = self.engine(device).prepare(graph, [handle for _, _, handle, _ in segment["inputs"]])
        if self._log_operators:
            self._log(graph)
        number = next(self._numbered)
        self._graphs[number] = self._last_of_plan[device, plan] = graph
        return plan, number

    def execute(self, device: int, plan: int, bindings: bytes, look: bool) -> None:
        self._session(device).execute(plan, bindings, more=look)

    def execute_words(self, device: int, plan: int, words: bytes, look: bool) -> None:
        session = self._session(device)
        assert isinstance(session, TakesWords)
        session.execute_words(plan, memoryview(words).cast("Q").tolist(), more=look)

    def default_device(self) -> int:
        """The index of tensors that name none: the one device, or that of all of them."""
        count = device_count()
        return count if count > 1 else 0

    def repeats(self, device: int) -> bool:
        """Whether the device may run loops by itself."""
        return isinstance(self.engine(device).session, Looping | TakesWords)

    def loop(
        self, device: int, plan: int, bindings: bytes, loop: Loop, times: int
    ) -> Iterator[tuple[Buffer, ...]] | None:
        """See :class:`genie.interfaces.Looping`; errors name the program's line. ``None``: not this plan."""
        session = self._session(device)
        if isinstance(session, TakesWords):
            iterations = session.loop_words(plan, memoryview(bindings).cast("Q").tolist(), loop, times)
        else:
            assert isinstance(session, Looping)
            iterations = session.loop(plan, bindings, loop, times)
        return None if iterations is None else self._emitted(device, iterations)

    def _emitted(self, device: int, iterations: Iterator[tuple[Buffer, ...]]) -> Iterator[tuple[Buffer, ...]]:
        try:
            yield from iterations
        except RemoteOpError as error:
            raise self._located(device, error) from None

    def upload(
        self, device: int, handle: int, shape: tuple[int, ...], dtype: int, data: memoryview, weight: bool
    ) -> None:
        session = self.engine(device).session
        try:
            session.upload(handle, TensorSpec(shape, NAME_OF_CODE[dtype]), data, shared=weight)
        except RemoteOpError as error:
            error.source = error.source or source_text(_C.current_source())
            raise
        if self.upload_progress is not None:
            self.upload_progress(data.nbytes)

    def expect(self, device: int, handle: int, size: int) -> None:
        """A value of so many bytes will be looked at: it may come home as soon as it is there."""
        session = self._session(device)
        if isinstance(session, Expecting) and size:
            session.expect(handle, size)

    def fetch(self, device: int, handle: int, out: memoryview) -> None:
        try:
            self._session(device).fetch(handle, out)
        except RemoteOpError as error:
            raise self._located(device, error) from None
        self._engines[device].looked()

    def describe(self, device: int, handle: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        try:
            spec = self._session(device).describe(handle)
        except RemoteOpError as error:
            raise self._located(device, error) from None
        stride = spec.stride if spec.stride is not None else _contiguous(spec.shape)
        return CODE_OF_NAME[spec.dtype], spec.shape, stride

    def free(self, device: int, handles: list[int]) -> None:
        engine = self._engines.get(device)
        if engine is not None:  # else its session ended, and its values with it
            engine.session.free(handles)

    def seed(self, device: int, generator: int, seed: int) -> None:
        if generator == 0:
            self._seeds[device] = seed
            if device not in self._engines:
                return  # it is seeded when it is connected: seeding alone must not connect
        self.engine(device).session.seed(generator, seed)

    def seed_all(self, seed: int) -> None:
        """Seed the default generator of every device there is, and of those to come."""
        self._seed = seed
        self._seeds = dict.fromkeys(self._engines, seed)
        if self._engines:
            _C.flush(-1)
        for engine in self._engines.values():
            engine.session.seed(0, seed)

    def initial_seed(self, device: int) -> int:
        return self._seeds.get(device, self._seed)

    def generator_state(self, device: int, generator: int) -> bytes:
        return self.engine(device).session.generator_state(generator)

    def set_generator_state(self, device: int, generator: int, state: bytes) -> None:
        self.engine(device).session.set_generator_state(generator, state)

    def synchronize(self, device: int) -> None:
        if device in self._engines:
            self._session(device).synchronize()

    def refuse(self, op: str, reason: str) -> None:
        raise UnsupportedOperation(
            f"{op}: {reason}",
            where=source_text(_C.current_source()),
            hint='move the tensors to one device first: .cpu(), or .to("remote_accelerator")',
        )

    def warn_mixed(self, op: str) -> None:
        line = source_text(_C.current_source())
        if line not in self._warned:
            self._warned.add(line)
            warnings.warn(
                f"{line or 'a program'}: {op} mixes a tensor on remote_accelerator with one on the CPU; the remote "
                "one is brought home and the operator runs on the CPU. Move the CPU tensor to the device, or work "
                "inside genie.capture(). (Said once per line.)",
                stacklevel=2,
            )

    def _log(self, graph: Graph) -> None:
        for node in graph.nodes():
            log.info("captured", operator=node.target, module=node.module_path, line=node.source_line)

    def _located(self, device: int, error: RemoteOpError) -> RemoteOpError:
        """The same error, saying which line issued the operator and being of the type PyTorch raises."""
        graph = self._last_of_plan.get((device, error.plan))
        if graph is not None and 0 <= error.step < len(graph.steps):
            node = graph.steps[error.step]
            if node.source >= 0 and not error.source:
                error.source = graph.sources[node.source]
            if node.module >= 0 and not error.where:
                error.where = graph.modules[node.module].path
        if not error.source:  # an upload that did not fit, say: no operator issued it
            error.source = source_text(_C.current_source())
        typed = _TYPED.get(error.kind)
        if typed is None or isinstance(error, typed):
            return error
        other: RemoteOpError = typed(
            error.message,
            op=error.op,
            plan=error.plan,
            step=error.step,
            kind=error.kind,
            device=error.device,
            source=error.source,
            where=error.where,
            hint=error.hint,
        )
        return other


def _subclass(base: type[Exception]) -> Any:
    return type(f"Remote{base.__name__}", (RemoteOpError, base), {"__doc__": f"An operator's {base.__name__}."})


_TYPED: dict[str, Any] = {
    each.__name__: _subclass(each) for each in (IndexError, ValueError, TypeError, NotImplementedError)
} | {"OutOfMemoryError": OutOfMemory}


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


port = Port()
_C.set_port(port)
# A forked child shares its parent's sockets: it must neither use nor end the sessions behind them.
os.register_at_fork(after_in_child=lambda: port.forget("in the process that forked this one, whose session it is"))
