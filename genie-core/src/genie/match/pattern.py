"""Patterns as values: which operators, fed by which, and what to call them.

A pattern is a tree of operators read from the result upwards. Views, copies, casts and dropout between them are looked
through. A table of rules is a :class:`genie.interfaces.PatternMatcher`::

    from genie.match import Rule, Table, linear, op

    TABLE = Table("mine", [
        Rule("gated MLP", linear(op("mul", op("silu", linear(as_="gate")), linear(as_="up")), as_="down"),
             {"gate": {"role": "mlp_gate"}, "up": {"role": "mlp_up"}, "down": {"role": "mlp_down"}}),
    ])

Rules are tried in order, and what an earlier rule says of a node stands. Each costs time in proportion to the nodes
with its outermost operator.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from genie.graph import Evidence, Graph, Node
from genie.graph.structure import Structure, structure

LINEAR = "linear addmm mm matmul baddbmm _addmm_activation"
ACTIVATION = "relu gelu silu sigmoid tanh hardswish leaky_relu elu mish softplus relu6 hardtanh clamp_min quick_gelu"
_COMMUTE = frozenset(("add", "mul", "maximum", "minimum", "logical_and", "logical_or"))
_FIRST_OPERAND = {"addmm": 1, "baddbmm": 1, "_addmm_activation": 1}  # after the bias

Where: TypeAlias = Callable[[Structure, int], bool]
Labels: TypeAlias = Mapping[str, Any]


class Op:
    """One of ``names``, whose first operands match ``operands`` (``None`` matches anything)."""

    __slots__ = ("as_", "module", "names", "operands", "where")

    def __init__(
        self, names: str, operands: Sequence[Op | None], as_: str, where: Where | None, module: str = ""
    ) -> None:
        self.names = frozenset(names.split())
        self.operands = tuple(operands)
        self.as_ = as_
        self.where = where
        self.module = re.compile(module) if module else None

    def match(self, view: Structure, at: int, bound: dict[str, int], all_: list[int]) -> bool:
        """Whether the node at ``at`` is the root of this pattern; ``bound`` and ``all_`` get the positions."""
        name = view.names[at]
        if name not in self.names:
            return False
        if self.operands and not self._operands(view, at, name, bound, all_):
            return False
        if self.where is not None and not self.where(view, at):
            return False
        if self.module is not None and not self._in_module(view, at):
            return False
        all_.append(at)
        if self.as_:
            bound[self.as_] = at
        return True

    def _in_module(self, view: Structure, at: int) -> bool:
        node = view.steps[at]
        if node.module < 0 or self.module is None:
            return False
        module = view.graph.modules[node.module]
        return self.module.search(f"{module.path} ({module.type})") is not None

    def _operands(self, view: Structure, at: int, name: str, bound: dict[str, int], all_: list[int]) -> bool:
        given = view.operands[at]
        if name in _FIRST_OPERAND:
            given = given[_FIRST_OPERAND[name] :]
        if len(given) < len(self.operands):
            return False
        # What a failed attempt bound is bound again by one that succeeds: both bind every name below.
        before = len(all_)
        if self._in_order(view, given, bound, all_):
            return True
        del all_[before:]
        return name in _COMMUTE and len(given) == 2 and self._in_order(view, given[::-1], bound, all_)

    def _in_order(self, view: Structure, given: Sequence[int], bound: dict[str, int], all_: list[int]) -> bool:
        maker, names = view.maker, view.names
        for wanted, value in zip(self.operands, given, strict=False):
            if wanted is None:
                continue
            at = maker[value]
            if at < 0 or names[at] not in wanted.names:  # a view may be what is asked for
                at = maker[view.source[value]]
                if at < 0 or names[at] not in wanted.names:
                    at = wanted._written_by(view, value)
                    if at < 0:
                        return False
            if not wanted.match(view, at, bound, all_):
                return False
        return True

    def _written_by(self, view: Structure, value: int) -> int:
        """The latest node that writes to a value in place, if it is one that is asked for."""
        writers = view.writes.get(view.storage[value], ())
        return writers[-1] if writers and view.names[writers[-1]] in self.names else -1


def op(names: str, *operands: Op | None, as_: str = "", where: Where | None = None, module: str = "") -> Op:
    """A node of one of the operators named (without ``aten::``, in place or not), fed by ``operands``. ``module`` is a
    regular expression to be found in ``path (Class)`` of the node's module."""
    return Op(names, operands, as_, where, module)


def linear(*operands: Op | None, as_: str = "", where: Where | None = None, module: str = "") -> Op:
    """A product with a matrix, however it is written."""
    return Op(LINEAR, operands, as_, where, module)


def activation(*operands: Op | None, as_: str = "") -> Op:
    """An elementwise nonlinearity."""
    return Op(ACTIVATION, operands, as_, None)


class Match(tuple[Node, ...]):
    """Nodes that mean one thing, with the labels to give each of them."""

    labels: Labels

    def __new__(cls, nodes: Iterable[Node], labels: Labels) -> Match:
        self = super().__new__(cls, nodes)
        self.labels = labels
        return self


class Finder:
    """A pattern in code: subclasses yield :class:`Match` from :meth:`find`."""

    name = ""
    specificity = 0

    def find(self, view: Structure) -> Iterator[Match]:
        """The matches in a graph."""
        raise AttributeError(f"the pattern {self.name!r} has no find()")

    def match(self, graph: Graph) -> Sequence[Match]:
        return list(self.find(structure(graph)))

    def annotate(self, nodes: Sequence[Node]) -> Mapping[int, Labels]:
        labels = nodes.labels if isinstance(nodes, Match) else {}
        return dict.fromkeys([node.id for node in nodes], labels)


class Rule:
    """``pattern`` and the labels of its parts, by the names they are bound to; ``""`` stands for all the others."""

    __slots__ = ("confidence", "labels", "name", "pattern", "when")

    def __init__(
        self,
        name: str,
        pattern: Op,
        labels: Mapping[str, Labels],
        *,
        confidence: float = 0.9,
        when: Callable[[Structure, Mapping[str, int]], bool] | None = None,
    ) -> None:
        self.name, self.pattern, self.when, self.confidence = name, pattern, when, confidence
        self.labels = {
            part: {
                **said,
                "evidence": tuple(Evidence(label, "structure", name, confidence) for label in said),
            }
            for part, said in labels.items()
        }


class Table(Finder):
    """Rules in order."""

    def __init__(self, name: str, rules: Sequence[Rule], specificity: int = 0) -> None:
        self.name = name
        self.specificity = specificity
        self.rules = tuple(rules)

    def find(self, view: Structure) -> Iterator[Match]:
        taken = bytearray(len(view.steps))
        for rule in self.rules:
            labels, rest = rule.labels, rule.labels.get("")
            for name in rule.pattern.names & view.by_name.keys():
                for at in view.by_name[name]:
                    if taken[at]:
                        continue
                    bound: dict[str, int] = {}
                    everything: list[int] = []
                    if not rule.pattern.match(view, at, bound, everything):
                        continue
                    if rule.when is not None and not rule.when(view, bound):
                        continue
                    named = set()
                    for part, position in bound.items():
                        said = labels.get(part)
                        if said is not None and not taken[position]:
                            taken[position] = 1
                            yield Match((view.steps[position],), said)
                        named.add(position)
                    if rest is not None:
                        others = [each for each in everything if each not in named and not taken[each]]
                        for each in others:
                            taken[each] = 1
                        if others:
                            yield Match([view.steps[each] for each in others], rest)
