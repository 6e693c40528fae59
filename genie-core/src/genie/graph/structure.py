"""A graph seen as data flow: who makes a value, who uses it, what it is a view or a copy of. Built once per graph,
in time linear in its size, and shared by all that read it."""

from __future__ import annotations

from collections.abc import Sequence

from genie.graph.model import Graph, Many, Node, Ref, refs
from genie.graph.once import once

# Operators whose first output has the very elements of their first operand, in another order, shape or dtype.
SAME = frozenset(
    """view _unsafe_view reshape _reshape_alias transpose t permute swapaxes unsqueeze squeeze flatten unflatten
    expand expand_as repeat_interleave clone contiguous _to_copy to detach alias lift_fresh view_as movedim
    dropout native_dropout mT _conj resolve_conj resolve_neg set_ as_strided""".split()
)
# … some of the elements of their first operand.
PARTS = frozenset("slice select split split_with_sizes unsafe_split chunk unbind narrow index_select index".split())


def short(operation: str) -> str:
    """``aten::add_`` → ``add``: the name, whether in place or not; with its namespace if that is not PyTorch's."""
    namespace, _, name = operation.partition("::")
    if namespace not in ("aten", "prims"):
        return operation  # another's add is no add
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


class Structure:
    """Lists by position in ``graph.steps`` (*at*) or by value. Read-only to everybody."""

    def __init__(self, graph: Graph) -> None:
        count = len(graph.values)
        self.graph = graph
        self.steps: Sequence[Node] = graph.steps
        self.names: list[str] = []  # short operator name, by position
        self.operands: list[tuple[int, ...]] = []  # values taken, by position, in order
        self.maker: list[int] = [-1] * count  # position of the node that makes a value; -1: an input
        self.users: list[list[int]] = [[] for _ in range(count)]  # positions, in order, by value
        self.storage: list[int] = list(range(count))  # the first value with the same memory
        self.source: list[int] = list(range(count))  # the value it is a reordered, reshaped or cast copy of
        self.part: list[int] = list(range(count))  # … or a part of
        self.by_name: dict[str, list[int]] = {}
        self.writes: dict[int, list[int]] = {}  # storage → positions that write to it in place
        self._build()

    def _build(self) -> None:
        short_of: dict[str, str] = {}
        maker, users, storage, source, part = self.maker, self.users, self.storage, self.source, self.part
        names, all_operands, by_name, writes = self.names, self.operands, self.by_name, self.writes
        for at, node in enumerate(self.steps):
            name = short_of.get(node.operation)
            if name is None:
                name = short_of[node.operation] = short(node.operation)
            names.append(name)
            found = by_name.get(name)
            if found is None:
                by_name[name] = [at]
            else:
                found.append(at)
            taken: list[int] = []
            for arg in node.args:
                if type(arg) is Ref:
                    taken.append(arg.value)
                elif type(arg) is Many:
                    taken.extend(refs(arg.items))
            operands = tuple(taken)
            all_operands.append(operands)
            for value in operands:
                uses = users[value]
                if not uses or uses[-1] != at:
                    uses.append(at)
            outputs = node.outputs
            for value in outputs:
                if value >= 0:
                    maker[value] = at
            for output, operand in node.aliases:
                storage[output] = storage[operand]
            if node.mutates:
                for value in node.mutates:
                    writes.setdefault(storage[value], []).append(at)
            elif operands and outputs and outputs[0] >= 0:
                if name in SAME:
                    source[outputs[0]] = source[operands[0]]
                    part[outputs[0]] = part[operands[0]]
                elif name in PARTS:
                    for value in outputs:
                        if value >= 0:
                            part[value] = part[operands[0]]

    def made_by(self, value: int) -> str:
        """The short name of the operator that makes a value; ``""`` for an input."""
        at = self.maker[value]
        return self.names[at] if at >= 0 else ""

    def shape(self, value: int) -> tuple[int, ...]:
        return self.graph.values[value].shape

    def dtype(self, value: int) -> str:
        return self.graph.values[value].dtype


@once
def structure(graph: Graph) -> Structure:
    """The graph's structure."""
    return Structure(graph)
