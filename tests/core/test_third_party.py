"""A plugin by somebody else, installed by pip: found, listed, used, and as conformant as ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genie.testing import BackendSuite

PROGRAM = """
import genie
from array import array
from genie.graph import Graph, Input, Node, Ref, TensorSpec

row = TensorSpec((2,), "float32")
steps = (
    Node(0, "aten::relu", "", (Ref(0),), (1,)),
    Node(1, "aten::add", "Tensor", (Ref(1), Ref(0)), (2,)),
)
graph = genie.annotate(Graph((row,) * 3, (Input(0),), steps, (2,)))
plan = genie.Scheduler(genie.devices()).schedule(graph)
(out,) = genie.execute(plan, [array("f", [-1.0, 2.0])])
print(genie.devices()[0].id, graph.get_node(1).metadata.get("semantic_role"), list(out.data.cast("f")))
"""


def python(third_party: Path, *args: str, **environ: str) -> str:
    path = os.pathsep.join([str(third_party), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **environ}
    done = subprocess.run(
        [sys.executable, *args], env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_beside_ours(third_party: Path) -> None:
    rows = json.loads(python(third_party, "-m", "genie", "plugins", "list", "--json"))
    mine = [
        (row["kind"], row["name"], row["version"], row["error"])
        for row in rows
        if row["distribution"] == "genie-abacus"
    ]
    assert mine == [("backend", "abacus", "3.2.1", ""), ("pattern", "residual", "3.2.1", "")]
    assert "genie-core" in {row["distribution"] for row in rows}


def test_its_backend_and_its_pattern_are_used(third_party: Path) -> None:
    assert python(third_party, "-c", PROGRAM, GENIE_BACKEND="abacus").strip() == "abacus:0 shortcut [-1.0, 4.0]"


ROLE = """
import genie
from genie.graph import Graph, Input, Node, Ref, TensorSpec

wide = TensorSpec((2, 8, 16), "float32")
weight = TensorSpec((16, 16), "float32")
steps = (
    Node(0, "aten::linear", "", (Ref(0), Ref(1), None), (2,)),
    Node(1, "aten::add", "Tensor", (Ref(2), Ref(0), 1), (3,)),
)
inputs = (Input(0, "x", "input"), Input(1, "w", "parameter"))
node = genie.annotate(Graph((wide, weight, wide, wide), inputs, steps, (3,))).get_node(1)
(why,) = [why for why in node.semantics.evidence if why.label == "role"]
print(node.metadata["semantic_role"], "by", why.reason)
"""


def test_its_pattern_wins_over_a_built_in_one_by_its_specificity(third_party: Path, tmp_path: Path) -> None:
    assert python(third_party, "-c", ROLE).strip() == "shortcut by residual"
    # Without the plugin it is what the built-in pattern says.
    assert python(tmp_path, "-c", ROLE).startswith("residual by ")


class TestConformance(BackendSuite):
    @pytest.fixture
    def backend(self, third_party: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        monkeypatch.syspath_prepend(str(third_party))
        from genie_abacus.backend import Abacus

        backend = Abacus()
        yield backend
        backend.close()
