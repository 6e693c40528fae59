"""What measurements are told apart by: the operator, its tensors' shapes and dtypes, the phase."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from genie.device import Device
from genie.flops import nbytes, work
from genie.graph import Graph, Node, Ref, TensorSpec
from genie.graph.once import once
from genie.schedule.cost import Trait, class_of, classify, traits
from genie.timing import Operand, Timing, operand

_ARGUMENTS = 16  # more than any rule of genie.flops looks at
_LARGEST = (1 << 63) - 1


class Signature(NamedTuple):
    """As :class:`genie.timing.Timing` has them."""

    target: str
    phase: str
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]


PRODUCT, VIEW = "gemm", "view"
Family: TypeAlias = tuple[str, tuple[str, ...]]
"""What estimates may be carried over within: the operator and its tensors' dtypes; all products are one operator."""


def family(signature: Signature) -> Family:
    dtypes = [each.dtype for each in (*signature.operands, *signature.results)]
    # Of a list of tensors (cat, stack) it does not matter how many there are.
    different = tuple(dict.fromkeys(dtypes))
    operation = signature.target.partition(".")[0]
    return (PRODUCT if class_of(operation) == PRODUCT else signature.target), different


def signature_of(row: Timing) -> Signature:
    return Signature(row.target, row.phase, row.operands, row.results)


def trait_of(signature: Signature) -> Trait:
    """What a roofline asks of a measured operator. Its numbers are unknown: work that depends on them is not seen."""
    operation, _, overload = signature.target.partition(".")
    given = len(signature.operands)
    specs = [TensorSpec(each.shape, each.dtype) for each in (*signature.operands, *signature.results)]
    in_place = not signature.results and given > 0 and (operation.endswith("_") or overload == "out")
    args = (*map(Ref, range(given)), *[None] * max(_ARGUMENTS - given, 0))
    outputs = tuple(range(given, len(specs))) or (-1,)
    mutates = ((given - 1 if overload == "out" else 0),) if in_place else ()
    done = work(Node(0, operation, overload, args, outputs, mutates=mutates), specs, list(map(nbytes, specs)))
    flops, moved = done.flops or 0, done.read + done.written
    kind = classify(operation, flops, moved)
    if kind == VIEW:
        flops = moved = 0
    tells = (*signature.results, *signature.operands)
    return Trait(kind, tells[0].dtype if tells else "", min(flops, _LARGEST), min(moved, _LARGEST))


class Asked(NamedTuple):
    """A node's signature, its family, and what a roofline asks of it."""

    signature: Signature
    family: Family
    trait: Trait


class Questions(NamedTuple):
    """A graph's different nodes, and of each node (by its id) which of them it is."""

    asked: tuple[Asked, ...]
    numbers: dict[int, int]


@once
def questions(graph: Graph) -> Questions:
    """Of a verified graph."""
    known: dict[TensorSpec, Operand] = {}
    operands = []
    for spec in graph.values:
        its = known.get(spec)
        if its is None:
            its = known[spec] = operand(spec)
        operands.append(its)
    numbers: dict[int, int] = {}  # of each value, a number that equal operands share
    first: dict[int, int] = {}
    for value, each in enumerate(operands):
        numbers[value] = first.setdefault(id(each), value)
    asks = traits(graph)
    of_node: dict[int, int] = {}
    seen: dict[tuple[object, ...], int] = {}
    found: list[Asked] = []
    for node in graph.steps:
        phase = node.semantics.phase or "" if node.semantics is not None else ""
        made = [value for value in node.outputs if value >= 0]
        key = (
            node.operation,
            node.overload,
            phase,
            tuple([numbers[value] for value in node.operands()]),
            tuple([numbers[value] for value in made]),
            asks[node.id],
        )
        number = seen.get(key)
        if number is None:
            number = seen[key] = len(found)
            taken = tuple([operands[value] for value in node.operands()])
            signature = Signature(node.target, phase, taken, tuple([operands[value] for value in made]))
            found.append(Asked(signature, family(signature), asks[node.id]))
        of_node[node.id] = number
    return Questions(tuple(found), of_node)


def device_key(device: Device) -> str:
    """What identifies a device's hardware: measurements on one hold for the other where this is equal.

    Where the node does not tell (``Device.hardware``), it is the device of that name at that address.
    """
    if device.hardware:
        return f"{device.kind}: {device.hardware}"
    return f"{device.kind}: {device.id} at {device.address or 'this machine'}"


def dims(signature: Signature) -> tuple[int, ...]:
    """All sizes, in order."""
    return tuple([size for each in (*signature.operands, *signature.results) for size in each.shape])
