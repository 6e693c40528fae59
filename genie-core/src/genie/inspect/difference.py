"""Two graphs or plans beside each other: what one has and the other has not, and what changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from genie.graph import (
    Arg,
    Graph,
    Input,
    Many,
    Node,
    Ref,
    ScalarTensor,
    Semantics,
    ValueSemantics,
    node_text,
    printable,
    spec_text,
    verify,
)
from genie.inspect.alignment import align
from genie.inspect.modules import graph_of
from genie.plan import ExecutionPlan

Fields = tuple[tuple[str, str, str], ...]


class Lone(msgspec.Struct, frozen=True):
    """A node or an input that one side alone has. ``id`` is a node's id or an input's value, there."""

    kind: str  # "node", "input"
    id: int
    line: str


class Change(msgspec.Struct, frozen=True):
    """What both sides have, not quite the same. ``fields`` are (what, before, after)."""

    kind: str  # "node", "input", "graph"
    before: int
    after: int
    line: str
    fields: Fields


class Difference(msgspec.Struct, frozen=True):
    """What :func:`compare` found; false when it found nothing."""

    removed: tuple[Lone, ...]
    added: tuple[Lone, ...]
    changed: tuple[Change, ...]
    same: int  # nodes that are equal

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.changed)

    def text(self) -> str:
        """All of it, a line for each thing and one for each of its changes."""
        return "".join(f"{line}\n" for line in self.lines())

    def lines(self) -> Iterator[str]:
        """Those of :meth:`text`; the first character says what a line is about: ``-``, ``+``, ``~`` or a space."""
        for change in (each for each in self.changed if each.kind != "node"):
            yield from _change_lines(change)
        yield from (f"{sign} {lone.line}" for sign, lone in self._lone("input"))
        yield from (f"{sign} {lone.line}" for sign, lone in self._lone("node"))
        for change in (each for each in self.changed if each.kind == "node"):
            yield from _change_lines(change)
        yield self.summary()

    def summary(self) -> str:
        if not self:
            return f"equal: {self.same:,} nodes"
        count = Counter(lone.kind for lone in self.added), Counter(lone.kind for lone in self.removed)
        changed = Counter(change.kind for change in self.changed)
        parts = [
            f"{number[kind]:,} {kind}{'s' if number[kind] != 1 else ''} {what}"
            for kind in ("input", "node")
            for number, what in ((count[1], "removed"), (count[0], "added"), (changed, "changed"))
            if number[kind]
        ]
        parts += ["the graph itself changed"] if changed["graph"] else []
        return f"different: {', '.join(parts)}; {self.same:,} nodes equal"

    def _lone(self, kind: str) -> Iterator[tuple[str, Lone]]:
        yield from (("-", lone) for lone in self.removed if lone.kind == kind)
        yield from (("+", lone) for lone in self.added if lone.kind == kind)

    def __str__(self) -> str:
        return self.text()


def _change_lines(change: Change) -> Iterator[str]:
    yield f"~ {change.line}"
    for name, before, after in change.fields:
        yield f"    {name}: {before or 'none'} → {after or 'none'}"


def compare(a: Graph | ExecutionPlan, b: Graph | ExecutionPlan) -> Difference:
    """What is different in ``b``.

    Nodes are aligned by the path of their module and their operator, in order. Aligned nodes are compared by what they
    are given and what they make, by labels and evidence, and by device where both sides are plans. Numbers of nodes
    and values, lines of source, and names of graphs don't count.
    """
    one, two = graph_of(a), graph_of(b)
    verify(one)
    verify(two)
    return _Comparison(one, two, _placement(a), _placement(b)).result()


def _placement(shown: Graph | ExecutionPlan) -> Mapping[int, str]:
    return shown.placement if isinstance(shown, ExecutionPlan) else {}


class _Comparison:
    def __init__(self, a: Graph, b: Graph, placed_a: Mapping[int, str], placed_b: Mapping[int, str]) -> None:
        self.a, self.b = a, b
        self.placed_a, self.placed_b = placed_a, placed_b
        self.counterpart: dict[int, int] = {}  # value of a → value of b
        self.inputs = _input_pairs(a, b)
        self.counterpart.update((before.value, after.value) for before, after in self.inputs)
        self.nodes = self._node_pairs()
        for i, j in self.nodes:
            self.counterpart.update(
                (v, w) for v, w in zip(a.steps[i].outputs, b.steps[j].outputs, strict=False) if v >= 0 and w >= 0
            )

    def result(self) -> Difference:
        removed, added = self._lone()
        changed = [*self._graph_change(), *self._input_changes()]
        same = 0
        for i, j in self.nodes:
            fields = tuple(self._node_fields(i, j))
            if fields:
                before, after = self.a.steps[i], self.b.steps[j]
                changed.append(Change("node", before.id, after.id, _line(after, self.b), fields))
            else:
                same += 1
        return Difference(removed, added, tuple(changed), same)

    def _node_pairs(self) -> list[tuple[int, int]]:
        keys_a, keys_b = _keys(self.a), _keys(self.b)
        pairs: list[tuple[int, int]] = []
        at_a = at_b = 0
        for i, j in (*align(keys_a, keys_b), (len(keys_a), len(keys_b))):
            # What stands between two pairs, one for one in the same modules: another operator at the same place.
            between_a, between_b = range(at_a, i), range(at_b, j)
            if len(between_a) == len(between_b) and all(
                keys_a[x][0] == keys_b[y][0] for x, y in zip(between_a, between_b, strict=True)
            ):
                pairs += zip(between_a, between_b, strict=True)
            pairs.append((i, j))
            at_a, at_b = i + 1, j + 1
        return pairs[:-1]

    def _lone(self) -> tuple[tuple[Lone, ...], tuple[Lone, ...]]:
        sides = []
        for graph, inputs, nodes in (
            (self.a, {before.value for before, _ in self.inputs}, {i for i, _ in self.nodes}),
            (self.b, {after.value for _, after in self.inputs}, {j for _, j in self.nodes}),
        ):
            lone = [
                Lone("input", entry.value, _input_line(entry, graph))
                for entry in graph.inputs
                if entry.value not in inputs
            ]
            lone += [Lone("node", s.id, _line(s, graph)) for i, s in enumerate(graph.steps) if i not in nodes]
            sides.append(tuple(lone))
        return sides[0], sides[1]

    def _graph_change(self) -> Iterator[Change]:
        fields: list[tuple[str, str, str]] = []
        if self.a.backend_type != self.b.backend_type:
            fields.append(("captured as", self.a.backend_type, self.b.backend_type))
        if [self.counterpart.get(value) for value in self.a.outputs] != list(self.b.outputs):
            fields.append(("outputs", _values(self.a.outputs), _values(self.b.outputs)))
        if fields:
            yield Change("graph", -1, -1, "graph", tuple(fields))

    def _input_changes(self) -> Iterator[Change]:
        for before, after in self.inputs:
            fields = [
                (name, str(getattr(before, name)), str(getattr(after, name)))
                for name in ("name", "origin", "donated", "lineage", "axis")
                if getattr(before, name) != getattr(after, name)
            ]
            fields = [(name, printable(x), printable(y)) for name, x, y in fields]
            fields += self._value_fields(before.value, after.value, "")
            if fields:
                yield Change("input", before.value, after.value, _input_line(after, self.b), tuple(fields))

    def _node_fields(self, i: int, j: int) -> Iterator[tuple[str, str, str]]:
        before, after = self.a.steps[i], self.b.steps[j]
        if before.target != after.target:
            yield "operator", before.target, after.target
        if not self._same(before.args, after.args):
            yield "arguments", _args_text(before, self.a), _args_text(after, self.b)
        for name in ("mutates", "aliases"):
            if not self._same_values(getattr(before, name), getattr(after, name)):
                yield name, str(getattr(before, name)), str(getattr(after, name))
        if [v < 0 for v in before.outputs] != [w < 0 for w in after.outputs]:
            yield "makes", _values(before.outputs), _values(after.outputs)
        elif before.outputs:
            for number, (v, w) in enumerate(zip(before.outputs, after.outputs, strict=True)):
                if v >= 0:
                    yield from self._value_fields(v, w, f"output {number} " if len(before.outputs) > 1 else "")
        yield from _label_fields(before.semantics, after.semantics, Semantics)
        placed = self.placed_a.get(before.id), self.placed_b.get(after.id)
        if None not in placed and placed[0] != placed[1]:
            yield "device", str(placed[0]), str(placed[1])

    def _value_fields(self, v: int, w: int, which: str) -> Iterator[tuple[str, str, str]]:
        if self.a.values[v] != self.b.values[w]:
            yield f"{which}shape", spec_text(self.a.values[v]), spec_text(self.b.values[w])
        meaning_a = self.a.meanings[v] if self.a.meanings else None
        meaning_b = self.b.meanings[w] if self.b.meanings else None
        for name, x, y in _label_fields(meaning_a, meaning_b, ValueSemantics):
            yield f"{which}value's {name}", x, y

    def _there(self, item: int | tuple[int, ...]) -> object:
        return tuple(map(self._there, item)) if isinstance(item, tuple) else self.counterpart.get(item)

    def _same_values(self, a: Sequence[int | tuple[int, ...]], b: Sequence[int | tuple[int, ...]]) -> bool:
        return [self._there(item) for item in a] == list(b)

    def _same(self, a: Sequence[Arg], b: Sequence[Arg]) -> bool:
        if len(a) != len(b):
            return False
        for x, y in zip(a, b, strict=True):
            if type(x) is not type(y):
                return False
            if isinstance(x, Ref) and isinstance(y, Ref):
                if self.counterpart.get(x.value) != y.value:
                    return False
            elif isinstance(x, Many) and isinstance(y, Many):
                if not self._same(x.items, y.items):
                    return False
            elif isinstance(x, ScalarTensor | float):
                if repr(x) != repr(y):  # not-a-number is itself
                    return False
            elif x != y:
                return False
        return True


def _keys(graph: Graph) -> list[tuple[str, str]]:
    paths = [module.path for module in graph.modules]
    return [(paths[node.module] if node.module >= 0 else "", node.target) for node in graph.steps]


def _input_pairs(a: Graph, b: Graph) -> list[tuple[Input, Input]]:
    """Inputs by name; those without one by kind, in order."""

    def keys(graph: Graph) -> dict[tuple[str, ...], Input]:
        seen: Counter[tuple[str, ...]] = Counter()
        found = {}
        for entry in graph.inputs:
            key = ("name", entry.name) if entry.name else ("kind", entry.origin, graph.values[entry.value].dtype)
            found[(*key, str(seen[key]))] = entry
            seen[key] += 1
        return found

    others = keys(b)
    return [(entry, others[key]) for key, entry in keys(a).items() if key in others]


def _label_fields(
    before: Semantics | ValueSemantics | None,
    after: Semantics | ValueSemantics | None,
    kind: type[Semantics] | type[ValueSemantics],
) -> Iterator[tuple[str, str, str]]:
    if before == after:
        return
    nothing = kind()
    for field in kind.__struct_fields__:
        x, y = getattr(before or nothing, field), getattr(after or nothing, field)
        if x != y:
            yield field, _label_text(x), _label_text(y)


def _label_text(label: object) -> str:
    if isinstance(label, tuple):
        return printable("; ".join(f"{each.label}: {each.source}: {each.reason}" for each in label))
    return "" if label is None else printable(str(label))


def _line(node: Node, graph: Graph) -> str:
    return node_text(msgspec.structs.replace(node, source=-1), graph)


def _args_text(node: Node, graph: Graph) -> str:
    bare = Node(node.id, node.operation, node.overload, node.args, ())
    return node_text(bare, graph).partition("(")[2].rpartition(")")[0]


def _input_line(entry: Input, graph: Graph) -> str:
    words = (f"input %{entry.value}", spec_text(graph.values[entry.value]), entry.origin, printable(entry.name))
    return " ".join(word for word in words if word)


def _values(values: Sequence[int]) -> str:
    return ", ".join(f"%{value}" if value >= 0 else "_" for value in values)
