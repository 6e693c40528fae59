"""The page as text: what is in it, and that nothing of a graph gets out of its place. A browser opens it elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from core.dags import plan_at, problems
from core.graph_examples import GPU, graphs
from hypothesis import given
from hypothesis import strategies as st
from inspect_page import data
from labelled import HARM, decoder, hostile
from plans import pipeline, two

from genie import Scheduler
from genie.errors import PlanError
from genie.graph import Graph
from genie.inspect import page
from genie.inspect.layout import layout

ROOT = Path(__file__).resolve().parent.parent.parent


class Reader(HTMLParser):
    """The elements of a page outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        # A script ends at the first end tag, whatever its author meant.
        self.feed(re.sub(r"(<script[^>]*>).*?(</script)", r"\1\2", text, flags=re.DOTALL))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def texts(page: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}[^>]*>(.*?)</{tag}", page, re.DOTALL)


def test_nothing_is_loaded_from_elsewhere() -> None:
    reader = Reader(page(decoder()))
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "form", "svg"}
    assert [attributes for _, attributes in reader.elements if "src" in attributes or "href" in attributes] == []
    assert [name for _, attributes in reader.elements for name in attributes if name.startswith("on")] == []


def test_the_policy_lets_in_the_pages_own_scripts_and_styles_alone() -> None:
    text = page(decoder())
    [policy] = [a["content"] or "" for tag, a in Reader(text).elements if tag == "meta" and "http-equiv" in a]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"]
    assert "unsafe" not in policy

    def hashes(texts: list[str]) -> list[str]:
        return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]

    scripts = texts(text, "script")
    assert len(scripts) == 3
    assert rules["script-src"] == hashes(scripts[1:])
    assert rules["style-src"] == hashes(texts(text, "style"))


def test_names_stay_in_their_place() -> None:
    for shown, plain in ((hostile(), decoder()), (pipeline(hostile(), 2), pipeline(decoder(), 2))):
        check_names(page(shown), page(plain))


def check_names(text: str, plain: str) -> None:
    elements = [tag for tag, _ in Reader(text).elements]
    assert elements == [tag for tag, _ in Reader(plain).elements]
    # Once, in the title, where it is escaped; else as JSON.
    assert HARM not in text
    [block] = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert not re.search(r"[<>&]|[^\x20-\x7e]", block)
    assert data(text)["title"] == HARM
    shown = json.dumps(data(text), ensure_ascii=False)
    assert shown.isprintable()


def test_no_script_makes_markup_of_text() -> None:
    static = ROOT / "genie-core" / "src" / "genie" / "inspect" / "static"
    for path in static.glob("*.js"):
        if path.name != "cytoscape.min.js":
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", path.read_text()
            )


def test_every_node_is_there_with_its_evidence() -> None:
    graph = decoder()
    content = data(page(graph))
    assert [node["id"] for node in content["nodes"]] == [node.id for node in graph.steps]
    cat = content["nodes"][3]
    assert ["role", "structure", "0.8", "looks like kv_append"] in [content["evidence"][i] for i in cat["evidence"]]
    assert ["role", "kv_append"] in [content["labels"][i] for i in cat["labels"]]
    assert content["values"][cat["makes"][0]][:2] == ["float32[1, 4, 7, 16]", "kv_cache"]
    phases = next(mode for mode in content["modes"] if mode["name"] == "phase")
    assert [word for word, _, _ in phases["words"]] == ["embedding_lookup", "decode", "sampling"]


def test_a_plan_is_coloured_by_device_too() -> None:
    content = data(page(Scheduler([GPU]).schedule(decoder())))
    assert [mode["name"] for mode in content["modes"]] == ["phase", "modality", "residency", "device"]
    assert content["what"] == "plan"
    assert data(page(decoder()))["chart"] is None


def test_a_plan_has_its_timeline() -> None:
    plan = two(decoder(2, 1))
    chart, times = data(page(plan))["chart"], plan.timeline
    assert chart["times"][::4] == [round(span.start * 1e9) for span in times.steps]
    assert chart["times"][1::4] == [round(span.finish * 1e9) for span in times.steps]
    assert chart["steps"][::7] == [made.device for made in plan.decisions]
    assert chart["critical"] == list(times.critical_steps)
    assert chart["criticalSent"] == list(times.critical_transfers)
    assert chart["transfers"][4::5] == [move.bytes for move in plan.transfers]
    assert [device[0] for device in chart["devices"]] == ["gpu0", "gpu1"]
    assert [device[4] for device in chart["devices"]] == list(plan.peak_memory)
    assert chart["measured"] is None


@given(problems(), st.data())
def test_any_plan_has_a_page(problem, data_) -> None:
    graph, devices, model = problem
    places = [data_.draw(st.sampled_from([each.id for each in devices])) for _ in graph.steps]
    plan = plan_at(graph, devices, model, places)  # links without latency, and such without a limit, too
    chart = data(page(plan))["chart"]
    assert len(chart["transfers"]) == 5 * len(plan.transfers)
    assert all(link[3] >= 0 for link in chart["links"])


def test_a_plan_that_breaks_a_rule_has_no_page() -> None:
    plan = two(decoder(2, 1))
    with pytest.raises(PlanError, match="not on its device"):
        page(msgspec.structs.replace(plan, transfers=()))


def test_the_page_of_five_thousand_nodes_is_not_large() -> None:
    assert len(page(decoder(20, 242))) < 4_000_000
    assert len(page(pipeline(decoder(20, 242), 4))) < 4_500_000


@given(graphs())
def test_any_graph_has_a_page(graph: Graph) -> None:
    content = data(page(graph))
    assert len(content["nodes"]) == len(graph.steps)
    assert all(node["box"] < len(content["boxes"]) for node in content["nodes"])


def test_the_library_is_the_one_named() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "bundle.py"), "--check"], check=True, timeout=60)


# --- layout --------------------------------------------------------------------------------------


def test_rows_follow_the_data_within_each_box() -> None:
    placed = layout(decoder(4), [0])
    assert placed.drawn == (0,)
    for source, target in placed.edges:
        if placed.parent[source] == placed.parent[target]:
            assert placed.row[source] < placed.row[target]


@given(graphs())
def test_no_two_share_a_place(graph: Graph) -> None:
    placed = layout(graph, [entry.value for entry in graph.inputs])
    places = list(zip(placed.parent, placed.row, placed.column, strict=True))
    assert len(set(places)) == len(places)
    for unit, box in enumerate(placed.parent):
        assert -1 <= box < len(placed.boxes)
        assert (box == -1) == (unit == placed.first_box)


def test_lists_of_modules_and_modules_of_one_operator_have_no_box() -> None:
    boxes = [box.name for box in layout(decoder(2), []).boxes]
    assert boxes == ["step", "model.layers.0", "attn", "mlp", "model.layers.1", "attn", "mlp"]


@pytest.mark.parametrize("calls", [1, 2])
def test_calls_of_the_model_are_told_apart(calls: int) -> None:
    graph = decoder(2)
    steps = []
    for number, node in enumerate(graph.steps):
        call = number * calls // len(graph.steps)
        steps.append(msgspec.structs.replace(node, semantics=msgspec.structs.replace(node.semantics, call=call)))
    names = [box.name for box in layout(msgspec.structs.replace(graph, steps=tuple(steps)), []).boxes]
    assert ("call 0" in names, "call 1" in names) == ((False, False) if calls == 1 else (True, True))
