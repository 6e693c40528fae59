"""The tree of modules as text: a line for each, what is below it added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.text import Text

from genie.graph import Graph, printable, spec_text, verify
from genie.inspect.modules import (
    Branch,
    Totals,
    branches,
    by_residency,
    common,
    graph_of,
    kept_text,
    nbytes,
    si,
    totals,
)
from genie.plan import ExecutionPlan
from genie.plan.text import time_text

_HEADS = ("module", "type", "nodes", "phase", "role", "modality", "keeps", "FLOP", "bytes")
_STYLES = ("bold", "dim", "", "cyan", "green", "magenta", "yellow", "", "")
_RIGHT = (2, 7, 8)
# A narrow terminal loses columns, the first of these first; then names are cut.
_LEAST = (6, 5, 4, 1, 3, 8, 7)
_NARROWEST = 24  # of the first column
_GAP = "  "
_MOST_LISTED = 4


@attrs.frozen
class Outline:
    """A graph's modules. ``str`` gives all of it; a rich console as much as fits its width."""

    head: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return "".join(f"{line.plain.rstrip()}\n" for line in self._lines(None))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield from self._lines(options.max_width)

    def _lines(self, width: int | None) -> Iterator[Text]:
        label = max(len(name) for name, _ in self.head)
        for name, what in self.head:
            yield _fitted(Text.assemble((f"{name:<{label}}{_GAP}", "bold"), what), width)
        if self.rows:
            yield Text("")
            yield from self._table(width)

    def _table(self, width: int | None) -> Iterator[Text]:
        table = (_HEADS, *self.rows)
        used = [i for i in range(len(_HEADS)) if i == 0 or any(row[i] for row in self.rows)]
        widths = [max(cell_len(row[i]) for row in table) for i in range(len(_HEADS))]

        def excess() -> int:
            return 0 if width is None else sum(widths[i] for i in used) + len(_GAP) * (len(used) - 1) - width

        # First the wide columns give way, then whole columns go.
        for column, least in ((4, 16), (6, 14), (3, 16), (1, 12), (0, _NARROWEST)):
            widths[column] -= max(0, min(excess(), widths[column] - least)) if column in used else 0
        for column in _LEAST:
            if excess() > 0 and column in used:
                used.remove(column)
        widths[0] -= max(0, min(excess(), widths[0] - 4))
        for number, row in enumerate(table):
            cells: list[tuple[str, str]] = []
            for i in used:
                cell = _cut(row[i], widths[i])
                pad = " " * (widths[i] - cell_len(cell))
                style = "dim" if number == 0 else _STYLES[i]
                cells += [(pad + cell if i in _RIGHT else cell + pad, style), (_GAP, "")]
            yield _fitted(Text.assemble(*cells[:-1]), width)


def tree(shown: Graph | ExecutionPlan, depth: int | None = None) -> Outline:
    """The modules of a graph or plan, down to ``depth`` components of their paths.

    >>> print(genie.inspect.tree(graph, depth=2))  # doctest: +SKIP
    """
    graph = graph_of(shown)
    verify(graph)
    found = branches(graph)
    sums = totals(graph, found)
    return Outline(tuple(_head(shown, sums[0])), tuple(_rows(graph, found, sums, depth)))


def _rows(
    graph: Graph, found: Sequence[Branch], sums: Sequence[Totals], depth: int | None
) -> Iterator[tuple[str, ...]]:
    stack: list[tuple[int, str, str]] = [(0, "", "")]  # branch, guide before its name, guide before its children
    while stack:
        index, guide, below = stack.pop()
        branch = found[index]
        whole = sums[index]
        yield (
            guide + printable(branch.name if index else "all"),
            printable(branch.type),
            f"{whole.nodes:,}",
            printable(common(whole.phases, 3)),
            printable(common(whole.roles, 3)),
            printable(common(whole.modalities, 2)),
            kept_text(graph, whole.kept),
            si(whole.flops) if whole.flops else "",
            si(whole.read + whole.written, "B") if whole.read or whole.written else "",
        )
        if depth is None or branch.depth < depth:
            last = branch.children[-1:]
            stack += [
                (child, below + ("└─ " if [child] == last else "├─ "), below + ("   " if [child] == last else "│  "))
                for child in reversed(branch.children)
            ]


def _head(shown: Graph | ExecutionPlan, whole: Totals) -> Iterator[tuple[str, str]]:
    graph = graph_of(shown)
    name = f"{printable(graph.name)}, " if graph.name else ""
    yield "graph", f"{name}{graph.backend_type}, {len(graph.steps):,} nodes, {graph.fingerprint[:12]}"
    if isinstance(shown, ExecutionPlan):
        used = [0] * len(shown.devices)
        for made in shown.decisions:
            used[made.device] += 1
        places = ", ".join(f"{device.id} ({n:,} nodes)" for device, n in zip(shown.devices, used, strict=True))
        yield "plan", printable(f"{shown.policy}, {time_text(shown.latency)} estimated, on {places}")
    yield "inputs", _values_text(graph, [entry.value for entry in graph.inputs])
    yield "outputs", _values_text(graph, graph.outputs)
    if whole.flops or whole.read or whole.written:
        yield "work", f"{si(whole.flops, 'FLOP')}, {si(whole.read, 'B')} read, {si(whole.written, 'B')} written"
    if whole.phases:
        yield "phases", _phases_text(graph)
    yield from _cache(graph)


def _values_text(graph: Graph, values: Sequence[int]) -> str:
    groups = by_residency(graph, dict.fromkeys(values))
    sizes = {name: si(nbytes(graph.values[value] for value in groups[name]), "B") for name in sorted(groups)}
    return ", ".join(f"{len(groups[name]):,} {printable(name)} ({size})" for name, size in sizes.items()) or "none"


def _phases_text(graph: Graph) -> str:
    """Each phase with its share of FLOPs; of nodes, where nothing is known to compute."""
    work: dict[str, int] = {}
    count: dict[str, int] = {}
    for node in graph.steps:
        its = node.semantics
        phase = its.phase if its is not None and its.phase is not None else "unknown"
        work[phase] = work.get(phase, 0) + ((its.flops or 0) if its is not None else 0)
        count[phase] = count.get(phase, 0) + 1
    shares, of = (work, "FLOP") if any(work.values()) else (count, "nodes")
    whole = sum(shares.values())
    ranked = sorted(shares, key=lambda phase: (-shares[phase], -count[phase], phase))
    return printable(", ".join(f"{phase} {100 * shares[phase] / whole:.3g}%" for phase in ranked) + f" of {of}")


def _cache(graph: Graph) -> Iterator[tuple[str, str]]:
    entries = {entry.value: entry for entry in graph.inputs}
    for word, title in (("kv_cache", "kv cache"), ("recurrent_state", "state")):
        values = by_residency(graph, dict.fromkeys((*entries, *graph.outputs))).get(word, [])
        if not values:
            continue
        named = []
        for value in values[:_MOST_LISTED]:
            entry = entries.get(value)
            text = f"%{value} {spec_text(graph.values[value])}"
            if entry is not None and entry.name:
                text = f"{printable(entry.name)} {text}"
            if entry is not None and entry.lineage:
                text += f" {entry.lineage}" + (f" along {entry.axis}" if entry.axis >= 0 else "")
            named.append(text)
        more = f", and {len(values) - _MOST_LISTED} more" if len(values) > _MOST_LISTED else ""
        size = si(nbytes(graph.values[value] for value in values), "B")
        yield title, f"{len(values):,} value{'s' if len(values) > 1 else ''}, {size}: {', '.join(named)}{more}"


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _fitted(line: Text, width: int | None) -> Text:
    if width is not None:
        line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line
