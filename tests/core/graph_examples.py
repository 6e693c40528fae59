"""Graphs that several test files use: one written by hand, and a Hypothesis strategy for any."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from genie.device import Device
from genie.graph import (
    DTYPES,
    Const,
    Evidence,
    Graph,
    Input,
    Many,
    Module,
    Node,
    Ref,
    ScalarTensor,
    Semantics,
    TensorSpec,
)

# The same examples every time, and no clock: a busy machine is no failure.
settings.register_profile("genie", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("genie")

GPU = Device(id="gpu0", type="GPU", memory_gb=16, compute_tflops=10, network_gbps=100, address="10.0.0.1:8888")
CPU = Device(id="cpu0", type="CPU", memory_gb=64, compute_tflops=1, network_gbps=10, address="10.0.0.2:8888")


def attention_step() -> Graph:
    """A cache write in place through a view, then attention on it: every feature of the format once."""
    token = TensorSpec((1, 2, 1, 4), "float32")
    cache = TensorSpec((1, 2, 8, 4), "float32")
    slot = TensorSpec((1, 2, 1, 4), "float32", (64, 32, 4, 1))
    return Graph(
        values=(
            TensorSpec((1, 8), "float32"),
            TensorSpec((8, 8), "float32"),
            cache,
            TensorSpec((1, 8), "float32"),
            token,
            slot,
            token,
            TensorSpec((1, 2, 1, 8), "float32"),
            TensorSpec((1, 2, 1, 16), "bfloat16"),
            TensorSpec((), "int64"),
        ),
        inputs=(
            Input(0, "x", "input", donated=True),
            Input(1, "layer.weight", "parameter"),
            Input(2, "", "state"),
        ),
        steps=(
            Node(0, "aten::linear", "", (Ref(0), Ref(1), None), (3,), module=0, source=0),
            Node(1, "aten::view", "", (Ref(3), Many((1, 2, 1, 4))), (4,), aliases=((4, 3),), module=0, source=0),
            Node(2, "aten::slice", "Tensor", (Ref(2), 2, 3, 4, 1), (5,), aliases=((5, 2),), module=0, source=1),
            Node(3, "aten::copy_", "", (Ref(5), Ref(4), False), (-1,), mutates=(5,), module=0, source=1),
            Node(
                4,
                "aten::scaled_dot_product_attention",
                "",
                (Ref(4), Ref(2), Ref(2), None, 0.0, False),
                (6,),
                module=1,
                source=2,
                semantics=Semantics(
                    role="attention",
                    phase="decode",
                    evidence=(Evidence("role", "framework", "the operator's name"),),
                ),
            ),
            Node(5, "aten::cat", "", (Many((Ref(4), Ref(6))), -1), (7,), source=3),
            Node(
                6,
                "aten::_to_copy",
                "",
                (Ref(7), Const("dtype", "bfloat16"), None, Const("device", "self"), None, False, None),
                (8,),
            ),
            Node(7, "aten::add", "Tensor", (ScalarTensor("int64", 3, True), ScalarTensor("int64", 4, False), 2), (9,)),
        ),
        outputs=(8, 9),
        modules=(Module("layers.0", "Block"), Module("layers.0.attention", "Attention")),
        sources=("model.py:10", "model.py:11", "model.py:12", 'say "hi".py:1'),
        name="decode",
    )


_int64 = st.integers(-(2**63), 2**63 - 1)
_names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
_consts = st.sampled_from(
    [
        Const("dtype", "float16"),
        Const("layout", "strided"),
        Const("memory_format", "channels_last"),
        Const("device", "self"),
        Const("generator", "17"),
        Const("complex", "(1-2j)"),
    ]
)
_plain = st.one_of(st.none(), st.booleans(), _int64, st.floats(), _names, _consts) | st.builds(
    ScalarTensor, st.sampled_from(sorted(DTYPES)), st.booleans() | _int64 | st.floats(), st.booleans()
)
_semantics = st.builds(
    Semantics,
    role=st.none() | _names,
    phase=st.none() | _names,
    flops=st.none() | st.integers(0, 2**63 - 1),
    bytes_read=st.none() | st.integers(0, 2**63 - 1),
    bytes_written=st.none() | st.integers(0, 2**63 - 1),
    priority=st.none() | _int64,
    parallelizable=st.none() | st.booleans(),
    evidence=st.lists(
        st.builds(Evidence, _names, st.sampled_from(["user", "framework", "lineage", "structure"]), _names),
        max_size=2,
    ).map(tuple),
)


@st.composite
def _specs(draw: st.DrawFn) -> TensorSpec:
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=4)))
    stride = tuple(draw(st.lists(st.integers(0, 99), min_size=len(shape), max_size=len(shape))))
    return TensorSpec(shape, draw(st.sampled_from(sorted(DTYPES))), stride if draw(st.booleans()) else None)


@st.composite
def graphs(draw: st.DrawFn, most: int = 12) -> Graph:
    """Any graph that keeps the rules: operators are arbitrary names, arguments of every kind."""
    values = draw(st.lists(_specs(), max_size=4))
    origins = st.sampled_from(["", "parameter", "buffer", "input", "state", "constant"])
    inputs = [Input(v, draw(_names), draw(origins), draw(st.booleans())) for v in range(len(values))]
    modules = draw(st.lists(st.builds(Module, _names, _names), max_size=2))
    sources = draw(st.lists(_names, max_size=2))
    steps: list[Node] = []
    identity = -1
    for _ in range(draw(st.integers(0, most))):
        refs = st.sampled_from(range(len(values))).map(Ref) if values else st.nothing()
        leaves = _plain | refs
        args = tuple(draw(st.lists(leaves | st.lists(leaves, max_size=3).map(lambda x: Many(tuple(x))), max_size=4)))
        identity += draw(st.integers(1, 3))
        node = Node(identity, draw(st.sampled_from(["aten::add", "prims::x", "aten::linear"])), "Tensor", args, ())
        operands = sorted(set(node.operands()))
        makes = []
        for _ in range(draw(st.integers(0, 2))):
            if draw(st.booleans()):
                values.append(draw(_specs()))
                makes.append(len(values) - 1)
            else:
                makes.append(-1)
        fresh = [value for value in makes if value >= 0]
        pairs = [(draw(st.sampled_from(fresh)), draw(st.sampled_from(operands)))] if fresh and operands else []
        steps.append(
            Node(
                identity,
                node.operation,
                draw(st.sampled_from(["", "Tensor", "out"])),
                args,
                tuple(makes),
                tuple(operands[: draw(st.integers(0, 1))]),
                tuple(pairs if draw(st.booleans()) else ()),
                draw(st.integers(-1, len(modules) - 1)),
                draw(st.integers(-1, len(sources) - 1)),
                draw(st.none() | _semantics),
            )
        )
    outputs = draw(st.lists(st.sampled_from(range(len(values))), max_size=3)) if values else []
    return Graph(
        tuple(values), tuple(inputs), tuple(steps), tuple(outputs), tuple(modules), tuple(sources), name=draw(_names)
    )
