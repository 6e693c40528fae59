"""Classes of operators, fitted rooflines, appraisals."""

from __future__ import annotations

import math
import random

import pytest
from core.graph_examples import attention_step
from hypothesis import given, settings
from hypothesis import strategies as st

from genie.annotate import annotate
from genie.device import Device
from genie.graph import Graph, Input, Many, Node, Ref, TensorSpec
from genie.interfaces import Appraising
from genie.schedule import Roofline, RooflineCostModel
from genie.schedule.cost import CLASSES, Calibration, Fitted, Sample, classify, fit, on_device, traits
from genie.schedule.memory import growth

DEVICE = Device(id="gpu0", type="GPU", memory_gb=16, compute_tflops=10, memory_bandwidth_gb_s=800)
PEAK, SPEED = 10e12, 800e9
START = Roofline(0.7, 0.75, 5e-6, 2e7)


@pytest.mark.parametrize(
    ("operation", "flops", "moved", "kind"),
    [
        ("aten::mm", 10**9, 10**6, "gemm"),
        ("aten::linear", 10**6, 10**6, "gemm"),
        ("aten::bmm", 10**9, 10**6, "batched gemm"),
        ("aten::scaled_dot_product_attention", 10**9, 10**6, "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", 10**9, 10**6, "attention"),
        ("aten::convolution", 10**9, 10**6, "convolution"),
        ("aten::convolution_backward", 10**9, 10**6, "convolution"),
        ("aten::native_layer_norm", 0, 10, "reduction"),
        ("aten::_softmax_backward_data", 0, 10, "reduction"),
        ("aten::add_", 0, 10, "elementwise"),
        ("aten::__and__", 0, 10, "elementwise"),
        ("aten::gelu_backward", 0, 10, "elementwise"),
        ("aten::embedding", 0, 10, "gather"),
        ("aten::cat", 0, 10, "layout"),
        ("aten::copy_", 0, 10, "layout"),
        ("aten::view", 0, 0, "view"),
        ("aten::empty_like", 0, 0, "view"),
        ("aten::native_dropout", 0, 10, "random"),
        ("aten::_linalg_svd", 0, 10, "other"),
        ("mine::thing", 0, 10, "other"),
    ],
)
def test_classes(operation: str, flops: int, moved: int, kind: str) -> None:
    assert classify(operation, flops, moved) == kind
    assert kind in CLASSES


def test_a_product_is_skinny_where_reading_its_weight_is_the_work() -> None:
    assert on_device("gemm", 2 * 8 * 1024**2, 4 * 1024**2, ridge=100) == "gemv"
    assert on_device("gemm", 2 * 8 * 1024**2, 4 * 1024**2, ridge=5) == "gemm"
    assert on_device("attention", 1, 10**6, ridge=100) == "attention"


def _seconds(roof: Roofline, flops: float, moved: float) -> float:
    compute = (flops + roof.knee) / (PEAK * roof.compute) if flops else 0.0
    return roof.overhead + max(compute, moved / (SPEED * roof.memory))


def _samples(roof: Roofline, count: int, noise: float, rng: random.Random) -> list[Sample]:
    made = []
    for _ in range(count):
        m, n, k = (2 ** rng.uniform(4, 13) for _ in range(3))
        flops, moved = 2 * m * n * k, 4 * (m * n + n * k + m * k)
        made.append(Sample(flops, moved, _seconds(roof, flops, moved) * math.exp(rng.gauss(0, noise))))
    return made


@settings(max_examples=25, deadline=None)
@given(
    compute=st.floats(0.05, 1.5),
    memory=st.floats(0.1, 1.2),
    overhead=st.floats(1e-6, 5e-5),
    knee=st.floats(1e4, 1e9),
    seed=st.integers(0, 1000),
)
def test_a_fit_finds_the_roofline_that_made_the_samples(
    compute: float, memory: float, overhead: float, knee: float, seed: int
) -> None:
    true = Roofline(compute, memory, overhead, knee)
    rng = random.Random(seed)
    found = fit(_samples(true, 80, 0.0, rng), PEAK, SPEED, START)
    unseen = _samples(true, 80, 0.0, rng)
    errors = [abs(_seconds(found.roofline, s.flops, s.moved) / s.seconds - 1) for s in unseen]
    assert sum(errors) / len(errors) < 0.03
    assert found.error < 0.03
    assert found.samples == 80


def test_a_fit_withstands_noise_and_single_odd_samples() -> None:
    true, rng = Roofline(0.5, 0.7, 4e-6, 1e8), random.Random(3)
    samples = _samples(true, 60, 0.1, rng)
    odd = [sample._replace(seconds=sample.seconds * 30) for sample in samples[:5]]
    found = fit([*odd, *samples[5:]], PEAK, SPEED, START)
    unseen = _samples(true, 100, 0.0, rng)
    errors = [abs(_seconds(found.roofline, s.flops, s.moved) / s.seconds - 1) for s in unseen]
    assert sum(errors) / len(errors) < 0.1


def test_samples_without_flops_tell_bandwidth_and_overhead() -> None:
    samples = [Sample(0, 2.0**n, 3e-6 + 2.0**n / 400e9) for n in range(10, 30)]
    found = fit(samples, PEAK, SPEED, START).roofline
    assert found.memory == pytest.approx(0.5, rel=0.02)
    assert found.overhead == pytest.approx(3e-6, rel=0.02)


def test_a_fit_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        fit([Sample(1, 1, 0.0), Sample(1, 1, float("nan"))], PEAK, SPEED, START)


@pytest.mark.parametrize("bad", [{"compute": 0}, {"memory": -1}, {"overhead": float("nan")}, {"knee": float("inf")}])
def test_impossible_rooflines_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Roofline(**{"compute": 0.5, "memory": 0.5, "overhead": 1e-6, "knee": 0.0, **bad})


def _matmul(dtype: str = "float32") -> Graph:
    square = TensorSpec((1024, 1024), dtype)
    steps = (
        Node(0, "aten::mm", "", (Ref(0), Ref(0)), (1,)),
        Node(1, "aten::relu", "", (Ref(1),), (2,)),
        Node(2, "aten::t", "", (Ref(2),), (3,), aliases=((3, 2),)),
    )
    return Graph((square,) * 4, (Input(0),), steps, (3,))


def test_an_appraisal_is_the_estimate_with_what_it_is_bound_by() -> None:
    model = RooflineCostModel({"gpu0": Roofline(0.5, 0.25, 1e-6, 0.0)})
    assert isinstance(model, Appraising)
    nodes = annotate(_matmul()).nodes()
    found = model.appraise(nodes, DEVICE)
    assert [each.seconds for each in found] == [model.estimate_compute(node, DEVICE) for node in nodes]
    assert [each.bound for each in found] == ["compute", "memory", "overhead"]
    assert {(each.source, each.error) for each in found} == {("roofline", 0.0)}


def test_graphs_need_not_be_annotated_and_labelled_nodes_need_no_graph() -> None:
    model = RooflineCostModel()
    graph = attention_step()
    labelled = annotate(graph)
    bound = [each.seconds for each in model.appraise(graph.nodes(), DEVICE)]
    assert bound == [each.seconds for each in model.appraise(labelled.nodes(), DEVICE)]
    assert bound == [each.seconds for each in model.appraise(labelled.steps, DEVICE)]
    with pytest.raises(ValueError, match="annotate the graph first"):
        model.appraise(graph.steps, DEVICE)


def _fitted(overhead: float, error: float = 0.1) -> Fitted:
    return Fitted(Roofline(0.5, 0.5, overhead, 0.0), error, 10)


def test_a_calibration_has_rooflines_by_class_and_dtype() -> None:
    classes = {"gemm": _fitted(1.0), "gemm/bfloat16": _fitted(2.0), "other": _fitted(3.0, 0.5)}
    model = RooflineCostModel({"gpu0": Calibration(10, 800, classes)})
    mm, relu, _ = model.appraise(_matmul().nodes(), DEVICE)
    assert int(mm.seconds) == 1
    assert mm.error == 0.1
    assert int(relu.seconds) == 3
    assert relu.error == 0.5
    assert int(model.appraise(_matmul("bfloat16").nodes(), DEVICE)[0].seconds) == 2
    assert int(model.appraise(_matmul("float16").nodes(), DEVICE)[0].seconds) == 1


def test_a_calibration_holds_whatever_figures_the_device_is_given() -> None:
    model = RooflineCostModel({"gpu0": Calibration(10, 800, {"other": _fitted(0.0)})})
    other = Device(id="gpu0", type="GPU", memory_gb=1, compute_tflops=99)
    node = _matmul().nodes()[0]
    assert model.estimate_compute(node, DEVICE) == model.estimate_compute(node, other)


def test_traits_say_the_dtype_computed_in() -> None:
    ids, table, out = TensorSpec((4,), "int64"), TensorSpec((10, 8), "bfloat16"), TensorSpec((4, 8), "bfloat16")
    graph = Graph(
        (ids, table, out), (Input(0), Input(1)), (Node(7, "aten::embedding", "", (Ref(1), Ref(0)), (2,)),), (2,)
    )
    assert traits(graph)[7].dtype == "bfloat16"
    assert traits(graph)[7].kind == "gather"


# --- growth ------------------------------------------------------------------------------------------


def _decoder(new: int, lineage: str = "grown") -> Graph:
    cache, fresh = TensorSpec((1, 4, 9, 16), "float32"), TensorSpec((1, 4, new, 16), "float32")
    grown = TensorSpec((1, 4, 9 + new, 16), "float32")
    steps = (Node(0, "aten::cat", "", (Many((Ref(0), Ref(1))), 2), (2,)),)
    return Graph((cache, fresh, grown), (Input(0, lineage=lineage, axis=2), Input(1)), steps, (2,))  # type: ignore[arg-type]


def test_a_cache_grows_by_what_is_appended() -> None:
    assert growth(_decoder(1)) == {0: 4 * 16 * 4}
    assert growth(_decoder(5)) == {0: 5 * 4 * 16 * 4}


def test_what_is_written_or_kept_does_not_grow() -> None:
    assert growth(_decoder(1, "written")) == {}
    assert growth(_decoder(1, "kept")) == {}


def test_a_cache_that_is_appended_to_elsewhere_grows_by_one_position() -> None:
    graph = _decoder(1)
    alone = Graph(graph.values[:1], graph.inputs[:1], (), ())
    assert growth(alone) == {0: 4 * 16 * 4}
