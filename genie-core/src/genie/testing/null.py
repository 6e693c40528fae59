"""A backend in pure Python: real memory, real bookkeeping, a handful of operators. For tests of everything else."""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from genie import codec
from genie import plan as plans
from genie.bindings import Prediction, bits_float, parameters
from genie.device import Device
from genie.errors import GenieError, NodeError, OutOfMemory, PlanError, RemoteOpError, SessionClosed
from genie.graph import DTYPES, Arg, Graph, Many, Node, Ref, ScalarTensor, TensorSpec
from genie.host import HostValue, flat
from genie.interfaces import Buffer
from genie.loops import Loop
from genie.loops import verify as verify_loop
from genie.plan import ExecutionPlan
from genie.remote.memory import room
from genie.testing.plans import FORMATS, nbytes, unpack


@attrs.define(eq=False)
class _Storage:
    data: memoryview
    error: RemoteOpError | None = None


@attrs.define(eq=False)
class _Value:
    spec: TensorSpec
    storage: _Storage

    def numbers(self) -> list[float]:
        return unpack(self.storage.data, self.spec.dtype)


@attrs.define(eq=False)
class _Loaded:
    graph: Graph
    prediction: Prediction


class _Failed(Exception):
    """What a kernel raises; the session says where."""


class NullSession:
    """:class:`genie.interfaces.Session` over Python lists. ``capacity`` bounds its memory, in bytes, together with that
    of ``others``."""

    def __init__(self, device: Device, capacity: int, others: Sequence[NullSession] = ()) -> None:
        self.device = device
        self._capacity = capacity
        self._others = others
        self._values: dict[int, _Value] = {}
        self._plans: list[_Loaded] = []
        self._numbers: dict[str, int] = {}  # by content: in Python 1 == 1.0 == True, in a graph they differ
        self._generators: dict[int, random.Random] = {}
        self._peak = 0
        self._executions = 0
        self._closed = False

    def load(self, plan: ExecutionPlan) -> int:
        self._check_open()
        plans.verify(plan)
        content = codec.digest(codec.encode(plan.graph))
        known = self._numbers.get(content)
        if known is not None:
            return known
        for node in plan.graph.steps:
            if node.target not in _OPERATORS:
                raise PlanError(f"the null backend has no operator {node.target}", where=f"node {node.id}")
        self._numbers[content] = len(self._plans)
        self._plans.append(_Loaded(plan.graph, Prediction(len(plan.graph.inputs), parameters(plan.graph))))
        return len(self._plans) - 1

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        self._check_open()
        self._run(plan, self._loaded(plan).prediction.decode(bytes(bindings)))

    def loop(self, plan: int, bindings: Buffer, loop: Loop, times: int) -> Iterator[tuple[Buffer, ...]]:
        self._check_open()
        loaded = self._loaded(plan)
        words = loaded.prediction.decode(bytes(bindings))
        verify_loop(loop, loaded.graph, times)
        return self._repeat(plan, list(words), loop, times)

    def _repeat(self, plan: int, words: list[int], loop: Loop, times: int) -> Iterator[tuple[Buffer, ...]]:
        graph = self._plans[plan].graph
        first = words[0]
        for iteration in range(times):
            self._check_open()
            before: dict[int, _Value] = {}
            if iteration:
                before = {-1 - k: self._value(first + k) for k in range(len(graph.outputs))}
                self.free([first + k for k in range(len(graph.outputs))])
                self._values |= before
                for index, output in loop.carries:
                    words[1 + index] = -1 - output
                for parameter, step in loop.strides:
                    at = 1 + len(graph.inputs) + parameter
                    words[at] = (words[at] + step) & (1 << 64) - 1
            try:
                self._run(plan, words)
            finally:
                self.free(list(before))
            yield tuple(bytes(self._looked_at(first + k).storage.data) for k in loop.emit)
            if loop.stop >= 0:
                flags = self._looked_at(first + loop.stop).numbers()
                if len(flags) != 1:
                    raise PlanError(f"a loop stops by a value of one element, not of {len(flags)}")
                if flags[0]:
                    return

    def _loaded(self, plan: int) -> _Loaded:
        if not 0 <= plan < len(self._plans):
            raise NodeError(f"plan {plan} was never loaded", where=self.device.id)
        return self._plans[plan]

    def _run(self, plan: int, binding: Sequence[int]) -> None:
        graph = self._plans[plan].graph
        first, *rest = binding
        handles = rest[: len(graph.inputs)]
        words = iter(rest[len(graph.inputs) :])
        values: dict[int, _Value] = {
            given.value: self._value(handle) for given, handle in zip(graph.inputs, handles, strict=True)
        }
        for step, node in enumerate(graph.steps):
            arguments = [_bound(arg, words) for arg in node.args]
            try:
                self._step(node, arguments, values)
            except (_Failed, ArithmeticError, ValueError, KeyError, struct.error) as error:
                reason = RemoteOpError(
                    str(error),
                    op=node.target,
                    plan=plan,
                    step=step,
                    kind="RuntimeError" if isinstance(error, _Failed) else type(error).__name__,
                    device=self.device.id,
                )
                self._poison(node, values, graph, reason)
            except RemoteOpError as error:
                self._poison(node, values, graph, error)
        for offset, output in enumerate(graph.outputs):
            self._values[first + offset] = values[output]
        for given, handle in zip(graph.inputs, handles, strict=True):
            if given.donated:
                self._values.pop(handle, None)
        self._executions += 1
        self._account()

    def _step(self, node: Node, arguments: Sequence[Any], values: dict[int, _Value]) -> None:
        def operand(argument: Any) -> Any:
            if isinstance(argument, Ref):
                value = values[argument.value]
                if value.storage.error is not None:
                    raise value.storage.error
                return value
            return [operand(item) for item in argument.items] if isinstance(argument, Many) else argument

        made = _OPERATORS[node.target](self, [operand(argument) for argument in arguments])
        if node.outputs[0] >= 0:
            values[node.outputs[0]] = made

    @staticmethod
    def _poison(node: Node, values: dict[int, _Value], graph: Graph, error: RemoteOpError) -> None:
        for output in node.outputs:
            if output >= 0:
                values[output] = _Value(graph.values[output], _Storage(memoryview(b""), error))
        for mutated in node.mutates:
            values[mutated].storage.error = error

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        self._check_open()
        view = flat(data)
        if len(view) != nbytes(spec):
            raise NodeError(f"{len(view)} bytes for a value of {nbytes(spec)}", where=self.device.id)
        self._reserve(len(view))
        self.bind(handle, TensorSpec(tuple(spec.shape), spec.dtype), _copy(view))

    def bind(self, handle: int, spec: TensorSpec, data: memoryview) -> None:
        if handle in self._values or handle <= 0:
            raise NodeError(f"handle {handle} is in use or none", where=self.device.id)
        self._values[handle] = _Value(spec, _Storage(data))
        self._account()

    def poison(self, handle: int, error: GenieError) -> None:
        """``handle`` stands for a value that failed to come."""
        told = error if isinstance(error, RemoteOpError) else RemoteOpError(error.message, kind=type(error).__name__)
        self._values[handle] = _Value(TensorSpec((), "float32"), _Storage(memoryview(b""), told))

    def allocate(self, spec: TensorSpec) -> NullAllocation:
        """Memory to receive a value into."""
        self._check_open()
        self._reserve(nbytes(spec))
        return NullAllocation(self, TensorSpec(tuple(spec.shape), spec.dtype), room(nbytes(spec)))

    def fetch(self, handle: int, out: memoryview | None = None) -> HostValue:
        value = self._looked_at(handle)
        data = value.storage.data
        if out is None:
            return HostValue(value.spec, data.toreadonly())
        target = flat(out)
        if len(target) != len(data):
            raise NodeError(f"the value has {len(data)} bytes, the memory for it {len(target)}", where=self.device.id)
        target[:] = data
        return HostValue(value.spec, target)

    def describe(self, handle: int) -> TensorSpec:
        return self._looked_at(handle).spec

    def free(self, handles: Sequence[int]) -> None:
        for handle in handles:
            self._values.pop(handle, None)

    def seed(self, generator: int, seed: int) -> None:
        self._generators[generator] = random.Random(seed)

    def generator_state(self, generator: int) -> bytes:
        return struct.pack("<625I", *self.generator(generator).getstate()[1])

    def set_generator_state(self, generator: int, state: Buffer) -> None:
        if len(state) != 2500:
            raise NodeError(f"a generator's state has 2500 bytes, not {len(state)}", where=self.device.id)
        self.generator(generator).setstate((3, struct.unpack("<625I", state), None))

    def generator(self, number: int) -> random.Random:
        return self._generators.setdefault(number, random.Random(0))

    def synchronize(self) -> None:
        self._check_open()

    def stats(self) -> Mapping[str, int]:
        return {
            "memory_bytes": self._used(),
            "peak_memory_bytes": self._peak,
            "plans": len(self._plans),
            "executions": self._executions,
            "values": len(self._values),
        }

    def close(self) -> None:
        self._closed = True
        self._values.clear()

    def new(self, spec: TensorSpec, numbers: Sequence[float]) -> _Value:
        self._reserve(nbytes(spec))
        data = struct.pack(f"<{len(numbers)}{FORMATS[spec.dtype]}", *numbers)
        return _Value(spec, _Storage(memoryview(bytearray(data))))

    def _value(self, handle: int) -> _Value:
        self._check_open()
        value = self._values.get(handle)
        if value is None:
            raise NodeError(f"handle {handle} is unknown", where=self.device.id, hint="it was freed, or never made")
        return value

    def _looked_at(self, handle: int) -> _Value:
        value = self._value(handle)
        if value.storage.error is not None:
            raise value.storage.error
        return value

    def _used(self) -> int:
        return sum(len(storage.data) for storage in {value.storage for value in self._values.values()})

    def _account(self) -> None:
        self._peak = max(self._peak, self._used())

    def _reserve(self, size: int) -> None:
        used = sum(session._used() for session in {self, *self._others})
        if used + size > self._capacity:
            raise OutOfMemory(
                f"{size} bytes needed, {self._capacity - used} of {self._capacity} free",
                device=self.device.id,
                kind="OutOfMemoryError",
            )

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("the session was closed", where=self.device.id)


class NullAllocation:
    """Memory for a value to come."""

    def __init__(self, session: NullSession, spec: TensorSpec, data: memoryview) -> None:
        self._session = session
        self._spec = spec
        self.data = data

    def commit(self, handle: int) -> None:
        self._session.bind(handle, self._spec, self.data)


class NullBackend:
    """``devices`` null devices; ``memory_bytes`` bounds each session."""

    name = "null"

    def __init__(self, devices: int = 1, memory_bytes: int = 1 << 30) -> None:
        self._memory = memory_bytes
        self._devices = tuple(
            Device(id=f"null:{index}", type="null", memory_gb=memory_bytes / (1 << 30), compute_tflops=1.0, index=index)
            for index in range(devices)
        )
        self._together = False  # whether the memory is that of all sessions
        self.sessions: list[NullSession] = []

    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def connect(self, device: Device) -> NullSession:
        session = NullSession(device, self._memory, self.sessions if self._together else ())
        self.sessions.append(session)
        return session

    def stand_in(self, real: Device, stated: Device) -> NullBackend:
        """See :class:`genie.interfaces.Hosting`."""
        made = NullBackend()
        made._devices, made._memory, made._together = (stated,), stated.memory_bytes, True
        return made

    def close(self) -> None:
        for session in self.sessions:
            session.close()


def _copy(view: memoryview) -> memoryview:
    copy = room(len(view))
    copy[:] = view
    return copy


# --- operators -----------------------------------------------------------------------------------


def _bound(arg: Arg, words: Iterator[int]) -> Any:
    """``arg`` with its parameters replaced by this execution's."""
    if isinstance(arg, bool):
        return arg
    if isinstance(arg, float):
        return bits_float(next(words))
    if isinstance(arg, int):
        return _signed(next(words))
    if isinstance(arg, Many):
        return Many(tuple(_bound(item, words) for item in arg.items))
    if isinstance(arg, ScalarTensor) and not isinstance(arg.number, bool):
        word = next(words)
        return bits_float(word) if isinstance(arg.number, float) else _signed(word)
    return arg.number if isinstance(arg, ScalarTensor) else arg


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _pairs(one: Any, other: Any) -> tuple[TensorSpec, list[tuple[float, float]]]:
    if not isinstance(other, _Value):
        return one.spec, [(number, other) for number in one.numbers()]
    left, right = one.numbers(), other.numbers()
    if one.spec.shape == other.spec.shape:
        return one.spec, list(zip(left, right, strict=True))
    if not other.spec.shape:
        return one.spec, [(number, right[0]) for number in left]
    if not one.spec.shape:
        return other.spec, [(left[0], number) for number in right]
    raise _Failed(
        f"The size of tensor a {tuple(one.spec.shape)} must match the size of tensor b {tuple(other.spec.shape)}"
    )


def _add(session: NullSession, arguments: Sequence[Any]) -> _Value:
    alpha = arguments[2] if len(arguments) > 2 else 1
    spec, pairs = _pairs(arguments[0], arguments[1])
    return session.new(spec, [a + alpha * b for a, b in pairs])


def _add_in_place(session: NullSession, arguments: Sequence[Any]) -> _Value:
    target: _Value = arguments[0]
    target.storage.data[:] = _add(session, arguments).storage.data
    return target


def _mul(session: NullSession, arguments: Sequence[Any]) -> _Value:
    spec, pairs = _pairs(arguments[0], arguments[1])
    return session.new(spec, [a * b for a, b in pairs])


def _neg(session: NullSession, arguments: Sequence[Any]) -> _Value:
    return session.new(arguments[0].spec, [-number for number in arguments[0].numbers()])


def _mm(session: NullSession, arguments: Sequence[Any]) -> _Value:
    one, other = arguments
    if len(one.spec.shape) != 2 or len(other.spec.shape) != 2 or one.spec.shape[1] != other.spec.shape[0]:
        raise _Failed("mat1 and mat2 shapes cannot be multiplied")
    (rows, inner), (_, columns) = one.spec.shape, other.spec.shape
    left, right = one.numbers(), other.numbers()
    product = [
        math.fsum(left[row * inner + k] * right[k * columns + column] for k in range(inner))
        for row, column in itertools.product(range(rows), range(columns))
    ]
    return session.new(TensorSpec((rows, columns), one.spec.dtype), product)


def _view(session: NullSession, arguments: Sequence[Any]) -> _Value:
    value, shape = arguments[0], tuple(arguments[1])
    if math.prod(shape) * DTYPES[value.spec.dtype] != len(value.storage.data):
        raise _Failed(f"shape '{list(shape)}' is invalid for input of size {math.prod(value.spec.shape)}")
    return _Value(TensorSpec(shape, value.spec.dtype), value.storage)


def _rand(session: NullSession, arguments: Sequence[Any]) -> _Value:
    shape = tuple(arguments[0])
    draw = session.generator(0).random
    return session.new(TensorSpec(shape, "float32"), [draw() for _ in range(math.prod(shape))])


_OPERATORS: Mapping[str, Callable[[NullSession, Sequence[Any]], _Value]] = {
    "aten::add.Tensor": _add,
    "aten::add_.Tensor": _add_in_place,
    "aten::mul.Tensor": _mul,
    "aten::neg": _neg,
    "aten::mm": _mm,
    "aten::view": _view,
    "aten::rand": _rand,
}
