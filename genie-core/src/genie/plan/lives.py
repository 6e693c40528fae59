"""Lives of values: when each is used last, and which share memory that is written to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from genie.graph import Graph, Node
from genie.graph.once import once
from genie.graph.operands import operands
from genie.graph.regions import OPERATORS, Cond, form
from genie.graph.sizes import sizes


def liveness(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Per step, the values to forget after it: used there for the last time, or made there and never used.

    Outputs of the graph are never among them, and inputs only when donated.
    """
    last: dict[int, int] = {entry.value: 0 for entry in graph.inputs if entry.donated}
    for step, (node, taken) in enumerate(zip(graph.steps, operands(graph), strict=True)):
        for value in taken:
            if value in last:
                last[value] = step
        for value in node.outputs:
            if value >= 0:
                last[value] = step
    for value in graph.outputs:
        last.pop(value, None)
    releases: list[list[int]] = [[] for _ in graph.steps]
    if releases:
        for value, step in last.items():
            releases[step].append(value)
    return tuple(map(tuple, map(sorted, releases)))


@once
def room(graph: Graph) -> Mapping[int, int]:
    """Step → bytes that a region node needs while it runs, besides its operands and its results."""
    return {step: _room(node) for step, node in enumerate(graph.steps) if node.operation in OPERATORS}


def _room(node: Node) -> int:
    most = max(map(_inside, node.regions))
    # What a branch gives is what the node gives. A loop holds what is carried on besides what comes of it.
    call = form(node)
    if isinstance(call, Cond):
        given = [sum(sizes(branch)[value] for value in set(branch.outputs)) for branch in call.branches]
        most = max(_inside(branch) - gives for branch, gives in zip(call.branches, given, strict=True))
    return max(most, 0)


@once
def _inside(graph: Graph) -> int:
    """The most bytes that a region's nodes hold at once; values that share memory count once."""
    size, needs = sizes(graph), room(graph)
    root = list(range(len(size)))  # of each value, the first that shares its memory
    for node in graph.steps:
        for output, operand in node.aliases:
            if root[output] == output:
                root[output] = root[operand]
    sharers = Counter(root)
    theirs = {root[entry.value] for entry in graph.inputs}  # the node's operands: counted outside
    held = most = 0
    for step, (node, gone) in enumerate(zip(graph.steps, liveness(graph), strict=True)):
        held += sum(size[value] for value in node.outputs if value >= 0 and root[value] == value)
        most = max(most, held + needs.get(step, 0))
        for value in gone:
            sharers[root[value]] -= 1
            if not sharers[root[value]] and root[value] not in theirs:
                held -= size[root[value]]
    return most


def split_storage(graph: Graph, device: Sequence[int]) -> int | None:
    """A value whose memory is written to while nodes on two devices use it, given each step's device; or ``None``."""
    root: dict[int, int] = {}
    for node in graph.steps:
        for output, operand in node.aliases:
            root[output] = root.get(operand, operand)
    written = {root.get(value, value) for node in graph.steps for value in node.mutates}
    home: dict[int, int] = {}
    if written:
        for node, taken, place in zip(graph.steps, operands(graph), device, strict=True):
            for value in (*taken, *node.outputs):
                storage = root.get(value, value)
                if storage in written and home.setdefault(storage, place) != place:
                    return value
    return None
