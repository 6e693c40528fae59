"""A backend whose device is Python: a few dtypes, a few operators, one value after the other."""

from __future__ import annotations

import math
import random
import struct
from array import array

from genie import Device, HostValue, TensorSpec, codec
from genie.bindings import Prediction, bits_float, parameters
from genie.errors import NodeError, OutOfMemory, PlanError, RemoteOpError, SessionClosed
from genie.graph import Many, Ref
from genie.plan import verify

CODES = {"float32": "f", "float64": "d", "int64": "q", "int32": "i", "int16": "h", "uint8": "B"}
MEMORY = 1 << 26


class Value:
    def __init__(self, shape, dtype, cells, error=None):
        self.spec = TensorSpec(tuple(shape), dtype)
        self.cells = cells  # an array, shared by views
        self.error = error


class Abacus:
    name = "abacus"

    def __init__(self):
        self._sessions = []

    def devices(self):
        return (Device(id="abacus:0", type="abacus", memory_gb=MEMORY / 2**30, compute_tflops=1e-6),)

    def connect(self, device):
        self._sessions.append(AbacusSession(device))
        return self._sessions[-1]

    def close(self):
        for session in self._sessions:
            session.close()


class AbacusSession:
    def __init__(self, device):
        self.device = device
        self._values, self._plans, self._ids = {}, [], {}
        self._peak = 0
        self._generators = {}
        self._open = True

    # --- plans ---

    def load(self, plan):
        self._check()
        verify(plan)
        content = codec.encode(plan.graph)  # in Python 1 == 1.0, in a graph they differ
        if content not in self._ids:
            for node in plan.graph.steps:
                if node.target not in OPERATORS:
                    raise PlanError(f"an abacus has no {node.target}", where=f"node {node.id}")
            self._ids[content] = len(self._plans)
            self._plans.append((plan, Prediction(len(plan.graph.inputs), parameters(plan.graph))))
        return self._ids[content]

    def execute(self, plan, bindings, *, more=False):
        self._check()
        if not 0 <= plan < len(self._plans):
            raise NodeError(f"there is no plan {plan}", where=self.device.id)
        (loaded, prediction), number = self._plans[plan], plan
        graph = loaded.graph
        first, *words = prediction.decode(bytes(bindings))
        handles, words = words[: len(graph.inputs)], iter(words[len(graph.inputs) :])
        values = {given.value: self._get(handle) for given, handle in zip(graph.inputs, handles, strict=True)}
        for step, node in enumerate(graph.steps):
            args = [self._argument(arg, values, words) for arg in node.args]
            error = next((each.error for each in _values(args) if each.error), None)
            if error is None:
                try:
                    made = OPERATORS[node.target](self, *args)
                    values.update({output: made for output in node.outputs if output >= 0})
                except OutOfMemory as refused:
                    error = refused
                except (ArithmeticError, RuntimeError, ValueError, TypeError) as failed:
                    where = {"op": node.target, "plan": number, "step": step, "device": self.device.id}
                    error = RemoteOpError(str(failed), kind=type(failed).__name__, **where)
            if error is not None:
                for output in node.outputs:
                    spec = graph.values[output]
                    values[output] = Value(spec.shape, spec.dtype, None, error)
                for written in node.mutates:
                    values[written].error = error
            for dead in loaded.releases[step]:
                values.pop(dead, None)
        self._values.update((first + index, values[output]) for index, output in enumerate(graph.outputs))
        self.free([handle for given, handle in zip(graph.inputs, handles, strict=True) if given.donated])
        self._peak = max(self._peak, self._used())

    def _argument(self, arg, values, words):
        if isinstance(arg, Ref):
            return values[arg.value]
        if isinstance(arg, Many):
            return [self._argument(item, values, words) for item in arg.items]
        if isinstance(arg, float):
            return bits_float(next(words))
        if isinstance(arg, int) and not isinstance(arg, bool):
            return struct.unpack("<q", struct.pack("<Q", next(words)))[0]
        return arg

    # --- values ---

    def upload(self, handle, spec, data, *, shared=False):
        self._check()
        if spec.dtype not in CODES:
            raise NodeError(f"an abacus has no {spec.dtype}", where=self.device.id)
        if handle <= 0 or handle in self._values:
            raise NodeError(f"handle {handle} is taken, or none", where=self.device.id)
        cells = array(CODES[spec.dtype])
        view = memoryview(data)
        size = math.prod(spec.shape) * cells.itemsize
        if view.nbytes != size:
            raise NodeError(f"{view.nbytes} bytes for a value of {size}", where=self.device.id)
        self._reserve(size)
        cells.frombytes(view.tobytes())
        self._values[handle] = Value(spec.shape, spec.dtype, cells)
        self._peak = max(self._peak, self._used())

    def fetch(self, handle, out=None):
        value = self._sound(handle)
        data = memoryview(value.cells.tobytes())
        if out is not None:
            if out.nbytes != data.nbytes:
                raise NodeError(f"{out.nbytes} bytes of memory for a value of {data.nbytes}", where=self.device.id)
            if data.nbytes:
                out.cast("B")[:] = data
            data = out
        return HostValue(value.spec, data)

    def describe(self, handle):
        return self._sound(handle).spec

    def free(self, handles):
        for handle in handles:
            self._values.pop(handle, None)

    def make(self, shape, dtype, numbers):
        self._reserve(len(numbers) * array(CODES[dtype]).itemsize)
        return Value(shape, dtype, array(CODES[dtype], numbers))

    # --- chance ---

    def generator(self, number):
        return self._generators.setdefault(number, random.Random(0))

    def seed(self, generator, seed):
        self._generators[generator] = random.Random(seed)

    def generator_state(self, generator):
        return struct.pack("<625I", *self.generator(generator).getstate()[1])

    def set_generator_state(self, generator, state):
        if len(state) != 2500:
            raise NodeError(f"{len(state)} bytes are no state of a generator", where=self.device.id)
        self.generator(generator).setstate((3, struct.unpack("<625I", state), None))

    # --- the session ---

    def synchronize(self):
        self._check()

    def stats(self):
        return {"memory_bytes": self._used(), "peak_memory_bytes": self._peak, "plans": len(self._plans)}

    def close(self):
        self._open = False
        self._values.clear()

    def _check(self):
        if not self._open:
            raise SessionClosed("the session was closed", where=self.device.id)

    def _get(self, handle):
        self._check()
        if handle not in self._values:
            raise NodeError(f"there is no value {handle}", where=self.device.id)
        return self._values[handle]

    def _sound(self, handle):
        value = self._get(handle)
        if value.error:
            raise value.error
        return value

    def _used(self):
        cells = {id(value.cells): value.cells for value in self._values.values() if value.cells is not None}
        return sum(len(each) * each.itemsize for each in cells.values())

    def _reserve(self, size):
        if self._used() + size > MEMORY:
            raise OutOfMemory(f"{size} bytes asked for, {MEMORY - self._used()} left", device=self.device.id)


def _values(args):
    for arg in args:
        yield from _values(arg) if isinstance(arg, list) else [arg] if isinstance(arg, Value) else []


def _paired(one, other):
    if not isinstance(other, Value):
        return one.spec, [(cell, other) for cell in one.cells]
    if one.spec.shape != other.spec.shape:
        raise RuntimeError(f"an abacus does not broadcast {one.spec.shape} and {other.spec.shape}")
    return one.spec, list(zip(one.cells, other.cells, strict=True))


def add(session, one, other, alpha=1):
    spec, pairs = _paired(one, other)
    return session.make(spec.shape, spec.dtype, [a + alpha * b for a, b in pairs])


def add_in_place(session, one, other, alpha=1):
    one.cells[:] = add(session, one, other, alpha).cells
    return one


def mul(session, one, other):
    spec, pairs = _paired(one, other)
    return session.make(spec.shape, spec.dtype, [a * b for a, b in pairs])


def neg(session, one):
    return session.make(one.spec.shape, one.spec.dtype, [-cell for cell in one.cells])


def relu(session, one):
    return session.make(one.spec.shape, one.spec.dtype, [max(cell, 0) for cell in one.cells])


def mm(session, one, other):
    (rows, inner), (also, columns) = one.spec.shape, other.spec.shape
    if inner != also:
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({rows}x{inner} and {also}x{columns})")
    cells = [
        math.fsum(one.cells[r * inner + k] * other.cells[k * columns + c] for k in range(inner))
        for r in range(rows)
        for c in range(columns)
    ]
    return session.make((rows, columns), one.spec.dtype, cells)


def view(session, one, shape):
    if math.prod(shape) != len(one.cells):
        raise RuntimeError(f"shape {shape} is invalid for {len(one.cells)} numbers")
    return Value(shape, one.spec.dtype, one.cells)


def rand(session, shape, *_):
    draw = session.generator(0).random
    return session.make(shape, "float32", [draw() for _ in range(math.prod(shape))])


OPERATORS = {
    "aten::add.Tensor": add,
    "aten::add_.Tensor": add_in_place,
    "aten::mul.Tensor": mul,
    "aten::neg": neg,
    "aten::relu": relu,
    "aten::mm": mm,
    "aten::view": view,
    "aten::rand": rand,
}
