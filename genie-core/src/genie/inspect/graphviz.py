"""A graph in Graphviz's language: modules are clusters, phases are colours."""

from __future__ import annotations

from collections.abc import Iterator

from genie.graph import Graph, printable, spec_text, verify
from genie.inspect.modules import Branch, branches, graph_of, origins, residency
from genie.inspect.palette import PHASE, RESIDENCY, UNKNOWN, tint
from genie.plan import ExecutionPlan

# Inputs drawn as nodes. Weights would only hide what happens.
_DRAWN = ("input", "kv_cache", "recurrent_state")


def dot(shown: Graph | ExecutionPlan) -> str:
    """Text for ``dot -Tsvg``. Every name is quoted: a graph from elsewhere can add nothing to the drawing."""
    graph = graph_of(shown)
    verify(graph)
    return "\n".join(_lines(graph)) + "\n"


def quoted(*lines: str) -> str:
    """A string of one or more lines."""
    plain = (printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines if line)
    return '"' + "\\n".join(plain) + '"'


def _lines(graph: Graph) -> Iterator[str]:
    yield f"digraph {quoted(graph.name or 'graph')} {{"
    yield "  node [shape=box, style=filled, fontname=Helvetica, fontsize=10, color=gray40]"
    yield "  edge [color=gray50, arrowsize=0.6]"
    yield "  graph [fontname=Helvetica, fontsize=11, color=gray60]"
    entered = origins(graph)
    drawn = {}
    for entry in graph.inputs:
        word = residency(graph, entry.value, entered)
        if word in _DRAWN:
            drawn[entry.value] = f"v{entry.value}"
            label = quoted(entry.name or f"%{entry.value}", spec_text(graph.values[entry.value]))
            yield f"  v{entry.value} [shape=ellipse, label={label}, fillcolor={quoted(tint(RESIDENCY[word]))}]"
    yield from _clusters(graph, branches(graph))
    for node in graph.nodes():
        for source in node.inputs:
            yield f"  n{source} -> n{node.id}"
        for value in dict.fromkeys(node.operands()):
            if value in drawn:
                yield f"  {drawn[value]} -> n{node.id}"
    yield "}"


def _clusters(graph: Graph, tree: list[Branch]) -> Iterator[str]:
    depth = 0  # of the clusters that are open
    stack = [0]
    while stack:
        branch = tree[stack.pop()]
        while depth >= max(branch.depth, 1):
            yield f"{'  ' * depth}}}"
            depth -= 1
        if branch.index:
            depth = branch.depth
            yield f"{'  ' * depth}subgraph cluster_{branch.index} {{"
            yield f"{'  ' * (depth + 1)}label={quoted(branch.name, branch.type)}"
        for position in branch.own:
            yield f"{'  ' * (depth + 1)}{_node(graph, position)}"
        stack.extend(reversed(branch.children))
    while depth:
        yield f"{'  ' * depth}}}"
        depth -= 1


def _node(graph: Graph, position: int) -> str:
    node = graph.steps[position]
    its = node.semantics
    role, phase = (its.role or "", its.phase or "") if its is not None else ("", "")
    specs = ", ".join(spec_text(graph.values[value]) for value in node.outputs if value >= 0)
    color = tint(PHASE.get(phase, UNKNOWN))
    return f"n{node.id} [label={quoted(node.target, role, specs)}, tooltip={quoted(phase)}, fillcolor={quoted(color)}]"
