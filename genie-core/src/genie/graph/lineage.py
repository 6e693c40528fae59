"""Lineage: what becomes of values from call to call, read off the operators alone. No names, no classes.

* ``grown``: a value is concatenated with new data along one axis, and the result takes its place;
* ``written``: new data is written into it in place, into a part of it;
* ``replaced``: a value computed from it takes its place in the next call;
* ``kept``: it comes from an earlier call and is used again as it is.

Only floating-point and 8-bit (quantised) values that are no weights have a lineage: token ids and masks grow, too, and
mean nothing by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Literal, NamedTuple

from genie.graph.calls import calls, weights
from genie.graph.model import Graph, Many, Ref, TensorSpec
from genie.graph.once import once
from genie.graph.structure import Structure, structure

Kind = Literal["grown", "written", "replaced", "kept"]

_WRITES_PART = frozenset(("index_copy", "index_put", "_index_put_impl", "scatter", "masked_scatter", "index_fill"))
_PROJECTS = frozenset("linear addmm mm matmul bmm convolution".split())
_WRITES_ALL = frozenset(("copy", "add", "mul", "lerp", "sub", "addcmul"))
_RESERVES = frozenset(("zeros", "empty", "full", "new_zeros", "new_empty", "zeros_like", "empty_like"))
# The same as the first, where the result is a new value.
_COPIES_WITH = frozenset(("index_copy", "index_put", "slice_scatter", "select_scatter", "scatter"))


_Slot = tuple[str, int, int, int]  # operator, how many before it, weight, operand


class Lineage(NamedTuple):
    """What happens to a value from call to call. ``axis`` is the dimension it grows along or is written at, or -1."""

    kind: Kind
    axis: int
    versions: tuple[int, ...]  # values of the graph, in the order they were made


@once
def lineage(graph: Graph) -> dict[int, Lineage]:
    """Value → what becomes of it, for every version of every value that lives from call to call."""
    return _Tracer(graph, calls(graph)).lineages()


def lineage_since(graph: Graph, begins: int) -> dict[int, Lineage]:
    """The same, where at position ``begins`` a call is known to begin, whatever the weights say: a frontend knows where
    its program looked at results."""
    return _Tracer(graph, _split(graph, begins) if begins else calls(graph)).lineages()


def _count(shape: tuple[int, ...]) -> int:
    """Elements of a value."""
    return prod(shape)


def _split(graph: Graph, begins: int) -> list[int]:
    """The calls, one of which begins at a position; numbered in order again."""
    call, view = calls(graph), structure(graph)
    before = call[begins - 1]
    if not any(call[at] == before and view.names[at] in _PROJECTS for at in range(begins)):
        return call  # what came before only prepared this call
    rest = [at for at in range(begins, len(call)) if call[at] == before]
    if call[-1] > before and not any(view.names[at] in _PROJECTS for at in rest):
        # What is left of the call before only prepares the next.
        return [before + 1 if at >= begins and number == before else number for at, number in enumerate(call)]
    marked = [(number, at >= begins) for at, number in enumerate(call)]
    numbers = {key: number for number, key in enumerate(sorted(set(marked), key=lambda key: (key[1], key[0])))}
    return [numbers[key] for key in marked]


class _Tracer:
    def __init__(self, graph: Graph, call: list[int]) -> None:
        self.graph = graph
        self.view: Structure = structure(graph)
        self.call = call
        heavy = weights(graph)
        self.weight = weight = {self.view.storage[value] for value in heavy}
        self.floating = [
            spec.dtype.startswith(("float", "bfloat", "complex", "int8", "uint8"))
            and self.view.storage[value] not in weight
            for value, spec in enumerate(graph.values)
        ]
        self.state = {e.value for e in graph.inputs if e.origin in ("", "state", "input") and self.floating[e.value]}
        self.seen = {e.value: (e.lineage, e.axis) for e in graph.inputs if e.lineage}
        self.outputs = {self.view.storage[each] for each in graph.outputs}
        self.held = {*graph.outputs, *(self.view.source[each] for each in graph.outputs)}
        self.chain: dict[int, int] = {}  # value → its chain
        self.chains: list[tuple[Kind, int, list[int]]] = []

    def lineages(self) -> dict[int, Lineage]:
        for at, node in enumerate(self.view.steps):
            phase = node.semantics.phase if node.semantics is not None else None
            if phase == "optimizer":
                self._optimizes(at)
            if phase in ("backward", "optimizer"):
                continue
            name = self.view.names[at]
            if name == "cat":
                self._grow(at)
            elif node.mutates:
                for value in node.mutates:
                    self._write(at, value)
            elif name in _COPIES_WITH and node.outputs and node.outputs[0] >= 0:
                self._copied(at)
        self._kept_by_optimizers()
        self._replaced()
        self._kept()
        self._seen_before()
        return {
            value: Lineage(kind, axis, tuple(versions)) for kind, axis, versions in self.chains for value in versions
        }

    # --- kinds

    def _grow(self, at: int) -> None:
        view, node = self.view, self.view.steps[at]
        out = node.outputs[0]
        if out < 0 or not self.floating[out]:
            return
        shape = view.shape(out)
        operands = view.operands[at]
        if len(operands) < 2:
            return
        axis = node.args[1] if len(node.args) > 1 and type(node.args[1]) is int else 0
        axis = axis % len(shape) if shape else 0
        for value in operands:
            if _count(view.shape(value)) == 0:
                if self._stays(out) and view.shape(value) != shape:
                    self._link(value, out, "grown", axis)
                return
            whole, part = view.source[value], view.part[value]
            if any(view.part[other] == part for other in operands if other != value):
                continue  # pieces of one value, put together again
            for old in dict.fromkeys((value, whole, part)):
                if self._old(old, at) and len(view.shape(old)) == len(shape) and self._alike(old, out, axis):
                    number = self.chain.get(old, self.chain.get(part, -1))
                    windows = self._windows(out)
                    slides = any(view.shape(window) == view.shape(old) for window in windows)
                    grows = self._stays(out) or (number >= 0 and self.chains[number][0] == "grown")
                    if grows and not slides:
                        self._link(old, out, "grown", axis)
                    for window in windows:
                        self._link(old, window, "grown" if grows and not slides else "replaced", -1)
                    return

    def _windows(self, whole: int) -> list[int]:
        """Parts of a value that are there after its call: what came in has pushed out what is oldest."""
        return [
            value
            for at in self.view.users[whole]
            for value in self.view.steps[at].outputs
            if value >= 0 and self.view.part[value] == self.view.part[whole] != value and self._stays(value)
        ]

    def _optimizes(self, at: int) -> None:
        """What an optimizer keeps of each parameter: made or updated in a step, and there after it."""
        node = self.view.steps[at]
        for value in (*node.outputs, *node.mutates):
            root = self.view.storage[value] if value >= 0 else -1
            if root < 0 or not self.floating[root] or root in self.chain or not self.view.shape(root):
                continue
            maker = self.view.maker[root]
            made = self.view.steps[maker].semantics if maker >= 0 else None
            ours = made is not None and made.phase == "optimizer"
            if (ours and self._leaves(root)) or (maker < 0 and root in self.state):
                self._link(root, root, "replaced", -1)

    def _kept_by_optimizers(self) -> None:
        """What enters, and is used by an optimizer alone."""
        for value in self.state:
            uses = [self.view.steps[at].semantics for at in self.view.users[value]]
            theirs = bool(uses) and all(each is not None and each.phase == "optimizer" for each in uses)
            if theirs and value not in self.chain and self.view.shape(value):
                self._link(value, value, "replaced", -1)

    def _write(self, at: int, value: int) -> None:
        view = self.view
        root = view.storage[value]
        if not self.floating[root] or not (self._old(root, at) or self._leaves(root) or self._used_later(root, at)):
            return
        name = view.names[at]
        partly = name in _WRITES_PART or _count(view.shape(value)) < _count(view.shape(root))
        if partly and view.maker[root] >= 0 and not self._old(root, at) and not self._is_read(root):
            return  # a result, put together piece by piece
        if partly:
            self._link(root, root, "written", self._axis(at, value, root))
        elif name in _WRITES_ALL and root not in self.chain:
            reserved = name == "copy" and view.made_by(root) in _RESERVES  # memory made first and filled then
            if root in self.state or self._used_later(root, at) or reserved:
                self._link(root, root, "replaced", -1)

    def _is_read(self, root: int) -> bool:
        """Whether an operator that computes reads a value, or a view of it."""
        front = [root]
        while front:
            for at in self.view.users[front.pop()]:
                node = self.view.steps[at]
                views = [output for output, operand in node.aliases]
                written = [self.view.storage[value] for value in node.mutates]
                if not views and root not in written:
                    return True
                front += views
        return False

    def _copied(self, at: int) -> None:
        out, old = self.view.steps[at].outputs[0], self.view.source[self.view.operands[at][0]]
        if self.floating[out] and self._old(old, at) and self.view.shape(old) == self.view.shape(out):
            self._link(old, out, "written", self._axis(at, old, old))

    def _replaced(self) -> None:
        """A value made in one call that is used in the next where another was used in the call before."""
        if not self.call or self.call[-1] == self.call[0] == max(self.call):
            return
        by_slot: dict[_Slot, dict[int, int]] = {}
        for call, slot, value in self._slots():
            by_slot.setdefault(slot, {})[call] = value
        followers: dict[int, int] = {}
        for held in by_slot.values():
            for call, value in held.items():
                old = held.get(call - 1)
                if old is None or old == value or value in self.chain or self.view.shape(old) != self.view.shape(value):
                    continue
                if self._call_of(value) == call - 1:
                    followers.setdefault(old, value)
        reach = self._reach({(old, self._call_of(new)) for old, new in followers.items()})
        for old, new in followers.items():
            known = self.chain.get(old)
            free = known is None or self.chains[known][0] == "replaced"
            if free and new not in self.chain and reach(old, new):
                self._link(old, new, "replaced", -1)
        self._last_versions()

    def _last_versions(self) -> None:
        """The last call's version has no next call to be used in: it is made as the one before was."""
        if not any(kind == "replaced" and len(versions) > 1 for kind, _, versions in self.chains):
            return
        made: dict[tuple[int, str, int, int], int] = {}
        keys: dict[int, tuple[str, int, int]] = {}
        for at, ordinal in enumerate(self._ordinals()):
            for position, value in enumerate(self.view.steps[at].outputs):
                if value >= 0:
                    key = (self.view.names[at], ordinal, position)
                    made[(self.call[at], *key)] = value
                    keys[value] = key
        for number, (kind, _, versions) in enumerate(self.chains):
            if kind != "replaced" or len(versions) < 2 or versions[-1] not in keys:
                continue
            newest = versions[-1]
            after = made.get((self._call_of(newest) + 1, *keys[newest]))
            if after is not None and after not in self.chain and self.view.shape(after) == self.view.shape(newest):
                versions.append(after)
                self.chain[after] = number

    def _kept(self) -> None:
        """Values of earlier calls that stay; those that do not, and leave one of their kind behind, are replaced."""
        outputs = set(self.graph.outputs)
        carried: dict[int, int] = {}
        for value, uses in enumerate(self.view.users):
            if uses and self.floating[value] and value not in self.chain and self.view.storage[value] == value:
                made = self._call_of(value)
                if made >= 0 and self.view.maker[value] >= 0 and self.call[uses[-1]] > made:
                    carried[value] = value
        gone = {value: self.call[self.view.users[value][-1]] for value in carried if value not in outputs}
        self._follow(gone)
        for value in carried:
            if value not in self.chain:
                self._link(value, value, "kept", -1)

    def _kind_of(self, value: int) -> str:
        return self.chains[self.chain[value]][0]

    def _seen_before(self) -> None:
        """What the frontend saw of inputs in executions before this graph."""
        replaced: dict[int, int] = {}
        for value, (kind, axis) in self.seen.items():
            if value not in self.chain and self.floating[value]:
                self._link(value, value, kind, axis)
                uses = self.view.users[value]
                if kind == "replaced" and uses:
                    replaced[value] = self.call[uses[-1]]
        self._follow(replaced)

    def _follow(self, olds: dict[int, int]) -> None:
        """Each value that is gone after a call is replaced by the first result of that call that is of its shape,
        computed from it, and takes no other's place."""
        by_kind: dict[tuple[int, TensorSpec], list[int]] = {}
        for new in self._results():
            if self.floating[new] and new not in olds:
                by_kind.setdefault((self._call_of(new), self._spec(new)), []).append(new)
        reach = self._reach(set(olds.items()))
        for old, call in olds.items():
            for new in by_kind.get((call, self._spec(old)), ()):
                free = new not in self.chain or (old not in self.chain and self._kind_of(new) == "replaced")
                if free and reach(old, new):
                    self._link(old, new, "replaced", -1)
                    break

    def _spec(self, value: int) -> TensorSpec:
        spec = self.graph.values[value]
        return TensorSpec(spec.shape, spec.dtype)

    def _results(self) -> list[int]:
        """What the graph leaves, in the order it is made; no estimates, from which a program makes the next version."""
        found = [each for each in self.graph.outputs if self.view.made_by(self.view.source[each]) not in _PROJECTS]
        return sorted(found, key=lambda each: self.view.maker[each])

    # --- questions

    def _call_of(self, value: int) -> int:
        """The call that made a value; -1 for what enters."""
        maker = self.view.maker[value]
        return self.call[maker] if maker >= 0 else -1

    def _old(self, value: int, at: int) -> bool:
        """Whether a value was there before the call that node ``at`` belongs to."""
        if not self.floating[value]:
            return False
        if self.view.maker[value] < 0:
            return value in self.state
        return self._call_of(value) < self.call[at]

    def _leaves(self, value: int) -> bool:
        return self.view.storage[value] in self.outputs or self._used_later(value, self.view.maker[value])

    def _stays(self, value: int) -> bool:
        """Whether the value itself is there after its call, not only some of its memory."""
        if value in self.held:
            return True
        call = self._call_of(value)
        return any(self.call[at] > call for at in self.view.users[value][-1:])

    def _used_later(self, value: int, at: int) -> bool:
        uses = self.view.users[value]
        return bool(uses) and at >= 0 and self.call[uses[-1]] > self.call[at]

    def _alike(self, old: int, new: int, axis: int) -> bool:
        before, after = self.view.shape(old), self.view.shape(new)
        return all(a == b or i == axis for i, (a, b) in enumerate(zip(before, after, strict=True)))

    def _axis(self, at: int, value: int, root: int) -> int:
        node = self.view.steps[at]
        name = self.view.names[at]
        if name in ("index_copy", "scatter", "index_fill") and len(node.args) > 1 and type(node.args[1]) is int:
            return node.args[1] % max(len(self.view.shape(value)), 1)
        if name in ("index_put", "_index_put_impl") and len(node.args) > 1 and isinstance(node.args[1], Many):
            return next((i for i, each in enumerate(node.args[1].items) if isinstance(each, Ref)), -1)
        before, part = self.view.shape(root), self.view.shape(value)
        if len(before) == len(part):
            return next((i for i, (a, b) in enumerate(zip(before, part, strict=True)) if a != b), -1)
        while value != root and self.view.maker[value] >= 0:
            node = self.view.steps[self.view.maker[value]]
            of = self.view.operands[self.view.maker[value]][0]
            smaller = self.view.shape(of) == before and _count(self.view.shape(value)) < _count(before)
            if smaller and len(node.args) > 1 and type(node.args[1]) is int:
                return node.args[1] % max(len(before), 1)
            value = of
        return -1

    # --- chains

    def _link(self, old: int, new: int, kind: Kind, axis: int) -> None:
        number = self.chain.get(old, self.chain.get(self.view.part[old]))
        if number is None:
            number = self.chain.get(new)
        if number is None:
            number = len(self.chains)
            self.chains.append((kind, axis, []))
        versions = self.chains[number][2]
        for value in (old, new):
            if value not in self.chain and _count(self.view.shape(value)):
                self.chain[value] = number
                versions.append(value)

    # --- passes

    def _ordinals(self) -> Iterator[int]:
        """By position: how many nodes of the same operator came before in the same call."""
        counts: dict[tuple[int, str], int] = {}
        for at, name in enumerate(self.view.names):
            key = (self.call[at], name)
            counts[key] = ordinal = counts.get(key, -1) + 1
            yield ordinal

    def _slots(self) -> Iterator[tuple[int, _Slot, int]]:
        """(call, where in the call, value) for every use of a floating-point value made in another call or given. A
        place is told by the weight used there; without one, only among calls with as many nodes of that operator."""
        # Masks and positions are prepared by as many operators as it takes: only those on numbers are counted.
        counted = [any(self.floating[value] for value in operands) for operands in self.view.operands]
        many: dict[tuple[int, str], int] = {}
        ordinals: list[int] = []
        for at, name in enumerate(self.view.names):
            key = (self.call[at], name)
            ordinals.append(many.get(key, 0))
            if counted[at]:
                many[key] = many.get(key, 0) + 1
        for at, name in enumerate(self.view.names):
            if not counted[at]:
                continue
            operands, call = self.view.operands[at], self.call[at]
            weight = next((self.view.storage[each] for each in operands if self.view.storage[each] in self.weight), -1)
            place = (name, ordinals[at], weight if weight >= 0 else -1 - many[call, name])
            for position, value in enumerate(operands):
                if not self.floating[value]:
                    continue
                maker = self.view.maker[value]
                made = self.call[maker] if maker >= 0 else -1
                # A state's first version may be made in the first call, from nothing.
                if made < call or (call == 0 and not self.view.operands[maker]):
                    yield call, (*place, position), value

    def _reach(self, olds: set[tuple[int, int]]) -> Callable[[int, int], bool]:
        """Whether the second value is computed from the first, within the call that is told with it. Bits are counted
        anew in every call, so that time and memory grow with the nodes alone."""
        bit: dict[tuple[int, int], int] = {}
        counts: dict[int, int] = {}
        for old, call in sorted(olds):
            bit[old, call] = 1 << counts.get(call, 0)
            counts[call] = counts.get(call, 0) + 1
        reach: dict[int, int] = {}  # of values made or written in their call
        if bit:
            for at, node in enumerate(self.view.steps):
                call, bits = self.call[at], 0
                if call not in counts:
                    continue
                for value in self.view.operands[at]:
                    bits |= bit.get((value, call), 0)
                    if self._call_of(value) == call:
                        bits |= reach.get(value, 0)
                if bits:
                    for value in (*node.outputs, *node.mutates):
                        if value >= 0:
                            reach[value] = reach.get(value, 0) | bits

        def computed(old: int, new: int) -> bool:
            return bool(bit.get((old, self._call_of(new)), 0) & reach.get(new, 0))

        return computed
