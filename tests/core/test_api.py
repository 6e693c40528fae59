"""The verbs over the process's runtime: one at a time, idempotent, honest about what is in force."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rows import Row, RowFrontend, Trace
from structlog.testing import capture_logs

import genie
from genie import Device, runtime
from genie.errors import (
    BackendUnavailable,
    CaptureError,
    ConfigError,
    PlanError,
    PluginNotFound,
    RemoteOpError,
)
from genie.graph import Graph
from genie.interfaces import Session
from genie.plugins import registry
from genie.testing import NullBackend


class World:
    """A frontend and backends of this process, and how often each was made."""

    def __init__(self) -> None:
        self.frontend = RowFrontend()
        self.made: list[NullBackend] = []

    def backend(self, settings: genie.Settings) -> NullBackend:
        self.made.append(NullBackend(devices=2))
        return self.made[-1]


@pytest.fixture
def world(fresh_runtime: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    runtime.forget_frontends()
    world = World()
    installed = registry.names("frontend")
    for name in ("null", "other", "local"):
        genie.register_backend(name, world.backend)
    genie.register_frontend("rows", lambda settings: world.frontend)
    monkeypatch.setenv("GENIE_FRONTEND", "rows")
    monkeypatch.setenv("GENIE_BACKEND", "null")
    yield world
    genie.shutdown()
    for kind, names in (("backend", ("null", "other", "local")), ("frontend", ("rows",))):
        for name in names:
            registry.unregister(kind, name)  # type: ignore[arg-type]
    runtime.forget_frontends()
    assert registry.names("frontend") == installed


def program(x: Row, y: Row) -> Row:
    return (x + y) * 3.0


def graph() -> Graph:
    trace = Trace([Row(1, 2), Row(3, 4)])
    return trace.graph(program(*[Row(trace=trace, value=index) for index in range(2)]))


def plan(device: str = "null:0") -> genie.ExecutionPlan:
    return genie.Scheduler([Device(id=device, type="null", memory_gb=1, compute_tflops=1)]).schedule(graph())


# --- the runtime ---------------------------------------------------------------------------------


def test_nothing_is_made_before_it_is_needed(world: World) -> None:
    assert genie.settings().backend == "null"
    assert world.made == []
    assert genie.device_count() == 2
    assert len(world.made) == 1


def test_init_connects_and_is_idempotent(world: World) -> None:
    genie.init(timeout=5)
    assert len(world.made) == 1
    genie.init(timeout=5)
    genie.init()
    assert len(world.made) == 1
    assert genie.settings().timeout == 5


def test_init_with_other_settings_says_so(world: World) -> None:
    genie.init(timeout=5)
    with pytest.raises(ConfigError, match=r"already running with timeout=5.*not 6") as caught:
        genie.init(timeout=6)
    assert caught.value.where == "call: timeout="
    assert "shutdown" in caught.value.hint
    genie.shutdown()
    genie.init(timeout=6)
    assert genie.settings().timeout == 6


def test_init_after_an_implicit_start_must_agree_too(world: World) -> None:
    genie.engine()
    with pytest.raises(ConfigError, match="timeout"):
        genie.init(timeout=6)


def test_a_failed_init_leaves_nothing_behind(world: World) -> None:
    def refuse(settings: genie.Settings) -> NullBackend:
        raise BackendUnavailable("nobody there")

    genie.register_backend("other", refuse)
    with pytest.raises(BackendUnavailable):
        genie.init(backend="other")
    genie.init(backend="null")
    assert genie.device_count() == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nodez": "a:1"}, "unknown setting 'nodez'(.|\n)*did you mean 'nodes'"),
        ({"timeout": "soon"}, "setting 'timeout': "),
        ({"timeout": float("nan")}, "setting 'timeout': "),
        ({"config": 5}, "setting 'cluster' must be a path or a mapping, not 5"),
        ({"cluster": "other.yaml"}, "given two clusters"),
        ({"rdma": "yes"}, "rdma must be True or False, not 'yes'"),
        ({"rdma": True, "backend": "tcp"}, "rdma insists on the backend 'dpdk', backend='tcp' on another"),
    ],
)
def test_init_cluster_checks_its_settings(world: World, settings: dict[str, object], said: str) -> None:
    Path("cluster.yaml").write_text("cluster: {backend: 'null'}")
    with pytest.raises(ConfigError, match=said):
        genie.init_cluster(**settings)  # type: ignore[arg-type]


def test_init_cluster_takes_settings(world: World) -> None:
    Path("cluster.yaml").write_text("cluster: {backend: other}")
    genie.init_cluster(timeout=7)
    assert (genie.settings().backend, genie.settings().timeout) == ("other", 7.0)


def test_init_cluster_reads_the_file_of_the_working_directory(world: World) -> None:
    Path("cluster.yaml").write_text("cluster:\n  backend: other\n  scheduling: {policy: min_cost}\n")
    genie.init_cluster()
    assert (genie.settings().backend, genie.settings().policy) == ("other", "min_cost")
    genie.init_cluster("cluster.yaml")
    Path("cluster.yaml").write_text("cluster:\n  backend: null\n")
    Path("second.yaml").write_text("cluster:\n  backend: 'null'\n")
    with pytest.raises(ConfigError, match="already running"):
        genie.init_cluster("second.yaml")


def test_rdma_needs_its_backend(world: World) -> None:
    Path("cluster.yaml").write_text("cluster:\n  backend: other\n")
    # Without it, it is not found; with it, it finds no nodes in this file.
    with pytest.raises((PluginNotFound, ConfigError), match="dpdk"):
        genie.init_cluster(rdma=True)


def test_set_backend_before_and_after_the_first_use(world: World) -> None:
    genie.set_backend("other")
    assert genie.engine(0).device.id == "null:0"
    assert genie.settings().backend == "other"
    genie.set_backend("other")
    with pytest.raises(ConfigError, match="backend='other', not 'null'"):
        genie.set_backend("null")
    with pytest.raises(PluginNotFound, match="nul1"):
        genie.set_backend("nul1")


def test_the_first_backend_that_can_be_had_is_taken(world: World) -> None:
    def refuse(settings: genie.Settings) -> NullBackend:
        raise BackendUnavailable("nobody there")

    genie.register_backend("other", refuse)
    genie.settings()  # sets logs up
    with capture_logs() as events:
        genie.init(backend="missing,other,null")
    assert genie.device_count() == 2
    assert [event["backend"] for event in events] == ["missing", "other"]
    assert "nobody there" in events[1]["error"]


def test_the_last_ones_error_is_raised_when_none_can(world: World) -> None:
    with pytest.raises(PluginNotFound, match="last"):
        genie.init(backend="missing,last")


def test_log_level_may_change_at_any_time(world: World) -> None:
    genie.init()
    genie.set_log_level("debug")
    assert genie.settings().log_level == "DEBUG"
    with pytest.raises(ConfigError, match="LOUD"):
        genie.set_log_level("LOUD")


def test_shutdown_ends_sessions_and_tells_frontends_first(world: World) -> None:
    order: list[bool] = []
    engine = genie.engine()
    session = world.made[0].sessions[0]
    genie.on_shutdown(lambda: order.append(session._closed))
    genie.shutdown()
    assert order == [False]
    assert session._closed
    assert genie.engine() is not engine
    assert len(world.made) == 2


def test_a_forked_child_does_not_use_its_parents_sessions(world: World) -> None:
    genie.engine()
    parent = world.made[0].sessions[0]
    child = os.fork()
    if child == 0:
        # Nothing but the exit status may leave the child: pytest lives in it too.
        os._exit(0 if runtime.current().sessions() == [] and not parent._closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- engines -------------------------------------------------------------------------------------


def test_an_engine_prepares_plans_and_counts(world: World) -> None:
    before = genie.get_stats()
    engine = genie.engine(0)
    assert engine is genie.engine(0)
    assert isinstance(engine.session, Session)
    assert engine.prepare(graph()) == engine.prepare(graph())
    stats = genie.get_stats()
    assert stats["graphs"] - before.get("graphs", 0) == 2
    assert stats["graph_nodes"] - before.get("graph_nodes", 0) == 4
    assert stats["plans"] == 1


def test_device_indexes_count_the_backends_devices(world: World) -> None:
    assert [device.id for device in genie.devices()] == ["null:0", "null:1"]
    assert genie.engine(1).device.id == "null:1"
    assert genie.engine() is genie.engine(2)  # all of them
    assert genie.engine().device.id == "null:0+null:1"
    for index in (3, -1):
        with pytest.raises(ConfigError, match=rf"no device {index}.*null:0, null:1") as caught:
            genie.engine(index)
        assert caught.value.hint == "0 is null:0, 1 is null:1; 2, or no number, is all of them"


def test_engines_from_many_threads_are_one(world: World) -> None:
    barrier, found = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait(timeout=10)
        found.append(genie.engine(0))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert len(world.made[0].sessions) == 1


# --- capture -------------------------------------------------------------------------------------


def test_capturing_is_per_thread_nests_and_ends_on_exceptions(world: World) -> None:
    seen: list[bool] = []
    assert not genie.is_capturing()
    with genie.capture() as captured:
        assert captured == "captured"
        with genie.capture():
            assert genie.is_capturing()
        assert genie.is_capturing()
        thread = threading.Thread(target=lambda: seen.append(genie.is_capturing()))
        thread.start()
        thread.join(timeout=10)
    assert seen == [False]

    def fails() -> None:
        with genie.capture():
            raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    assert not genie.is_capturing()


def test_get_graph_is_this_threads_latest(world: World) -> None:
    with pytest.raises(CaptureError, match="no graph"):
        genie.get_graph()
    genie.run(program, Row(1), Row(2))
    assert [node.operation for node in genie.get_graph().nodes()] == ["aten::add", "aten::mul"]
    assert genie.get_graph().backend_type == "fx"


def test_annotate_runs_registered_patterns(world: World) -> None:
    class Sums(genie.PatternMatcher):
        def match(self, graph):  # type: ignore[no-untyped-def]
            return [[node] for node in graph.nodes() if node.operation == "aten::add"]

        def annotate(self, nodes):  # type: ignore[no-untyped-def]
            return {node.id: {"semantic_role": "sum"} for node in nodes}

    assert "semantic_role" not in genie.annotate(graph()).get_node(0).metadata
    genie.register_pattern(Sums())
    try:
        assert genie.annotate(graph()).get_node(0).metadata["semantic_role"] == "sum"
    finally:
        registry.unregister("pattern", "Sums")
    assert "semantic_role" not in genie.annotate(graph()).get_node(0).metadata


def test_analyzer_debug_logs_what_patterns_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sums(genie.PatternMatcher):
        name = "sums"

        def match(self, graph):  # type: ignore[no-untyped-def]
            return [[node] for node in graph.nodes() if node.operation == "aten::add"]

        def annotate(self, nodes):  # type: ignore[no-untyped-def]
            return {node.id: {"semantic_role": "sum"} for node in nodes}

    monkeypatch.setenv("GENIE_ANALYZER_DEBUG", "1")
    genie.register_pattern(Sums())
    try:
        genie.settings()  # sets logs up
        with capture_logs() as events:
            genie.annotate(graph())
    finally:
        registry.unregister("pattern", "sums")
    (event,) = [event for event in events if event["event"] == "label" and event["label"] == "role"]
    assert (event["node"], event["operation"]) == (0, "aten::add.Tensor")
    assert "sums" in event["reason"]


def test_a_pattern_that_cannot_be_made_hinders_nobody(world: World) -> None:
    genie.settings()  # sets logs up
    registry.register("pattern", "bad", lambda settings: 1 / 0)
    try:
        with capture_logs() as events:
            assert len(genie.annotate(graph()).steps) == 2
    finally:
        registry.unregister("pattern", "bad")
    assert [event["pattern"] for event in events if event["log_level"] == "warning"] == ["bad"]


# --- run, compile, execute -----------------------------------------------------------------------


def test_run_is_the_program(world: World) -> None:
    assert genie.run(program, Row(1, 2), Row(3, 4)).numbers == program(Row(1, 2), Row(3, 4)).numbers == [12, 18]


def test_a_second_run_reuses_the_plan(world: World) -> None:
    genie.run(program, Row(1, 2), Row(3, 4))
    genie.run(program, Row(5, 6), Row(7, 8))
    assert (world.frontend.compiled, world.frontend.prepared) == (1, 1)
    assert genie.compile(program) is genie.compile(program)


def test_programs_are_told_apart_and_bounded_in_number(world: World) -> None:
    for scale in range(40):
        assert genie.run(lambda x, scale=scale: x * float(scale), Row(2)).numbers == [2 * scale]
    assert len(genie.api._compiled) <= 16


def test_run_takes_a_backend_devices_and_a_policy(world: World) -> None:
    genie.run(program, Row(1), Row(2), backend="other", policy="min_cost")
    assert len(world.made) == 1
    second = genie.devices()[1]
    genie.run(program, Row(1), Row(2), devices=[second])
    assert world.made[-1].sessions[-1].device.id == "null:1"
    with pytest.raises(ConfigError, match="gpu7"):
        genie.run(program, Row(1), Row(2), devices=[Device(id="gpu7", type="GPU", memory_gb=1, compute_tflops=1)])
    with pytest.raises(ConfigError, match="no device"):
        genie.run(program, Row(1), Row(2), devices=[])


def test_a_frontend_is_found_by_the_program_or_by_name(world: World) -> None:
    assert genie.run(program, Row(1), Row(2), frontend="rows").numbers == [9]
    with pytest.raises(PluginNotFound, match="cobol"):
        genie.run(program, Row(1), Row(2), frontend="cobol")


def test_execute_with_a_frontends_tensors(world: World) -> None:
    (out,) = genie.execute(plan(), [Row(1, 2), Row(3, 4)])
    assert isinstance(out, Row)
    assert out.numbers == [12, 18]


def test_execute_with_bytes_and_arrays(world: World) -> None:
    from array import array

    x, y = array("f", [1, 2]), array("f", [3, 4])
    (out,) = genie.execute(plan(), [x, (genie.TensorSpec((2,), "float32"), y.tobytes())])
    assert isinstance(out, genie.HostValue)
    assert list(out.data.cast("f")) == [12, 18]
    (row,) = genie.execute(plan(), [x, y], frontend="rows")
    assert isinstance(row, Row)


def test_execute_local_uses_the_local_backend(world: World) -> None:
    genie.engine()
    genie.execute_local(plan("anywhere"), [Row(1, 2), Row(3, 4)])
    assert len(world.made) == 2


def test_execute_runs_on_the_plans_device(world: World) -> None:
    genie.execute(plan("null:1"), [Row(1, 2), Row(3, 4)])
    assert world.made[0].sessions[-1].device.id == "null:1"


def test_execute_refuses_what_does_not_fit(world: World) -> None:
    with pytest.raises(PlanError, match=r"takes 2 inputs, 1 were given.*\n.*row0, row1"):
        genie.execute(plan(), [Row(1, 2)])
    with pytest.raises(PlanError, match=r"input 1 \(row1\) must be float32\[2\], not float32\[3\]"):
        genie.execute(plan(), [Row(1, 2), Row(3, 4, 5)])
    with pytest.raises(ConfigError, match="no frontend accepts"):
        genie.execute(plan(), [Row(1, 2), object()])


@pytest.mark.parametrize("chosen", [object, object(), 3, ["min_cost"]])
@pytest.mark.parametrize("kind", ["policy", "backend", "frontend"])
def test_what_is_chosen_by_name_is_a_name(world: World, kind: str, chosen: object) -> None:
    for verb in (genie.compile, lambda program, **chosen: genie.run(program, Row(1), Row(2), **chosen)):
        with pytest.raises(ConfigError, match=f"a {kind} is chosen by its name, not by ") as caught:
            verb(program, **{kind: chosen})
        assert f"genie.register_{kind}(name, factory)" in caught.value.hint


def test_a_program_is_to_be_called(world: World) -> None:
    with pytest.raises(ConfigError, match="not to be called: None"):
        genie.run(None, Row(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("devices", [3, "null:0", {"null:0": 1}])
def test_devices_are_a_list(world: World, devices: object) -> None:
    with pytest.raises(ConfigError, match="devices= must be a list of devices"):
        genie.compile(program, devices=devices)  # type: ignore[arg-type]


@pytest.mark.parametrize("unknown", ["gpu7", 3, [], Device(id="gpu7", type="GPU", memory_gb=1, compute_tflops=1)])
def test_one_unknown_device_among_those_of_a_call_is_refused_before_anything_runs(
    world: World, unknown: object
) -> None:
    with pytest.raises(ConfigError, match="null:0, null:1"):
        genie.run(program, Row(1), Row(2), devices=["null:0", unknown])  # type: ignore[list-item]
    assert world.made[0].sessions == []


@pytest.mark.parametrize("pins", [{0: "null:0", 1: "gpu7"}, {0: "gpu7", 1: "gpu7"}])
def test_a_plan_with_a_device_that_is_not_here_is_refused_before_anything_runs(
    world: World, pins: dict[int | str, str]
) -> None:
    """But one that was made for other devices altogether, and uses one of them, runs here."""
    gpu = Device(id="gpu7", type="GPU", memory_gb=1, compute_tflops=1)
    plan = genie.Scheduler([genie.devices()[0], gpu]).schedule(graph(), pins=pins)
    with pytest.raises(ConfigError, match="device 'gpu7' is not one of this runtime's: null:0, null:1"):
        genie.execute(plan, [Row(1, 2), Row(3, 4)])
    assert world.made[0].sessions == []
    (out,) = genie.execute(genie.Scheduler([gpu]).schedule(graph()), [Row(1, 2), Row(3, 4)])
    assert out.numbers == [12, 18]


def test_what_is_no_plan_is_said_to_be_none(world: World) -> None:
    with pytest.raises(PlanError, match="this is no plan: None"):
        genie.execute(None, [])  # type: ignore[arg-type]


def test_a_plan_over_two_devices_runs_on_both(world: World) -> None:
    class Split(genie.PlacementStrategy):
        def place(self, graph, devices):  # type: ignore[no-untyped-def]
            return {node.id: devices[node.id % 2].id for node in graph.nodes()}

    scheduler = genie.Scheduler(genie.devices())
    scheduler.set_placement_strategy(Split())
    plan = scheduler.schedule(graph())
    assert set(plan.placement.values()) == {"null:0", "null:1"}
    (out,) = genie.execute(plan, [Row(1, 2), Row(3, 4)])
    assert out.numbers == [12, 18]
    assert genie.get_stats()["values_carried"] == 1


def test_async_users(world: World) -> None:
    async def main() -> list[list[float]]:
        rows = await asyncio.gather(*(genie.aio.run(program, Row(k, k), Row(1, 1)) for k in range(4)))
        (out,) = await genie.aio.execute(plan(), [Row(1, 2), Row(3, 4)])
        return [*(row.numbers for row in rows), out.numbers]

    assert asyncio.run(main()) == [[3, 3], [6, 6], [9, 9], [12, 12], [12, 18]]


def test_errors_of_an_operator_leave_the_session_alive(world: World) -> None:
    with pytest.raises(RemoteOpError):
        genie.run(lambda x, y: x + y, Row(1, 2), Row(1, 2, 3))
    assert genie.run(lambda x, y: x + y, Row(1, 2), Row(1, 2)).numbers == [2, 4]
