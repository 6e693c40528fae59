"""Measuring a device through its session: kernels by the node's own timer, and the link by asking."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from genie.bindings import Prediction, parameters
from genie.calibration.kernels import FLOATS, Given, Kernel, kernels, rand, randint, scout, size_of
from genie.errors import PlanError, RemoteOpError, UnsupportedOperation
from genie.graph import Arg, Graph, Input, Many, Node, Ref, TensorSpec
from genie.interfaces import Profiling, Session
from genie.profile import Seen, Signature, fitted, merged, signature_of, trait_of
from genie.schedule import Scheduler
from genie.schedule.cost import Calibration, RooflineCostModel
from genie.schedule.links import Reach
from genie.telemetry import get_logger
from genie.timing import Timing

log = get_logger("genie.calibration")

_WARMER = "aten::neg_"  # touches what is to be hot, right before
_USUAL = 0.005  # the share of the time that timing takes elsewhere
_IN_A_ROW = 3
_LARGE = 24 << 20  # bytes; no two of them stay in a cache
_SLOWEST = 6.0  # a dtype that takes so many times longer than float32 is emulated: nobody uses it


class Effort(NamedTuple):
    """How much is measured: seconds of all, of one kernel, bytes of memory, executions of each kernel."""

    seconds: float
    kernel: float
    memory: int
    rounds: int


QUICK = Effort(seconds=8.0, kernel=0.02, memory=256 << 20, rounds=5)
FULL = Effort(seconds=40.0, kernel=0.1, memory=1 << 30, rounds=12)


class Measured(NamedTuple):
    calibration: Calibration
    rows: tuple[Timing, ...]


def calibrate(session: Session, effort: Effort = FULL, progress: Callable[[str], None] | None = None) -> Measured:
    """Measure the device of ``session`` and fit its rooflines.

    Kernels run in rounds, all sizes in turn, so that weights come from memory as in a model, and activations were
    just made. Raises :class:`UnsupportedOperation` for a backend that does not time, and what the session raises.
    """
    if not isinstance(session, Profiling):
        raise UnsupportedOperation(f"the backend of {session.device.id!r} does not time operators")
    say = progress or (lambda what: None)
    driver = _Driver(session)
    session.profile(share=1.0)
    rows: list[Timing] = []
    try:
        found = [(dtype, _slowness(driver, dtype)) for dtype in FLOATS]
        found = [(dtype, slow) for dtype, slow in found if slow < _SLOWEST * found[0][1]]
        if not found:
            raise UnsupportedOperation(
                f"{session.device.id!r} reports no times",
                hint="its backend does not time operators, or cannot run them",
            )
        for dtype, slow in found:
            say(f"{session.device.id}: {dtype}")
            share = effort.seconds * (0.6 if dtype == FLOATS[0] and len(found) > 1 else 0.4 / max(len(found) - 1, 1))
            rows += _rounds(driver, dtype, slow, effort, share if len(found) > 1 else effort.seconds)
    finally:
        session.profile(share=_USUAL)
        driver.end()
    calibration = fitted([Seen(trait_of(signature_of(row)), row.typical) for row in rows], session.device)
    if calibration is None:
        raise UnsupportedOperation(f"{session.device.id!r} runs too few operators for rooflines")
    return Measured(calibration, tuple(rows))


def reach(session: Session, seconds: float = 2.0, most: int = 64 << 20) -> Reach:
    """The link to a node: small questions, then values of growing size up and down, for about so many seconds."""
    handles = itertools.count(1)
    one, spec = next(handles), TensorSpec((1,), "uint8")
    session.upload(one, spec, b"\0")
    trips = sorted(_timed(lambda: session.describe(one)) for _ in range(30))
    trip = trips[len(trips) // 4]
    up: list[tuple[int, float]] = []
    down: list[tuple[int, float]] = []
    size, ends = 1 << 20, time.monotonic() + seconds
    data = bytearray(most)
    while True:
        handle = next(handles)
        view = memoryview(data)[:size]
        spec = TensorSpec((size,), "uint8")

        def send(handle: int = handle, spec: TensorSpec = spec, view: memoryview = view) -> None:
            session.upload(handle, spec, view)
            session.synchronize()

        up.append((size, _timed(send)))
        down.append((size, _timed(lambda handle=handle, view=view: session.fetch(handle, view))))  # type: ignore[misc]
        session.free([handle])
        slow = max(up[-1][1], down[-1][1])
        if time.monotonic() + slow > ends:
            break
        size = min(size * 2, most)
    session.free([one])
    session.synchronize()
    return Reach(trip / 2, _speed(up, trip), _speed(down, trip))


def _speed(seen: Sequence[tuple[int, float]], trip: float) -> float:
    """Bytes per second: of the largest that were sent, the median."""
    largest = max(size for size, _ in seen)
    rates = sorted(size / max(seconds - trip, 0.2 * seconds) for size, seconds in seen if 2 * size >= largest)
    return rates[len(rates) // 2]


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class _Driver:
    """Runs graphs in a session: handles, bindings."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._handles = itertools.count(1 << 40)
        self._scheduler = Scheduler([session.device])
        self._plans: list[tuple[int, Prediction, tuple[int, ...], int]] = []
        self._held: list[int] = []

    def load(self, graph: Graph) -> int:
        number = self.session.load(self._scheduler.schedule(graph))
        words = parameters(graph)
        self._plans.append((number, Prediction(len(graph.inputs), words), words, len(graph.outputs)))
        return len(self._plans) - 1

    def run(self, plan: int, inputs: Sequence[int] = ()) -> list[int]:
        """Handles of the outputs."""
        number, prediction, words, outputs = self._plans[plan]
        made = [next(self._handles) for _ in range(outputs)]
        self.session.execute(number, prediction.encode([made[0] if made else 0, *inputs, *words]))
        self._held += made
        return made

    def end(self) -> None:
        held, self._held = self._held, []
        self.session.free(held)


def _slowness(driver: _Driver, dtype: str) -> float:
    """Measured seconds over those of the device's figures, of a middling product; infinite where it cannot run."""
    kernel = scout(dtype)
    try:
        rows = _measured(driver, [kernel], 3, 5.0)
    except (PlanError, RemoteOpError) as error:
        log.info("dtype not measured", dtype=dtype, reason=error.message)
        return float("inf")
    if not rows:
        return float("inf")
    roof = RooflineCostModel().roof(driver.session.device)
    return max(rows[0].least / roof.estimate(kernel.trait()).seconds, 0.1)


def _rounds(driver: _Driver, dtype: str, slow: float, effort: Effort, seconds: float) -> list[Timing]:
    """Rows of all kernels of a dtype that are quick and small enough."""
    roof = RooflineCostModel().roof(driver.session.device)
    chosen: list[Kernel] = []
    memory = spent = 0.0
    estimates = {kernel: roof.estimate(kernel.trait()).seconds * slow for kernel in kernels(dtype)}
    for kernel in sorted(estimates, key=lambda each: estimates[each]):
        takes, bytes = estimates[kernel], sum(map(size_of, _buffers(kernel, _copies(kernel))))
        due = (spent + takes) * effort.rounds * _IN_A_ROW
        if takes <= effort.kernel and memory + bytes <= effort.memory and due <= seconds:
            chosen.append(kernel)
            memory += bytes
            spent += takes
    return _measured(driver, chosen, effort.rounds, seconds)


def _measured(driver: _Driver, chosen: Sequence[Kernel], rounds: int, seconds: float) -> list[Timing]:
    """One row per kernel, of as many rounds as there is time for, and at least two besides a first that is not
    counted.

    A kernel runs a few times in a row, since only a model's first layer finds code that is not in the caches; the
    median of those counts, and of the rounds the lower quartile: what else a machine does only adds.
    """
    session = driver.session
    assert isinstance(session, Profiling)
    copies = [_copies(kernel) for kernel in chosen]
    setup, graph = _setup(chosen, copies), _round(chosen, copies)
    seen: dict[Signature, list[Timing]] = {}
    ends = time.monotonic() + seconds
    try:
        buffers = driver.run(driver.load(setup)) if setup.steps else []
        plan = driver.load(graph)
        driver.run(plan, buffers)
        session.synchronize()
        session.profile()
        for number in range(rounds):
            driver.run(plan, buffers)
            session.synchronize()
            for row in session.profile():
                if row.target != _WARMER:
                    seen.setdefault(signature_of(row), []).append(row)
            if number and time.monotonic() > ends:
                break
    finally:
        driver.end()
    return [_together(rows) for rows in seen.values()]


def _together(rows: Sequence[Timing]) -> Timing:
    typical = sorted(row.typical for row in rows)[len(rows) // 4]
    return msgspec.structs.replace(functools.reduce(merged, rows), typical=typical)


def _copies(kernel: Kernel) -> int:
    """How many of each tensor that comes from memory: large ones push each other out of the caches."""
    cold = sum(size_of(given) for given in kernel.given if not given.hot)
    return 1 if not cold or cold > _LARGE else _IN_A_ROW


def _buffers(kernel: Kernel, copies: int) -> list[Given]:
    """The tensors of a kernel: those given first, then the further copies of those that come from memory."""
    cold = [given for given in kernel.given if not given.hot]
    return [*kernel.given, *cold * (copies - 1)]


def _setup(chosen: Sequence[Kernel], copies: Sequence[int]) -> Graph:
    """Makes all the tensors that kernels are given, on the device."""
    values: list[TensorSpec] = []
    steps: list[Node] = []
    for kernel, many in zip(chosen, copies, strict=True):
        for given in _buffers(kernel, many):
            made: tuple[Arg, ...]
            if given.below:
                operation, made = "aten::randint", randint(given.below, given.shape)
            else:
                operation, made = "aten::rand", rand(given.shape, given.dtype)
            values.append(TensorSpec(given.shape, given.dtype))
            steps.append(Node(len(steps), operation, "", made, (len(values) - 1,)))
    return Graph(tuple(values), (), tuple(steps), tuple(range(len(values))))


def _round(chosen: Sequence[Kernel], copies: Sequence[int]) -> Graph:
    """Every kernel a few times in a row, in an order that mixes sizes."""
    values: list[TensorSpec] = []
    firsts: list[int] = []
    for kernel, many in zip(chosen, copies, strict=True):
        firsts.append(len(values))
        values += [TensorSpec(given.shape, given.dtype) for given in _buffers(kernel, many)]
    inputs = tuple(Input(value) for value in range(len(values)))
    order = list(range(len(chosen)))
    random.Random(0).shuffle(order)
    steps: list[Node] = []
    for number in order:
        kernel, first = chosen[number], firsts[number]
        for turn in range(_IN_A_ROW):
            places = _places(kernel, first, turn % copies[number])
            for given, value in zip(kernel.given, places, strict=True):
                if given.hot and not given.below:
                    steps.append(_warm(len(steps), value))
            made = range(len(values), len(values) + len(kernel.made))
            values += kernel.made
            args = tuple(_placed(arg, places) for arg in kernel.args)
            aliases = ((made[0], places[0]),) if kernel.view else ()
            steps.append(Node(len(steps), kernel.operation, kernel.overload, args, tuple(made), aliases=aliases))
    return Graph(tuple(values), inputs, tuple(steps), ())


def _places(kernel: Kernel, first: int, copy: int) -> list[int]:
    """The values a kernel is given, with the copy numbered so of those that come from memory."""
    many = sum(not given.hot for given in kernel.given)
    next_cold = itertools.count(first + len(kernel.given) + (copy - 1) * many)
    return [first + offset if given.hot or not copy else next(next_cold) for offset, given in enumerate(kernel.given)]


def _warm(id: int, value: int) -> Node:
    return Node(id, _WARMER, "", (Ref(value),), (-1,), mutates=(value,))


def _placed(arg: Arg, places: Sequence[int]) -> Arg:
    if isinstance(arg, Ref):
        return Ref(places[arg.value])
    if isinstance(arg, Many):
        return Many(tuple(_placed(item, places) for item in arg.items))
    return arg
