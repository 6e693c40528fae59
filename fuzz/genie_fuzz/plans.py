"""Plans whose operators are safe with any operands, for sessions under fuzz: PyTorch's own faults are not what is
looked for. Their parameters are all the fuzzer's."""

from __future__ import annotations

from functools import cache

from genie import codec
from genie.bindings import parameters
from genie.device import Device
from genie.graph import Arg, Const, Graph, Input, Many, Node, Ref, ScalarTensor, TensorSpec
from genie.graph.regions import SCAN, scan
from genie.schedule import Scheduler

_F = TensorSpec((4,), "float32")
_GENERATOR = Const("generator", "3")
_FULL: tuple[Arg, ...] = (Const("dtype", "float32"), None, Const("device", "self"), None)
_CALLS: tuple[tuple[str, str, int, tuple[Arg, ...]], ...] = (
    # operation, overload, tensors, further arguments
    ("aten::add", "Tensor", 2, (1,)),
    ("aten::mul", "Tensor", 1, (ScalarTensor("float64", 2.5, True),)),
    ("aten::as_strided", "", 1, (Many((2, 2)), Many((1, 1)), 1)),
    ("aten::slice", "Tensor", 1, (0, 1, 3, 1)),
    ("aten::view", "", 1, (Many((2, 2)),)),
    ("aten::select", "int", 1, (0, 1)),
    ("aten::full", "", 0, (Many((3, 3)), 2.5, *_FULL)),
    ("aten::arange", "start_step", 0, (0, 9, 2, Const("dtype", "int64"), None, Const("device", "self"), None)),
    ("aten::rand", "generator", 0, (Many((4,)), _GENERATOR, *_FULL)),
    ("aten::take", "", 2, ()),
    ("aten::cat", "", -2, (0,)),
)


@cache
def library() -> tuple[tuple[bytes, Graph], ...]:
    """Encoded plans with their graphs: one operator each, one that writes in place, one that donates."""
    graphs = [_single(*call) for call in _CALLS]
    graphs.append(
        Graph(
            values=(_F,),
            inputs=(Input(0),),
            steps=(Node(0, "aten::add_", "Tensor", (Ref(0), ScalarTensor("int64", 1, True), 1), (-1,), mutates=(0,)),),
            outputs=(0,),
        )
    )
    graphs.append(
        Graph(
            values=(_F, _F, _F),
            inputs=(Input(0, donated=True), Input(1)),
            steps=(Node(0, "aten::sub", "Tensor", (Ref(0), Ref(1), 1), (2,)),),
            outputs=(2, 2),
        )
    )
    graphs.append(_looping())
    here = Device(id="cpu:0", type="cpu", memory_gb=1, compute_tflops=1)
    scheduler = Scheduler(devices=[here])
    return tuple((codec.encode(scheduler.schedule(graph)), graph) for graph in graphs)


def _looping() -> Graph:
    """A scan: its length is the fuzzer's, and right when it is that of what is scanned."""
    body = Graph(
        values=(_F, TensorSpec((), "float32"), _F),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, "aten::add", "Tensor", (Ref(0), Ref(1), 1), (2,)),),
        outputs=(2, 2),
    )
    return Graph(
        values=(_F, _F, _F, TensorSpec((4, 4), "float32")),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, SCAN, "", scan(body, [Ref(0)], [Ref(1)], length=4), (2, 3)),),
        outputs=(2, 3),
    )


def words(graph: Graph) -> int:
    """How many an execution has."""
    return 1 + len(graph.inputs) + len(parameters(graph))


def _single(operation: str, overload: str, tensors: int, extra: tuple[Arg, ...]) -> Graph:
    count = abs(tensors)
    refs: tuple[Arg, ...] = tuple(Ref(index) for index in range(count))
    given = (Many(refs),) if tensors < 0 else refs
    return Graph(
        values=(_F,) * (count + 1),
        inputs=tuple(Input(index) for index in range(count)),
        steps=(Node(0, operation, overload, (*given, *extra), (count,)),),
        outputs=(count,),
    )
