"""Artifacts of graphs: what fits, how plans choose, what travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from genie import codec
from genie.device import Device
from genie.engines import everything
from genie.errors import ConfigError, GraphError, PlanError, SchedulingError
from genie.graph import Abstract, Artifact, Graph, Input, Node, Ref, TensorSpec, verify, with_artifacts
from genie.plan import EngineChoice, ExecutionPlan, bare
from genie.plan import verify as verify_plan
from genie.schedule import Scheduler
from genie.schedule.compiled import CALLS
from genie.spread.parts import split

CPU = Device(id="cpu", type="CPU", memory_gb=8, compute_tflops=0.2, engines=("xla:stablehlo/1",))
PLAIN = Device(id="plain", type="CPU", memory_gb=8, compute_tflops=0.2)
FACE = Abstract((4,), "uint32")
ARTIFACT = Artifact("stablehlo/1", b"bytes", (1,), (FACE,), (FACE,))


def chain(steps: int, *artifacts: Artifact) -> Graph:
    spec = TensorSpec((4,), "int32")
    nodes = tuple(Node(i, "aten::neg", "", (Ref(1 if i == 0 else i + 1),), (i + 2,)) for i in range(steps))
    return Graph((spec,) * (steps + 2), (Input(0), Input(1)), nodes, (steps + 1,), forms=artifacts or UNSET)


def planned(graph: Graph, *devices: Device) -> ExecutionPlan:
    return Scheduler(devices=devices or (CPU,)).schedule(graph)


def test_a_graph_is_verified_with_its_artifacts() -> None:
    verify(chain(2, ARTIFACT))
    assert chain(2, ARTIFACT).fingerprint != chain(2).fingerprint


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"takes": (2,)}, "takes inputs"),
        ({"takes": (-1,)}, "takes inputs"),
        ({"takes": (1, 1), "operands": (FACE, FACE)}, "one twice"),
        ({"operands": ()}, "0 operands, the graph 1"),
        ({"results": (FACE, FACE)}, "2 results, the graph 1"),
        ({"operands": (Abstract((5,), "uint32"),)}, "operand 0"),
        ({"results": (Abstract((4,), "int64"),)}, "result 0"),
        ({"results": (Abstract((4,), "quaternion"),)}, "result 0"),
    ],
)
def test_an_artifact_has_the_graphs_interface(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(GraphError, match=told):
        verify(chain(2, replace(ARTIFACT, **changes)))
    sound = chain(2)
    verify(sound)
    with pytest.raises(GraphError, match=told):
        with_artifacts(sound, (replace(ARTIFACT, **changes),))


def test_a_graph_that_writes_to_its_inputs_has_none() -> None:
    graph = chain(1, ARTIFACT)
    (node,) = graph.steps
    with pytest.raises(GraphError, match="writes to an input"):
        verify(replace(graph, steps=(replace(node, operation="aten::neg_", mutates=(1,)),)))


def test_two_artifacts_of_a_kind_are_refused() -> None:
    with pytest.raises(GraphError, match="kinds"):
        verify(chain(1, ARTIFACT, ARTIFACT))


def test_many_small_steps_are_compiled_and_few_are_not() -> None:
    few, many = planned(chain(2, ARTIFACT)), planned(chain(3000, ARTIFACT))
    assert few.engine is not None and many.engine is not None
    assert (few.engine.name, many.engine.name) == ("", "xla")
    made = many.engine
    assert made.seconds + made.making / CALLS < made.steps == many.latency
    assert "engine xla: " in many.text() and "engine step by step: " in few.text()
    assert "xla: " in str(many.explain(0))


def test_nothing_is_chosen_where_nothing_can_be() -> None:
    assert planned(chain(3000)).engine is None
    assert planned(chain(3000, ARTIFACT), PLAIN).engine is None
    assert planned(chain(3000, replace(ARTIFACT, kind="stablehlo/2"))).engine is None


def test_what_is_required_is_chosen_or_refused() -> None:
    required = replace(ARTIFACT, required=True)
    made = planned(chain(1, required)).engine
    assert made is not None and made.name == "xla" and made.required
    with pytest.raises(SchedulingError, match="plain has no engine for that"):
        planned(chain(1, required), PLAIN)


def test_a_graph_without_artifacts_says_nothing_of_them() -> None:
    assert b"forms" in codec.encode(chain(1, ARTIFACT)) and b"forms" not in codec.encode(chain(1))


def test_only_what_is_to_be_compiled_travels() -> None:
    few, many = bare(planned(chain(2, ARTIFACT))), bare(planned(chain(3000, ARTIFACT)))
    assert few.graph.artifacts == () and few.engine is None
    assert many.graph.artifacts == (ARTIFACT,) and many.engine == EngineChoice("xla", "stablehlo/1")
    assert codec.decode_plan(codec.encode(many)) == many


def test_a_plan_names_an_artifact_it_has() -> None:
    plan = planned(chain(3000, ARTIFACT))
    assert plan.engine is not None
    for engine in (replace(plan.engine, kind="other/1"), replace(plan.engine, seconds=-1.0)):
        with pytest.raises(PlanError, match="engine"):
            verify_plan(replace(plan, engine=engine))


@pytest.mark.parametrize("engines", [("xla",), ("XLA:stablehlo/1",), ("xla:stablehlo",), ("a:b/1",) * 17])
def test_a_device_states_engines_with_kinds(engines: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="engines must be names"):
        replace(PLAIN, engines=engines)


def test_several_devices_have_the_engines_of_each() -> None:
    assert everything((CPU, PLAIN)).engines == CPU.engines
    assert CPU.engine_for("stablehlo/1") == "xla" and not CPU.engine_for("stablehlo/2")


def test_the_part_of_a_plan_that_is_all_of_it_keeps_the_artifact() -> None:
    plan = planned(chain(3000, ARTIFACT), CPU, PLAIN)
    assert plan.engine is not None and plan.engine.name == "xla"
    (part,) = split(plan).parts
    assert part.plan.engine == plan.engine
    assert [each.takes for each in part.plan.graph.artifacts] == [(0,)]  # of the inputs, the steps take the second


def test_a_part_whose_steps_take_less_than_the_artifact_runs_by_its_steps() -> None:
    both = replace(ARTIFACT, takes=(0, 1), operands=(FACE, FACE))
    (part,) = split(planned(chain(3000, both), CPU, PLAIN)).parts
    assert part.plan.engine is None and not part.plan.graph.artifacts
    with pytest.raises(PlanError, match="has to run compiled"):
        split(planned(chain(1, replace(both, required=True)), CPU, PLAIN))


def test_what_is_required_is_not_split() -> None:
    class Halves:
        name = "halves"

        def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
            return {node.id: devices[node.id % 2].id for node in graph.steps}

    scheduler = Scheduler(devices=[CPU, replace(PLAIN, engines=CPU.engines)])
    scheduler.set_placement_strategy(Halves())
    assert scheduler.schedule(chain(4, ARTIFACT)).engine is None
    with pytest.raises(SchedulingError, match="placed on several devices"):
        scheduler.schedule(chain(4, replace(ARTIFACT, required=True)))
