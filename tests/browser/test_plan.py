"""The timeline and the network of a plan, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from browser.opened import Open, Page
from core.dags import Table, device, graph_of, plan_at
from core.test_schedule_recompute import costs, scheduled, table_for_both
from labelled import HARM, decoder, hostile
from plans import gpu, pipeline, placed, profile_of, two
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By

from genie import ExecutionPlan, Scheduler
from genie.emulate import Report, Span


def pixel(shown: Page, place: dict[str, float]) -> tuple[int, ...]:
    """The colour of the timeline at a place on the screen."""
    source = """(() => {
        const canvas = document.getElementById('gantt'), room = canvas.getBoundingClientRect(), [x, y] = AT;
        const ratio = canvas.width / room.width, copy = document.createElement('canvas');
        copy.width = copy.height = 1;
        const pen = copy.getContext('2d', { willReadFrequently: true });
        pen.drawImage(canvas, -Math.floor((x - room.x) * ratio), -Math.floor((y - room.y) * ratio));
        return [...pen.getImageData(0, 0, 1, 1).data];
    })()"""
    return tuple(shown.js(source.replace("AT", f"[{place['x']}, {place['y']}]")))


def view(shown: Page, name: str) -> None:
    shown.find(f"[data-view={name}]").click()
    shown.settled()


def details(shown: Page) -> str:
    return str(shown.find("#details").text)


def test_a_plan_of_several_devices_opens_with_its_timeline(open_page: Open) -> None:
    plan = two(decoder(2, 1))
    shown = open_page(plan)
    assert shown.texts("#views [aria-selected=true]") == ["Timeline"]
    assert not shown.find("#canvas").is_displayed()
    assert shown.js("genie.gantt.lanes.map(lane => lane.name)") == ["gpu0", "gpu1", "gpu0 → gpu1", "gpu1 → gpu0"]
    assert shown.find("#note").text.startswith(f"{plan.latency * 1e6:.0f} µs predicted")
    assert "bottleneck\ngpu0 → gpu1" in details(shown)
    shown.settled()
    # Every bar is where its time is, and something is drawn there.
    for node, span in zip(plan.graph.steps, plan.timeline.steps, strict=True):
        place = shown.js("genie.bar(arguments[0])", node.id)
        assert place["lane"] == plan.placement[node.id]
        assert place["width"] == pytest.approx(
            (span.finish - span.start) * 1e9 * shown.js("genie.gantt.scale"), abs=1e-2
        )
        idle = {"x": place["x"], "y": shown.js("genie.bar(6)" if place["lane"] == "gpu0" else "genie.bar(0)")["y"]}
        assert pixel(shown, place) != pixel(shown, idle)  # the other device waits meanwhile


def test_a_graph_has_neither(open_page: Open) -> None:
    shown = open_page(decoder())
    assert not shown.find("#views").is_displayed()
    assert shown.find("#canvas").is_displayed()


def test_a_click_in_the_timeline_chooses_the_node_in_the_graph_and_the_other_way(open_page: Open) -> None:
    plan = two(decoder(2, 1))
    shown = open_page(plan)
    shown.js("genie.gantt.zoom(4, 148)")
    shown.settled()
    place = shown.js("genie.bar(3)")
    assert place["level"] == "step"
    shown.point(place, click=True)
    shown.until(lambda: "node #3 in model.layers.0.attn" in details(shown))
    assert shown.texts(".row[aria-selected=true] [role=gridcell]:first-child") == ["3"]
    view(shown, "graph")
    assert shown.js("genie.cy.nodes('.selected').map(n => n.id())") == ["u3"]
    assert shown.js("genie.at(3).shown")
    # A node chosen elsewhere is brought into view, wide enough to be seen.
    shown.js("genie.select(15)")
    view(shown, "timeline")
    place, room = shown.js("genie.bar(15)"), shown.find("#gantt").rect
    assert room["x"] + 148 < place["x"] < room["x"] + room["width"]
    assert place["width"] >= 5
    shown.point({"x": room["x"] + 300, "y": room["y"] + room["height"] - 20}, click=True)
    shown.until(lambda: "Choose a node" in details(shown))


def test_a_node_says_what_the_plan_decided(open_page: Open) -> None:
    plan = two(decoder(2, 1))
    shown = open_page(plan)
    shown.js("genie.select(6)")
    text = details(shown)
    for part in (
        "device\ngpu1",
        "rule\nstrategy placed",
        "estimate\n5.01 µs (roofline)",
        "bound by\nnetwork: idle for 153 µs",
    ):
        assert part in text
    for part in ("critical path\non it", "stage\n2 of 7", "waits for\n%9 gpu0 → gpu1", "IT ALONE ELSEWHERE\ngpu0"):
        assert part in text
    # What it waits for leads on: to the transfer, and to who made the value.
    next(x for x in shown.driver.find_elements(By.CSS_SELECTOR, "#details .link") if x.text.startswith("%9")).click()
    shown.until(lambda: "%9, gpu0 → gpu1" in details(shown))
    assert "made by\n#5 add" in details(shown)
    assert "needed by\n#6 mul" in details(shown)
    next(x for x in shown.driver.find_elements(By.CSS_SELECTOR, "#details .link") if x.text == "#5 add").click()
    shown.until(lambda: "node #5 " in details(shown))


def test_pointing_at_bars_says_what_they_are(open_page: Open) -> None:
    plan = two(decoder(2, 1))
    shown = open_page(plan)
    shown.js("genie.gantt.zoom(4, 148)")
    shown.settled()
    shown.point(shown.js("genie.bar(2)"))
    shown.until(lambda: shown.texts("#tip b") == ["#2 aten::linear"])
    assert shown.texts("#tip span")[0] == "model.layers.0.attn"
    number = next(i for i, move in enumerate(plan.transfers) if move.value == 9)
    shown.js("genie.gantt.fit()")
    shown.settled()
    shown.point(shown.js("genie.bar(arguments[0], false, 'sent')", number))
    shown.until(lambda: shown.texts("#tip b") == ["%9, gpu0 → gpu1"])
    assert "on the critical path" in shown.texts("#tip span")


def test_the_critical_path_is_marked(open_page: Open) -> None:
    plan = two(decoder(2, 1))
    shown = open_page(plan)
    shown.js("genie.gantt.zoom(3, 148)")
    shown.settled()
    marked = shown.js("getComputedStyle(document.documentElement).getPropertyValue('--critical').trim()")
    color = tuple(int(marked[i : i + 2], 16) for i in (1, 3, 5))

    def foot(node: int) -> tuple[int, ...]:
        place = shown.js("genie.bar(arguments[0])", node)
        height = shown.js("genie.gantt.rows[0].h")
        return pixel(shown, {"x": place["x"], "y": place["y"] + height / 2 - 1.5})[:3]

    times = plan.timeline
    assert 0 not in times.critical_steps
    assert 6 in times.critical_steps
    shown.js("genie.select(0)")
    shown.settled()
    assert foot(0) != color
    shown.js("genie.select(6)")
    shown.settled()
    assert foot(6) == color


def test_the_timeline_is_moved_by_wheel_keys_and_buttons(open_page: Open) -> None:
    shown = open_page(two(decoder(2, 1)))
    gantt = shown.find("#gantt")
    scale = shown.js("genie.gantt.scale")
    shown.find("#in").click()
    assert shown.js("genie.gantt.scale") == pytest.approx(1.25 * scale)
    gantt.send_keys("-")
    assert shown.js("genie.gantt.scale") == pytest.approx(scale)
    gantt.send_keys("+", "+", "+")
    at = shown.js("genie.gantt.from")
    gantt.send_keys(Keys.ARROW_RIGHT)
    assert shown.js("genie.gantt.from") > at
    gantt.send_keys("0")
    assert shown.js("genie.gantt.scale") == pytest.approx(scale)
    # What is under the pointer stays there when the wheel turns.
    under = shown.js("genie.gantt.time(600)")
    shown.js(
        "document.getElementById('gantt').dispatchEvent(Object.assign(new WheelEvent('wheel', { deltaY: -300, "
        "clientX: document.getElementById('gantt').getBoundingClientRect().x + 600, cancelable: true })))"
    )
    assert shown.js("genie.gantt.scale") > scale
    assert shown.js("genie.gantt.time(600)") == pytest.approx(under)
    views = shown.find("#views [aria-selected=true]")
    views.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown.texts("#views [aria-selected=true]") == ["Network"]


def test_a_search_leaves_what_it_finds(open_page: Open) -> None:
    shown = open_page(two(decoder(2, 1)))
    shown.js("genie.gantt.zoom(6, 148)")
    shown.settled()
    before = [pixel(shown, shown.js("genie.bar(arguments[0])", node)) for node in (3, 4)]
    shown.find("#search").send_keys("cat")
    shown.until(lambda: shown.texts("#count") == ["2 of 20 nodes"])
    shown.settled()
    after = [pixel(shown, shown.js("genie.bar(arguments[0])", node)) for node in (3, 4)]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_far_away_modules_and_stages_stand_for_their_nodes(open_page: Open) -> None:
    shown = open_page(pipeline(decoder(20, 20), 2))
    shown.settled()
    place = shown.js("genie.bar(100)")
    assert place["level"] == "module"
    shown.point(place, click=True)
    shown.until(lambda: "TAKES MOST" in details(shown))
    assert "module on gpu0" in details(shown)
    assert shown.drawn(".selected") == 0 or not shown.find("#canvas").is_displayed()
    shown.js("genie.gantt.zoom(60, 600)")
    shown.settled()
    assert shown.js("genie.gantt.drawn[0].level.name") == "step"


def test_the_network_has_devices_and_what_goes_between(open_page: Open) -> None:
    plan = two(decoder(2, 1))
    shown = open_page(plan)
    view(shown, "network")
    assert len(shown.driver.find_elements(By.CSS_SELECTOR, "#network .device")) == 2
    assert len(shown.driver.find_elements(By.CSS_SELECTOR, "#network .way")) == 2
    assert shown.texts("#network .device .name") == ["gpu0", "gpu1"]
    sent = sum(move.bytes for move in plan.transfers if move.source == 0)
    assert shown.texts("#network .waylabel")[0].startswith(f"{sent / 1024:.3g} KiB · ")
    shown.find("[data-device=gpu1]").click()
    shown.until(lambda: shown.texts("#details h2") == ["gpu1"])
    assert "memory\n" in details(shown)
    assert "receives\n" in details(shown)
    shown.js("document.querySelector('#network .way').dispatchEvent(new MouseEvent('click'))")
    shown.until(lambda: shown.texts("#details h2") == ["gpu0 → gpu1"])
    assert f"values\n{sum(move.source == 0 for move in plan.transfers)}" in details(shown)
    # With keys, too.
    shown.find("[data-device=gpu0]").send_keys(Keys.ENTER)
    shown.until(lambda: shown.texts("#details h2") == ["gpu0"])


def test_predicted_beside_measured(open_page: Open, tmp_path: Path) -> None:
    plan = two(decoder(2, 1))
    profile = profile_of(plan, lambda name: {"aten::mul": 3.0, "aten::gelu": 0.0}.get(name, 1.0), tmp_path / "p")
    shown = open_page(plan, measured=profile.model())
    assert "18 of 20 nodes measured" in shown.find("#note").text
    assert "hatched: not measured" in shown.find("#note").text
    assert shown.js("genie.gantt.lanes.map(lane => lane.rows.length)") == [2, 2, 2, 2]
    shown.js("genie.select(6)")
    assert "measured\n15 µs (+200%)" in details(shown)
    shown.settled()
    assert shown.js("genie.bar(6, true)")["width"] == pytest.approx(3 * shown.js("genie.bar(6)")["width"], rel=1e-3)
    gelu = next(node.id for node in plan.graph.steps if node.operation == "aten::gelu")
    shown.js("genie.select(arguments[0])", gelu)
    assert "measured\nnever: shown as predicted" in details(shown)


def test_a_trace_beside_what_was_predicted(open_page: Open) -> None:
    plan = pipeline(decoder(2), 2)
    ids = [device.id for device in plan.devices]
    times, spans = plan.timeline, [Span("client → gpu0", "float32[8]", 0.0, 1e-4, 32)]
    for stage in plan.stages:
        first, last = times.steps[stage.steps[0]].start, times.steps[stage.steps[-1]].finish
        spans.append(Span(ids[stage.device], "stage's own name", 1e-4 + 2 * first, 1e-4 + 2 * last))
    report = Report(1.0, {}, {}, tuple(sorted(spans, key=lambda span: span.start)))
    shown = open_page(plan, measured=report)
    assert "(+" in shown.find("#note").text
    assert "client → gpu0" in shown.js("genie.gantt.lanes.map(lane => lane.name)")
    shown.js("genie.select(1)")
    assert "stage 1\nmeasured" in details(shown)
    assert "(+100%)" in details(shown)


def test_names_are_text_and_nothing_else(open_page: Open) -> None:
    plan = pipeline(hostile(), 2)
    devices = tuple(msgspec.structs.replace(each, id=f"{HARM}{n}") for n, each in enumerate(plan.devices))
    shown = open_page(msgspec.structs.replace(plan, devices=devices, rules=(HARM,)))
    for name in ("timeline", "network", "graph"):
        view(shown, name)
    for node in range(6):
        shown.js("genie.select(arguments[0])", node)
    assert HARM in details(shown)
    assert shown.js("window.harmed === undefined")
    assert shown.js("document.querySelectorAll('img, iframe').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_bars_can_be_read(open_page: Open, scheme: str) -> None:
    shown = open_page(two(decoder(2, 1)), scheme)
    luminance = shown.js("""(() => {
        const part = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        const of = hex => [1, 3, 5].map(i => part(parseInt(hex.slice(i, i + 2), 16)));
        const light = hex => { const [r, g, b] = of(hex); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        genie.gantt.paint();
        const fills = genie.gantt.rows.flatMap(row => [...row.fill.values()]);
        return [light(genie.gantt.ink.text), fills.map(light)];
    })()""")
    text, fills = luminance
    assert fills
    for fill in fills:
        light, dark = sorted((text, fill), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def of_nothing() -> ExecutionPlan:
    return Scheduler([gpu(0), gpu(1)]).schedule(graph_of([], [64], 1, [0]))


def in_no_time() -> ExecutionPlan:
    graph, table = graph_of([[0], [1]], [8, 8, 8], 1, [2]), {(node, name): 0.0 for node in (0, 1) for name in "ab"}
    return plan_at(graph, [device("a"), device("b")], Table(table), "ab")


def on_one() -> ExecutionPlan:
    return Scheduler([gpu(0)]).schedule(decoder())


def on_ten() -> ExecutionPlan:
    return placed(decoder(4), 10, lambda step, _: step * 7 % 10)


def made_again() -> ExecutionPlan:
    return scheduled(table_for_both(), costs(), homes={0: "b"})


@pytest.mark.parametrize("plan", [of_nothing, in_no_time, on_one, on_ten, made_again])
def test_odd_plans_can_be_seen(open_page: Open, plan: Callable[[], ExecutionPlan]) -> None:
    made = plan()
    shown = open_page(made)
    for name in ("timeline", "network", "graph"):
        view(shown, name)
    assert len(shown.driver.find_elements(By.CSS_SELECTOR, "#network .device")) == len(made.devices)
    view(shown, "timeline")
    assert shown.js("[genie.gantt.from, genie.gantt.scale].every(Number.isFinite)")
    for node in made.graph.steps[:1]:
        shown.js("genie.select(arguments[0])", node.id)
        shown.settled()
        room, place = shown.find("#gantt").rect, shown.js("genie.bar(arguments[0])", node.id)
        assert room["x"] + 148 <= place["x"] <= room["x"] + room["width"]


def test_what_is_run_again_is_on_both_devices(open_page: Open) -> None:
    shown = open_page(made_again())
    shown.js("genie.select(1)")
    assert "run again on\nb" in details(shown)
    shown.settled()
    drawn = shown.js("genie.gantt.rows.filter(row => row.kind === 'steps').map(row => row.series.count)")
    assert drawn == [3, 3]  # the last of b's is its own
    shown.js("genie.select(3)")
    next(x for x in shown.driver.find_elements(By.CSS_SELECTOR, "#details .link") if x.text == "#1 neg").click()
    shown.until(lambda: "node #1" in details(shown))


def large() -> ExecutionPlan:
    plan = pipeline(decoder(40, 492), 4)
    assert len(plan.graph.steps) == 20_002
    return plan


def test_twenty_thousand_steps(open_page: Open) -> None:
    start = time.monotonic()
    shown = open_page(large())
    shown.until(lambda: shown.texts("#count") == ["20,002 nodes"])
    assert time.monotonic() - start < 40
    shown.settled()
    assert shown.js("genie.gantt.drawn.every(({ low, high }) => high - low < 1000)")

    def quick(act: Callable[[], object], done: Callable[[], object]) -> None:
        start = time.monotonic()
        act()
        shown.until(done)
        shown.settled()
        assert time.monotonic() - start < 5  # far less, on a machine with nothing else to do

    scale = shown.js("genie.gantt.scale")
    quick(lambda: shown.find("#in").click(), lambda: shown.js("genie.gantt.scale") > scale)
    quick(lambda: shown.find("#search").send_keys("#15000"), lambda: shown.texts("#count") == ["1 of 20,002 nodes"])
    quick(lambda: shown.find(".row").click(), lambda: "node #15000 " in details(shown))
    place = shown.js("genie.bar(15000)")
    assert (place["level"], place["width"] >= 5) == ("step", True)
    quick(lambda: view(shown, "network"), lambda: shown.find("#network").is_displayed())
