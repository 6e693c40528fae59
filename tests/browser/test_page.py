"""The page in a real browser: what a person would do with it. Needs Chromium and its driver (Debian's packages)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from browser.opened import Open
from core.graph_examples import GPU
from labelled import HARM, NAMES, decoder, hostile
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By

from genie import Scheduler


def test_nodes_are_drawn_and_listed(open_page: Open) -> None:
    shown = open_page(decoder())
    assert shown.find("h1").text == "step"
    assert shown.texts("#count") == ["18 nodes"]
    shown.find("#all").click()
    assert (shown.drawn(".leaf"), shown.drawn(".closed"), shown.drawn(".input")) == (21, 0, 3)
    assert shown.js("genie.cy.edges().length") >= 18
    # Nothing lies on anything else, and all of it is in sight.
    overlaps = shown.js("""(() => {
        const boxes = genie.cy.nodes('.leaf').map(n => n.renderedBoundingBox());
        const meet = (a, b) => a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2;
        return boxes.filter((a, i) => boxes.some((b, j) => i < j && meet(a, b))).length;
    })()""")
    assert overlaps == 0
    assert shown.js(
        "genie.cy.nodes().every(n => n.renderedPosition().x > 0 && n.renderedPosition().x < genie.cy.width())"
    )
    # And something is on the canvas.
    painted = shown.js("""[...document.querySelectorAll('#canvas canvas')].some(c => {
        const its = c.width && c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return its && its.some(x => x);
    })""")
    assert painted


def test_search_narrows_the_table_and_the_picture(open_page: Open) -> None:
    shown = open_page(decoder(4))
    shown.find("#all").click()
    search = shown.find("#search")
    search.send_keys("KV_append layers.2")
    shown.until(lambda: shown.texts("#count") == ["1 of 34 nodes"])
    assert shown.texts(".row [role=gridcell]:nth-child(3)") == ["model.layers.2.attn"]
    assert shown.drawn(".leaf") - shown.drawn(".leaf.faded") == 1
    search.send_keys(" nonsense")
    shown.until(lambda: shown.texts("#count") == ["0 of 34 nodes"])
    assert shown.texts(".row") == []
    search.send_keys(Keys.ESCAPE)
    shown.until(lambda: shown.texts("#count") == ["34 nodes"])
    assert shown.drawn(".faded") == 0
    search.send_keys("#7", Keys.ENTER)
    shown.until(lambda: "node #7" in shown.find("#details").text)


def test_a_click_on_a_node_shows_its_evidence(open_page: Open) -> None:
    shown = open_page(decoder())
    shown.find("#all").click()
    shown.click_at(3)
    shown.until(lambda: "kv_append" in shown.find("#details").text)
    details = shown.find("#details").text
    for expected in (
        "aten::cat",
        "node #3 in model.layers.0.attn (Attention)",
        "model.py:1",
        "structure, confidence 0.8",
    ):
        assert expected in details
    assert "looks like kv_append" in details
    assert "past.0.key\n" in details
    assert "residency\nkv_cache" in details
    assert shown.texts(".row[aria-selected=true] [role=gridcell]:first-child") == ["3"]
    assert shown.drawn(".selected") == 1
    # A link leads to the node that made an operand.
    shown.find("#details .values .link").click()
    shown.until(lambda: "node #2 " in shown.find("#details").text)


def test_pointing_at_a_node_says_what_it_is(open_page: Open) -> None:
    shown = open_page(decoder())
    shown.find("#all").click()
    shown.point(shown.js("genie.at(3)"))
    shown.until(lambda: shown.texts("#tip b") == ["#3 aten::cat"])
    assert shown.texts("#tip span")[:2] == ["kv_append", "phase: decode"]


def test_a_click_in_the_table_opens_the_way_to_the_node(open_page: Open) -> None:
    shown = open_page(decoder(30))
    shown.find("#search").send_keys("#200")
    shown.until(lambda: shown.texts("#count") == ["1 of 242 nodes"])
    assert not shown.js("genie.at(200).shown")
    shown.find(".row").click()
    shown.until(lambda: "node #200 " in shown.find("#details").text)
    place = shown.js("genie.at(200)")
    assert place["shown"]
    room = shown.find("#canvas").rect
    assert room["x"] < place["x"] < room["x"] + room["width"]
    assert room["y"] < place["y"] < room["y"] + room["height"]


def test_modules_open_and_close(open_page: Open) -> None:
    shown = open_page(decoder(30))
    closed = shown.drawn(".closed")
    assert closed > 10
    shown.find("#unfold").click()
    assert shown.drawn() > closed
    shown.find("#fold").click()
    shown.find("#fold").click()
    assert shown.drawn(".open") == 0
    shown.js("genie.select(Number(genie.cy.nodes('.closed')[3].id().slice(1)))")
    assert shown.find("#toggle").text == "Open module"
    shown.find("#toggle").click()
    shown.until(lambda: shown.find("#toggle").text == "Close module")
    assert shown.drawn(".open") == 1
    shown.find("#toggle").click()
    shown.until(lambda: shown.drawn(".open") == 0)


def test_the_switch_changes_colours_and_the_legend(open_page: Open) -> None:
    shown = open_page(decoder())
    shown.find("#all").click()
    assert shown.color(3) == shown.color(4) != shown.color(0)
    assert shown.texts("#legend button") == ["decode\n16", "embedding_lookup\n1", "sampling\n1", "unknown\ninputs"]
    shown.find("[data-mode=residency]").click()
    assert shown.color(3) != shown.color(4) == shown.color(0)
    assert shown.texts("#legend button")[0] == "activation\n16"
    # A colour of the legend leaves only what has it.
    shown.driver.find_elements(By.CSS_SELECTOR, "#legend button")[1].click()
    assert shown.drawn(".leaf") - shown.drawn(".leaf.faded") == 4  # two nodes, two inputs


def test_a_plan_has_its_devices(open_page: Open) -> None:
    shown = open_page(Scheduler([GPU]).schedule(decoder()))
    shown.find("[data-mode=device]").click()
    assert shown.texts("#legend button")[0] == "gpu0\n18"


def test_the_table_sorts(open_page: Open) -> None:
    shown = open_page(decoder())
    flop = shown.driver.find_elements(By.CSS_SELECTOR, "#head button")[7]
    flop.click()
    flop.click()
    assert shown.texts(".row:first-child [role=gridcell]:nth-child(8)") == ["131 k"]
    assert shown.texts("[aria-sort=descending]") == ["FLOP ↓"]


def test_all_of_it_can_be_done_with_keys(open_page: Open) -> None:
    shown = open_page(decoder())
    active = shown.driver.switch_to.active_element
    active.send_keys("/")
    assert shown.js("document.activeElement.id") == "search"
    shown.driver.switch_to.active_element.send_keys("linear", Keys.ARROW_DOWN)
    assert shown.js("document.activeElement.id") == "grid"
    shown.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    shown.until(lambda: "node #6 " in shown.find("#details").text)
    assert shown.texts("#grid .row[aria-selected=true] [role=gridcell]:first-child") == ["6"]
    canvas = shown.find("#canvas")
    zoom, pan = shown.js("genie.cy.zoom()"), shown.js("genie.cy.pan().x")
    canvas.send_keys("+")
    assert shown.js("genie.cy.zoom()") > zoom
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert shown.js("genie.cy.pan().x") != pan
    modes = shown.find("#modes [aria-checked=true]")
    modes.send_keys(Keys.ARROW_RIGHT)
    assert shown.texts("#modes [aria-checked=true]") == ["Modality"]


def test_names_are_text_and_nothing_else(open_page: Open) -> None:
    shown = open_page(hostile())
    assert shown.driver.title == f"{HARM} · Genie"
    assert shown.find("h1").text == HARM
    shown.find("#all").click()
    for node in range(2 * len(NAMES)):
        shown.js("genie.select(arguments[0])", node)
    shown.js("genie.select(arguments[0])", 0)
    assert HARM in shown.find("#details").text
    assert shown.js("window.harmed === undefined")
    assert shown.js("document.querySelectorAll('img, iframe').length") == 0
    # Not even a script that got in somehow would run.
    shown.js("document.head.append(Object.assign(document.createElement('script'), { text: 'window.harmed = 1' }))")
    assert shown.js("window.harmed === undefined")
    complaints, requests = shown.trouble()
    assert requests == []
    [complaint] = complaints
    assert "Content Security Policy" in complaint


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(open_page: Open, scheme: str) -> None:
    shown = open_page(decoder(), scheme)
    shown.find("#all").click()
    surface = shown.js("getComputedStyle(document.querySelector('#details')).backgroundColor")
    assert (luminance(surface) > 0.5) == (scheme == "light")
    for mode in ("phase", "modality", "residency"):
        shown.find(f"[data-mode={mode}]").click()
        pairs = shown.js("genie.cy.nodes('.leaf').map(n => [n.style('color'), n.style('background-color')])")
        for text, background in pairs:
            light, dark = sorted((luminance(text), luminance(background)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, background)


def test_five_thousand_nodes(open_page: Open) -> None:
    graph = decoder(20, 242)
    assert len(graph.steps) == 5002
    start = time.monotonic()
    shown = open_page(graph)
    shown.until(lambda: shown.texts("#count") == ["5,002 nodes"])
    assert time.monotonic() - start < 15
    shown.find("#all").click()
    assert shown.drawn(".leaf") == 5023

    def quick(act: Callable[[], object], done: Callable[[], object]) -> None:
        start = time.monotonic()
        act()
        shown.until(done)
        shown.settled()
        assert time.monotonic() - start < 5  # a second, on a machine with nothing else to do

    zoom = shown.js("genie.cy.zoom()")
    quick(lambda: shown.find("#in").click(), lambda: shown.js("genie.cy.zoom()") > zoom)
    pan = shown.js("genie.cy.pan().x")
    quick(lambda: shown.find("#canvas").send_keys(Keys.ARROW_LEFT), lambda: shown.js("genie.cy.pan().x") == pan + 60)
    quick(lambda: shown.find("#search").send_keys("#4000"), lambda: shown.texts("#count") == ["1 of 5,002 nodes"])
    quick(lambda: shown.find(".row").click(), lambda: "node #4000 " in shown.find("#details").text)
    quick(lambda: shown.click_at(4000), lambda: shown.drawn(".selected") == 1)
