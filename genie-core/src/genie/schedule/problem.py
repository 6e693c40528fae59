"""What is to be placed, as arrays for the native search."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from genie.errors import SchedulingError
from genie.graph import Graph
from genie.graph.operands import operands
from genie.plan import Groups, Link, room

if TYPE_CHECKING:
    from genie.schedule._search import Problem

try:
    from genie.schedule._search import Problem as _Native
except ImportError as error:  # one device needs none
    _missing: ImportError | None = error
else:
    _missing = None

_MADE, _ANYWHERE = -2, -1


def available() -> bool:
    """Whether the native search was built."""
    return _missing is None


def build(
    graph: Graph,
    seconds: Sequence[Sequence[float]],
    links: Sequence[Link],
    capacities: Sequence[int],
    groups: Groups,
    homes: Mapping[int, int],
    releases: Sequence[Sequence[int]],
    size: Sequence[int],
    ports: bool = True,
) -> Problem:
    """``seconds[d][i]`` is step ``i`` on device ``d``. Raises :class:`SchedulingError` without the native search."""
    if _missing is not None:
        raise SchedulingError(
            f"the placement search was not built: {_missing}",
            hint="pip install --no-build-isolation --force-reinstall --no-deps genie-core",
        )
    needs = room(graph)  # of each such step it is one more value, made there and forgotten at once
    steps, devices, values = len(graph.steps), len(capacities), len(graph.values) + len(needs)
    size = [*size, *needs.values()]
    scratch = dict(zip(needs, range(len(graph.values), values), strict=True))
    operand_start, taken, output_start, outputs = array("i", [0]), array("i"), array("i", [0]), array("i")
    parent = array("i", [-1]) * values
    home = array("i", [_MADE]) * values
    last = array("i", [steps]) * values
    for step, (node, its) in enumerate(zip(graph.steps, operands(graph), strict=True)):
        taken.extend(its)
        operand_start.append(len(taken))
        for value in node.outputs:
            if value >= 0:
                outputs.append(value)
        if step in scratch:
            outputs.append(scratch[step])
            last[scratch[step]] = step
        output_start.append(len(outputs))
        for output, operand in node.aliases:
            if parent[output] < 0:
                parent[output] = operand
    for entry in graph.inputs:
        home[entry.value] = homes.get(entry.value, _ANYWHERE)
    for step, gone in enumerate(releases):
        for value in gone:
            last[value] = step
    latency, bandwidth = array("d", [0.0]) * (devices * devices), array("d", [float("inf")]) * (devices * devices)
    for link in links:
        latency[link.source * devices + link.target] = link.latency
        bandwidth[link.source * devices + link.target] = link.bytes_per_second
    every = array("d")
    for row in seconds:
        every.extend(row)
    allowed = bytearray()
    rows: dict[int, bytes] = {}
    for mask in groups.allowed:
        if mask not in rows:
            rows[mask] = bytes(mask >> device & 1 for device in range(devices))
        allowed += rows[mask]
    return _Native(
        steps=steps,
        devices=devices,
        values=values,
        seconds=every,
        operand_start=operand_start,
        operands=taken,
        output_start=output_start,
        outputs=outputs,
        parent=parent,
        size=array("q", size),
        home=home,
        last=last,
        latency=latency,
        bandwidth=bandwidth,
        capacity=array("q", capacities),
        unit=array("i", groups.of),
        units=len(groups.allowed),
        allowed=allowed,
        block=blocks(graph),
        ports=ports,
    )


def blocks(graph: Graph) -> array[int]:
    """Per step a number: steps of one are likely to belong together, by their colocation group or their module."""
    number: dict[str, int] = {}
    by_module = [number.setdefault(f"module {_block(module.path)}", len(number)) for module in graph.modules]
    found = array("i")
    for node in graph.steps:
        group = node.semantics.colocation_group if node.semantics is not None else None
        if node.module >= 0:
            found.append(by_module[node.module])
        elif group is not None:
            found.append(number.setdefault(f"group {group}", len(number)))
        else:
            found.append(-1)
    return found


def _block(path: str) -> str:
    """The path up to the last of its numbered parts (``layers.3.mlp.up`` is of ``layers.3``), else its first two."""
    parts = path.split(".")
    for at in range(len(parts) - 1, -1, -1):
        if parts[at].isdigit():
            return ".".join(parts[: at + 1])
    return ".".join(parts[:2])
