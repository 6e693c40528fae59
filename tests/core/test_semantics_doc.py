"""The patterns of docs/semantics.md run as they stand, and the words it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from core.programs import Program, decoder

import genie
from genie.annotate import annotate
from genie.graph import Ref, Semantics
from genie.graph.vocabulary import MEMORY_PATTERNS, MODALITIES, PHASES, PRIORITIES, RESIDENCIES
from genie.plugins import registry
from genie.workload import WORKLOADS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "semantics.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def snippet(marker: str) -> str:
    (found,) = [text for text in SNIPPETS if marker in text]
    return found


def test_the_table_of_a_newcomer() -> None:
    exec(compile(snippet("register_pattern"), "semantics.md", "exec"), {})
    try:
        pattern = registry.make("pattern", "mine", genie.settings())
    finally:
        registry.unregister("pattern", "mine")
    p = Program()
    up = p.linear(p.input((2, 4)), p.weight(8, 4))
    hidden = p.op("pow", Ref(p.op("relu", Ref(up), shape=(2, 8))), 2, shape=(2, 8))
    p.linear(hidden, p.weight(4, 8))
    roles = [node.metadata.get("semantic_role") for node in annotate(p.graph(), [pattern]).nodes()]
    assert roles == ["mlp_up", "mlp_activation", "mlp_activation", "mlp_down"]


def test_the_finder_in_code() -> None:
    names: dict[str, object] = {}
    exec(compile(snippet("class LongAttention"), "semantics.md", "exec"), names)
    graph = annotate(decoder(2, prompt=5000), [names["LongAttention"]()])  # type: ignore[operator]
    attending = [node for node in graph.nodes() if node.operation == "aten::scaled_dot_product_attention"]
    assert {node.metadata["colocation_group"] for node in attending} == {"long"}


@pytest.mark.parametrize("words", [PHASES, MODALITIES, RESIDENCIES, MEMORY_PATTERNS, PRIORITIES, WORKLOADS])
def test_every_word_is_there(words: dict[str, object]) -> None:
    missing = [word for word in words if word not in TEXT]
    assert missing == []


def test_every_label_is_there() -> None:
    public = {"role": "semantic_role", "flops": "compute_flops", "parallelizable": "can_parallelize"}
    labels = [public.get(name, name) for name in Semantics.__struct_fields__ if name != "evidence"]
    assert [label for label in labels if f"`{label}`" not in TEXT] == []
