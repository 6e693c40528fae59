"""Graphviz text: read back by a small reader of the language, so that quoting is really checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from core.graph_examples import graphs
from hypothesis import given
from labelled import decoder, hostile

from genie.graph import Graph
from genie.inspect import dot

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TOKEN = re.compile(r'\s+|(?P<text>"(?:[^"\\\n]|\\[^\n])*")|(?P<word>[A-Za-z_]\w*|-?[\d.]+)|(?P<sign>->|[{}\[\]=,;])')


def tokens(source: str) -> Iterator[str]:
    at = 0
    while at < len(source):
        match = TOKEN.match(source, at)
        assert match, f"not Graphviz: {source[at : at + 40]!r}"
        at = match.end()
        if match.lastgroup:
            yield match[0]


def read(source: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Statements' ids → how many clusters they are in; and the edges."""
    nodes: dict[str, int] = {}
    edges: list[tuple[str, str]] = []
    depth = 0
    found = list(tokens(source))
    assert found[0] == "digraph"
    i = 1
    while i < len(found):
        token = found[i]
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
        elif token == "[":
            i = found.index("]", i)
        elif token == "->":
            edges.append((found[i - 1], found[i + 1]))
        elif re.fullmatch(r"[nv]\d+", token) and found[i + 1 : i + 2] == ["["]:
            nodes[token] = depth - 1
        i += 1
    assert depth == 0
    return nodes, edges


def test_the_drawing_of_a_decoder() -> None:
    assert dot(decoder()) == (GOLDEN / "decoder.dot").read_text()


def test_nodes_are_in_the_clusters_of_their_modules() -> None:
    nodes, edges = read(dot(decoder()))
    assert (nodes["n0"], nodes["n2"], nodes["n17"]) == (2, 4, 0)
    assert ("n0", "n1") in edges
    assert ("v0", "n0") in edges  # ids
    assert "v1" not in nodes  # a weight


@given(graphs())
def test_any_graph_is_graphviz(graph: Graph) -> None:
    nodes, edges = read(dot(graph))
    assert {f"n{node.id}" for node in graph.steps} <= nodes.keys()
    assert {end for edge in edges for end in edge} <= nodes.keys()


def test_names_add_nothing() -> None:
    source = dot(hostile())
    nodes, edges = read(source)
    assert len(nodes) == 13
    assert len(edges) == 12
    assert [c for c in source if not c.isprintable() and c != "\n"] == []
