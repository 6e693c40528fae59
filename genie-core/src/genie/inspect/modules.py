"""The modules of a graph as a tree, by the components of their paths, with what happens in and below each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import attrs

from genie.graph import Graph, Node, TensorSpec
from genie.plan import ExecutionPlan

# Deeper components stay together in one name.
MAX_DEPTH = 64
# Values with these residencies live from call to call: what a module keeps on its device.
KEPT = ("weight", "kv_cache", "recurrent_state")

_ORIGINS = {"parameter": "weight", "buffer": "weight", "input": "input"}


@attrs.define(eq=False)
class Branch:
    """A component of module paths. Parents come before their children; branch 0 is the whole graph."""

    index: int
    parent: int  # -1 of the root
    depth: int
    name: str
    path: str = ""
    type: str = ""
    own: list[int] = attrs.Factory(list)  # positions in graph.steps of the nodes of exactly this module
    children: list[int] = attrs.Factory(list)


@attrs.define(eq=False)
class Totals:
    """What a set of nodes adds up to."""

    nodes: int = 0
    flops: int = 0
    read: int = 0
    written: int = 0
    phases: Counter[str] = attrs.Factory(Counter)
    roles: Counter[str] = attrs.Factory(Counter)
    modalities: Counter[str] = attrs.Factory(Counter)
    kept: set[int] = attrs.Factory(set)

    def add(self, node: Node, keeps: frozenset[int]) -> None:
        self.nodes += 1
        its = node.semantics
        if its is not None:
            self.flops += its.flops or 0
            self.read += its.bytes_read or 0
            self.written += its.bytes_written or 0
            for counter, word in ((self.phases, its.phase), (self.roles, its.role), (self.modalities, its.modality)):
                if word is not None:
                    counter[word] += 1
        self.kept.update(value for value in (*node.operands(), *node.outputs) if value in keeps)

    def include(self, other: Totals) -> None:
        self.nodes += other.nodes
        self.flops += other.flops
        self.read += other.read
        self.written += other.written
        self.phases.update(other.phases)
        self.roles.update(other.roles)
        self.modalities.update(other.modalities)
        self.kept |= other.kept


def graph_of(shown: Graph | ExecutionPlan) -> Graph:
    return shown.graph if isinstance(shown, ExecutionPlan) else shown


def residency(graph: Graph, value: int, origins: dict[int, str]) -> str | None:
    """Where a value lives, as annotated; else as its origin says."""
    meaning = graph.meanings[value] if graph.meanings else None
    if meaning is not None and meaning.residency is not None:
        return meaning.residency
    return _ORIGINS.get(origins.get(value, ""))


def origins(graph: Graph) -> dict[int, str]:
    return {entry.value: entry.origin for entry in graph.inputs}


def calls(graph: Graph) -> list[int]:
    """The calls of the program's model that the graph tells apart."""
    return sorted({node.semantics.call for node in graph.steps if node.semantics and node.semantics.call is not None})


def branches(graph: Graph, by_call: bool = False) -> list[Branch]:
    """The tree, children in the order in which they first work; with ``by_call`` a tree for each call."""
    found = [Branch(0, -1, 0, "")]
    known: dict[tuple[int, str], int] = {}
    ends: dict[tuple[int | None, int], int] = {}  # (call, module) → branch
    types = {module.path: module.type for module in reversed(graph.modules)}

    def child(parent: int, name: str, path: str, type: str) -> int:
        index = known.get((parent, name))
        if index is None:
            index = known[parent, name] = len(found)
            found.append(Branch(index, parent, found[parent].depth + 1, name, path, type))
            found[parent].children.append(index)
        return index

    for position, node in enumerate(graph.steps):
        call = node.semantics.call if by_call and node.semantics is not None else None
        key = (call, node.module)
        if key not in ends:
            at = 0 if call is None else child(0, f"call {call}", "", "")
            path = graph.modules[node.module].path if node.module >= 0 else ""
            parts = path.split(".", MAX_DEPTH - 1) if path else []
            for number, part in enumerate(parts, 1):
                whole = ".".join(parts[:number])
                at = child(at, part, whole, types.get(whole, ""))
            if not path and node.module >= 0 and not found[at].type:
                found[at].type = graph.modules[node.module].type
            ends[key] = at
        found[ends[key]].own.append(position)
    return found


def totals(graph: Graph, tree: list[Branch]) -> list[Totals]:
    """By branch: what its nodes and all below it add up to."""
    entered = origins(graph)
    lasting = (*entered, *graph.outputs)
    keeps = frozenset(value for value in lasting if residency(graph, value, entered) in KEPT)
    sums = [Totals() for _ in tree]
    for branch in reversed(tree):
        mine = sums[branch.index]
        for position in branch.own:
            mine.add(graph.steps[position], keeps)
        if branch.parent >= 0:
            sums[branch.parent].include(mine)
    return sums


def nbytes(specs: Iterable[TensorSpec]) -> int:
    return sum(spec.nbytes for spec in specs)


def by_residency(graph: Graph, values: Iterable[int]) -> dict[str, list[int]]:
    """The values by residency; those of none known under ``unknown``."""
    entered = origins(graph)
    groups: dict[str, list[int]] = {}
    for value in values:
        groups.setdefault(residency(graph, value, entered) or "unknown", []).append(value)
    return groups


def common(counter: Counter[str], most: int) -> str:
    """The words, the most frequent first, and how many more there are."""
    ranked = sorted(counter, key=lambda word: (-counter[word], word))
    more = len(ranked) - most
    return ", ".join(ranked[:most]) + (f" +{more}" if more > 0 else "")


def si(number: float, unit: str = "") -> str:
    """``12.3 MB``: three digits are enough for people."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale * 0.9995:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:g} {unit}".rstrip()


def kept_text(graph: Graph, values: Iterable[int]) -> str:
    groups = by_residency(graph, sorted(values))
    return ", ".join(
        f"{name} {si(nbytes(graph.values[value] for value in groups[name]), 'B')}" for name in KEPT if name in groups
    )


def walk(tree: list[Branch]) -> Iterator[Branch]:
    """Depth first, from the root."""
    stack = [0]
    while stack:
        branch = tree[stack.pop()]
        yield branch
        stack.extend(reversed(branch.children))
