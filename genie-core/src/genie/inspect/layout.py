"""Where things go in the picture: boxes in boxes, and in each box rows by depth of the data flow.

A *unit* is an operator, an input that is drawn, or a box. Every unit gets a row and a place in it among what shares its
box; sizes, and so the rest of the geometry, depend on which boxes are open and are the page's to compute. All of it is
linear in units and edges, times the depth of boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from genie.graph import Graph
from genie.inspect.modules import Branch, branches, calls


@attrs.define(eq=False)
class Box:
    """A module, or a call of the program's model, as drawn. Parents come before children; box 0 is the whole."""

    parent: int
    depth: int
    name: str
    path: str
    type: str


@attrs.frozen(eq=False)
class Layout:
    """Units are numbered: operators by their position, then the drawn inputs, then boxes."""

    boxes: tuple[Box, ...]
    called: tuple[str, ...]  # by operator: the name of its module, where that has no box
    drawn: tuple[int, ...]  # values, in the order of their units
    parent: tuple[int, ...]  # by unit: its box; -1 of box 0
    row: tuple[int, ...]
    column: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]  # between units that are no boxes

    @property
    def first_box(self) -> int:
        return len(self.parent) - len(self.boxes)


def layout(graph: Graph, drawn: Sequence[int]) -> Layout:
    """``drawn`` are input values to show as units of their own; those that no operator uses are left out."""
    boxes, place, called = _boxes(graph)
    steps = len(graph.steps)
    users: dict[int, list[int]] = {value: [] for value in drawn}
    position = {node.id: number for number, node in enumerate(graph.steps)}
    edges = []
    for number, node in enumerate(graph.nodes()):
        edges += [(position[source], number) for source in node.inputs]
        for value in dict.fromkeys(node.operands()):
            if value in users:
                users[value].append(number)
    shown = [value for value in drawn if users[value]]
    for unit, value in enumerate(shown, steps):
        edges += [(unit, number) for number in users[value]]

    first_box = steps + len(shown)
    parent = [*place, *(place[users[value][0]] for value in shown), *(box.parent for box in boxes)]
    begin = [2 * number + 1 for number in range(steps)] + [2 * users[value][0] for value in shown]
    begin += [2 * steps + 2] * len(boxes)
    for unit in range(first_box):
        box = parent[unit]
        while box >= 0 and begin[first_box + box] > begin[unit]:
            begin[first_box + box] = begin[unit]
            box = boxes[box].parent

    before, after = _siblings(edges, parent, boxes, begin, first_box)
    row = _rows(parent, begin, before, after)
    column = _columns(parent, begin, row, before)
    return Layout(tuple(boxes), tuple(called), tuple(shown), tuple(parent), tuple(row), tuple(column), tuple(edges))


def _boxes(graph: Graph) -> tuple[list[Box], list[int], list[str]]:
    """The boxes; by step the box it is in; by step the name of its module where that is no box.

    A component that only holds others gives its name to them, and a module of one operator gives it to that.
    """
    tree = branches(graph, by_call=len(calls(graph)) > 1)
    boxes: list[Box] = []
    of: dict[int, int] = {}
    place = [0] * len(graph.steps)
    called = [""] * len(graph.steps)
    for branch in tree:
        if branch.index == 0:
            of[0], name = 0, graph.name or "graph"
            boxes.append(Box(-1, 0, name, "", branch.type))
        elif _holds_only(branch):
            of[branch.index] = of[branch.parent]
        elif branch.path and len(branch.own) == 1 and not branch.children:
            of[branch.index] = of[branch.parent]
            called[branch.own[0]] = _name(tree, branch)
        else:
            inside = of[branch.parent]
            of[branch.index] = len(boxes)
            boxes.append(Box(inside, boxes[inside].depth + 1, _name(tree, branch), branch.path, branch.type))
        for position in branch.own:
            place[position] = of[branch.index]
    return boxes, place, called


def _holds_only(branch: Branch) -> bool:
    """A list of modules, and a module that does nothing but call the one inside: no box of their own."""
    return not branch.own and bool(branch.path) and (not branch.type or len(branch.children) == 1)


def _name(tree: list[Branch], branch: Branch) -> str:
    names = [branch.name]
    above = tree[branch.parent]
    while above.index and _holds_only(above):
        names.append(above.name)
        above = tree[above.parent]
    return ".".join(reversed(names))


def _siblings(
    edges: Iterable[tuple[int, int]], parent: list[int], boxes: list[Box], begin: list[int], first_box: int
) -> tuple[list[list[int]], list[list[int]]]:
    """By unit, the units of the same box that come before and after it along edges. Edges back in time don't count."""
    depth = [boxes[box].depth for box in parent[:first_box]] + [box.depth - 1 for box in boxes]
    before: list[list[int]] = [[] for _ in parent]
    after: list[list[int]] = [[] for _ in parent]
    seen = set()
    for source, target in edges:
        a, b = source, target
        while parent[a] != parent[b]:
            up_a, up_b = depth[a] >= depth[b], depth[b] >= depth[a]
            if up_a:
                a = first_box + parent[a]
            if up_b:
                b = first_box + parent[b]
        if a != b and (begin[a], a) < (begin[b], b) and (a, b) not in seen:
            seen.add((a, b))
            before[b].append(a)
            after[a].append(b)
    return before, after


def _rows(parent: list[int], begin: list[int], before: list[list[int]], after: list[list[int]]) -> list[int]:
    row = [0] * len(parent)
    ordered = sorted(range(len(parent)), key=lambda unit: (begin[unit], unit))
    for unit in ordered:
        if before[unit]:
            row[unit] = 1 + max(row[other] for other in before[unit])
    # What depends on nothing here goes next to the first that uses it, not to the top.
    for unit in reversed(ordered):
        if not before[unit] and after[unit]:
            row[unit] = min(row[other] for other in after[unit]) - 1
    used: dict[int, set[int]] = {}
    for unit, box in enumerate(parent):
        used.setdefault(box, set()).add(row[unit])
    dense = {box: {old: new for new, old in enumerate(sorted(rows))} for box, rows in used.items()}
    return [dense[box][row[unit]] for unit, box in enumerate(parent)]


def _columns(parent: list[int], begin: list[int], row: list[int], before: list[list[int]]) -> list[int]:
    """Within a row, units follow the middle of what they come from."""
    column = [0] * len(parent)
    rows: dict[tuple[int, int], list[int]] = {}
    for unit, box in enumerate(parent):
        rows.setdefault((box, row[unit]), []).append(unit)
    for key in sorted(rows):
        units = rows[key]
        wanted = {
            unit: sum(column[other] for other in before[unit]) / len(before[unit]) if before[unit] else float(number)
            for number, unit in enumerate(units)
        }
        units.sort(key=lambda unit: (wanted[unit], begin[unit], unit))
        for number, unit in enumerate(units):
            column[unit] = number
    return column
