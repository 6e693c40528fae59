"""What the page is given: one JSON object, everything in it text or numbers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from genie.graph import Evidence, Graph, Input, Node, Semantics, ValueSemantics, node_text, printable, spec_text, verify
from genie.graph.vocabulary import MODALITIES, PHASES, RESIDENCIES
from genie.inspect import palette
from genie.inspect.chart import chart
from genie.inspect.layout import Layout, layout
from genie.inspect.measured import Measured
from genie.inspect.modules import graph_of, origins, residency
from genie.inspect.outline import tree
from genie.plan import ExecutionPlan

# Inputs drawn in the picture. Weights are in the details of who uses them: they would hide all else.
DRAWN = ("input", "kv_cache", "recurrent_state")

_HIDDEN = ("evidence",)
_TITLES = {
    "role": "role",
    "flops": "FLOP",
    "bytes_read": "bytes read",
    "bytes_written": "bytes written",
    "memory_pattern": "memory pattern",
    "parallelizable": "can parallelize",
    "critical_path": "on critical path",
    "colocation_group": "co-location group",
    "kv_cache_related": "KV cache related",
}


class Table:
    """Things said often, each kept once and named by its number."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._known: dict[Hashable, int] = {}

    def number(self, row: tuple[Any, ...] | str) -> int:
        if row not in self._known:
            self._known[row] = len(self.rows)
            self.rows.append(row)
        return self._known[row]


def data(shown: Graph | ExecutionPlan, measured: Measured | None = None) -> dict[str, Any]:
    graph = graph_of(shown)
    verify(graph)
    entered = origins(graph)
    drawn = [entry.value for entry in graph.inputs if residency(graph, entry.value, entered) in DRAWN]
    placed = layout(graph, drawn)
    words = {name: Table() for name in ("phase", "modality", "residency", "device")}
    labels, evidence = Table(), Table()
    devices = shown.placement if isinstance(shown, ExecutionPlan) else {}
    what = "plan" if isinstance(shown, ExecutionPlan) else "graph"
    return {
        "title": printable(graph.name) or what,
        "what": what,
        "facts": tree(shown, depth=0).head,
        "nodes": [_node(graph, number, placed, devices, words, labels, evidence) for number in range(len(graph.steps))],
        "values": [_value(graph, value, entered, labels, evidence) for value in range(len(graph.values))],
        "inputs": [_input(graph, entry, labels) for entry in graph.inputs],
        "drawn": [_drawn(graph, number, placed, entered, words) for number in range(len(placed.drawn))],
        "boxes": _boxes(placed),
        "edges": [end for edge in placed.edges for end in edge],
        "outputs": list(graph.outputs),
        "labels": labels.rows,
        "evidence": evidence.rows,
        "modes": _modes(words),
        "unknown": palette.UNKNOWN,
        "chart": chart(shown, measured) if isinstance(shown, ExecutionPlan) else None,
    }


def _word(words: Mapping[str, Table], mode: str, word: str | None) -> int:
    return -1 if word is None else words[mode].number(printable(word))


def _node(
    graph: Graph,
    number: int,
    placed: Layout,
    devices: Mapping[int, str],
    words: Mapping[str, Table],
    labels: Table,
    evidence: Table,
) -> dict[str, Any]:
    node = graph.steps[number]
    its = node.semantics
    device = devices.get(node.id)
    module = graph.modules[node.module] if node.module >= 0 else None
    return {
        "id": node.id,
        "op": node.target,
        "line": _call(node, graph),
        "module": printable(module.path) if module else "",
        "type": printable(module.type) if module else "",
        "source": printable(graph.sources[node.source]) if node.source >= 0 else "",
        "role": printable(its.role) if its is not None and its.role is not None else "",
        "words": [
            _word(words, "phase", its.phase if its is not None else None),
            _word(words, "modality", its.modality if its is not None else None),
            _word(words, "residency", its.residency if its is not None else None),
            _word(words, "device", device),
        ],
        "flops": its.flops if its is not None else None,
        "bytes": _moved(its),
        "labels": _labels(its, labels),
        "evidence": _evidence(its, evidence),
        "takes": list(node.operands()),
        "makes": [value for value in node.outputs if value >= 0],
        "writes": list(node.mutates),
        "called": printable(placed.called[number]),
        "box": placed.parent[number],
        "row": placed.row[number],
        "column": placed.column[number],
    }


def _call(node: Node, graph: Graph) -> str:
    """The node as a line, less what the page shows of it elsewhere."""
    return node_text(_bare(node), graph)


def _bare(node: Node) -> Node:
    return Node(node.id, node.operation, node.overload, node.args, node.outputs, node.mutates, node.aliases)


def _moved(its: Semantics | None) -> int | None:
    if its is None or (its.bytes_read is None and its.bytes_written is None):
        return None
    return (its.bytes_read or 0) + (its.bytes_written or 0)


def _labels(its: Semantics | ValueSemantics | None, labels: Table) -> list[int]:
    if its is None:
        return []
    found = []
    for field in its.__struct_fields__:
        label = getattr(its, field)
        if label is not None and field not in _HIDDEN:
            text = f"{label:,}" if type(label) is int else printable(str(label))
            found.append(labels.number((_TITLES.get(field, field), text)))
    return found


def _evidence(its: Semantics | ValueSemantics | None, evidence: Table) -> list[int]:
    return [evidence.number(_reason(each)) for each in its.evidence] if its is not None else []


def _reason(each: Evidence) -> tuple[str, ...]:
    return (printable(each.label), each.source, f"{each.confidence:.3g}", printable(each.reason))


def _value(graph: Graph, value: int, entered: dict[int, str], labels: Table, evidence: Table) -> list[Any]:
    meaning = graph.meanings[value] if graph.meanings else None
    word = residency(graph, value, entered)
    return [
        spec_text(graph.values[value]),
        printable(word) if word else "",
        _labels(meaning, labels),
        _evidence(meaning, evidence),
    ]


def _input(graph: Graph, entry: Input, labels: Table) -> list[Any]:
    seen = f"{entry.lineage} along {entry.axis}" if entry.lineage and entry.axis >= 0 else entry.lineage
    facts = (("origin", entry.origin), ("seen before", seen), ("donated", "yes" if entry.donated else ""))
    return [entry.value, printable(entry.name), [labels.number(fact) for fact in facts if fact[1]]]


def _drawn(
    graph: Graph, number: int, placed: Layout, entered: dict[int, str], words: Mapping[str, Table]
) -> dict[str, Any]:
    value = placed.drawn[number]
    unit = len(graph.steps) + number
    meaning = graph.meanings[value] if graph.meanings else None
    return {
        "value": value,
        "words": [
            -1,
            _word(words, "modality", meaning.modality if meaning is not None else None),
            _word(words, "residency", residency(graph, value, entered)),
            -1,
        ],
        "box": placed.parent[unit],
        "row": placed.row[unit],
        "column": placed.column[unit],
    }


def _boxes(placed: Layout) -> list[dict[str, Any]]:
    first = placed.first_box
    return [
        {
            "parent": box.parent,
            "depth": box.depth,
            "name": printable(box.name),
            "path": printable(box.path),
            "type": printable(box.type),
            "row": placed.row[first + number],
            "column": placed.column[first + number],
        }
        for number, box in enumerate(placed.boxes)
    ]


def _modes(words: Mapping[str, Table]) -> list[dict[str, Any]]:
    """The ways to colour: each with its words in the order of the vocabulary, what they mean, and colours."""
    known = {
        "phase": (palette.PHASE, PHASES),
        "modality": (palette.MODALITY, MODALITIES),
        "residency": (palette.RESIDENCY, RESIDENCIES),
        "device": ({}, {}),
    }
    modes = []
    for name, table in words.items():
        colors, meanings = known[name]
        series = iter(palette.SERIES * (1 + len(table.rows) // len(palette.SERIES)))
        rows = [(word, colors.get(word) or next(series), meanings.get(word, "")) for word in table.rows]
        if name != "device" or rows:
            modes.append({"name": name, "words": rows})
    return modes
