"""The tree of modules."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from core.graph_examples import CPU, GPU, attention_step, graphs
from hypothesis import given
from labelled import decoder, hostile
from rich.console import Console

from genie import Scheduler
from genie.annotate import annotate
from genie.errors import GraphError
from genie.graph import Graph, Input, Module, Node, Ref, TensorSpec
from genie.inspect import tree

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def shown(width: int, graph: Graph) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(tree(graph))
    return file.getvalue()


def test_the_tree_of_a_decoder() -> None:
    assert str(tree(decoder())) == (GOLDEN / "decoder.tree.txt").read_text()


def test_sums_go_upwards() -> None:
    rows = {row[0].lstrip("│├└─ "): row for row in tree(decoder(3)).rows}
    assert [rows[name][2] for name in ("all", "layers", "0", "attn")] == ["26", "24", "8", "3"]
    flops = 65536 + 3584 + 131072
    assert rows["layers"][7] == f"{3 * flops / 1000:.0f} k"
    # What is kept counts once, however many nodes use it.
    assert rows["0"][6] == "weight 16.4 kB, kv_cache 1.79 kB"


def test_depth_cuts_and_still_sums() -> None:
    rows = tree(decoder(), depth=2).rows
    assert [row[0].lstrip("│├└─ ") for row in rows] == ["all", "model", "embed", "layers"]
    assert rows[0] == tree(decoder()).rows[0]
    assert len(tree(decoder(), depth=0).rows) == 1


def test_the_head_says_what_the_work_is() -> None:
    head = dict(tree(decoder()).head)
    assert head["inputs"] == "1 input (64 B), 2 kv_cache (3.58 kB), 3 weight (49.2 kB)"
    assert head["phases"] == "decode 100%, embedding_lookup 0%, sampling 0% of FLOP"
    assert "past.0.key %4 float32[1, 4, 7, 16] grown along 2" in head["kv cache"]


def test_without_labels_nothing_is_made_up() -> None:
    graph = attention_step()
    bare = msgspec.structs.replace(
        graph, steps=tuple(msgspec.structs.replace(node, semantics=None) for node in graph.steps)
    )
    text = str(tree(bare))
    assert "8 nodes" in text
    assert not {"phase", "role", "modality", "FLOP", "bytes"} & set(text.split())


def test_a_plan_says_where_it_runs() -> None:
    plan = Scheduler([GPU, CPU]).schedule(annotate(decoder()))
    assert "gpu0" in dict(tree(plan).head)["plan"]


@pytest.mark.parametrize("width", [20, 40, 79, 120, 200])
def test_it_fits_its_width(width: int) -> None:
    lines = shown(width, decoder()).splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("all") for line in lines)
    assert len(lines) == len(str(tree(decoder())).splitlines())


def test_a_narrow_terminal_loses_columns_not_names() -> None:
    narrow = shown(60, decoder())
    assert "attn" in narrow
    assert "keeps" not in narrow
    assert "keeps" in shown(200, decoder())


def test_names_reach_no_terminal() -> None:
    for text in (str(tree(hostile())), shown(100, hostile())):
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
    rows = tree(hostile()).rows
    assert any("\\x1b[31mred" in row[0] for row in rows)
    assert any("new\\nline" in row[1] for row in rows)


def test_a_path_of_a_thousand_parts() -> None:
    row = TensorSpec((2,), "float32")
    node = Node(0, "aten::neg", "", (Ref(0),), (1,), module=0)
    graph = Graph((row, row), (Input(0),), (node,), (1,), (Module(".".join("a" * 1000), "Deep"),))
    assert len(tree(graph).rows) == 65


def test_a_broken_graph_is_refused() -> None:
    with pytest.raises(GraphError):
        tree(Graph((), (), (Node(0, "aten::neg", "", (Ref(3),), ()),), ()))


@given(graphs())
def test_any_graph_has_a_tree(graph: Graph) -> None:
    outline = tree(graph)
    assert outline.rows[0][2] == f"{len(graph.steps):,}"
    assert str(outline).isprintable() or all(line.isprintable() for line in str(outline).split("\n"))
