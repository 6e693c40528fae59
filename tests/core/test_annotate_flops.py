"""Our FLOPs against ``torch.utils.flop_counter``, operator by operator, on what torch really dispatches."""

from __future__ import annotations

import pytest

from genie.annotate import annotate
from genie.graph import Graph, Input, Many, Node, Ref, TensorSpec

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402


class Recorder(TorchDispatchMode):
    """The operators torch dispatches, as a graph: shapes only."""

    def __init__(self):
        super().__init__()
        self.values, self.inputs, self.steps, self.known, self.alive = [], [], [], {}, []

    def value(self, tensor):
        if id(tensor) not in self.known:
            self.known[id(tensor)] = len(self.values)
            self.alive.append(tensor)
            self.values.append(TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")))
        return self.known[id(tensor)]

    def argument(self, arg):
        if isinstance(arg, torch.Tensor):
            if id(arg) not in self.known:
                self.inputs.append(Input(self.value(arg)))
            return Ref(self.value(arg))
        if isinstance(arg, list | tuple):
            return Many(tuple(self.argument(item) for item in arg))
        return arg if arg is None or isinstance(arg, bool | int | float | str) else None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = tuple(map(self.argument, args))
        result = func(*args, **(kwargs or {}))
        flat = result if isinstance(result, list | tuple) else (result,)
        made = tuple(
            self.value(item) if isinstance(item, torch.Tensor) and id(item) not in self.known else -1 for item in flat
        )
        name, overload = func._schema.name, func._schema.overload_name
        self.steps.append(Node(len(self.steps), name, overload, given, made))
        return result

    def graph(self):
        return annotate(Graph(tuple(self.values), tuple(self.inputs), tuple(self.steps), ()))


def r(*shape):
    return torch.randn(*shape, requires_grad=True)


def sdpa(q, k, v):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


PROGRAMS = {
    "mm": lambda: r(3, 4) @ r(4, 5),
    "addmm": lambda: torch.addmm(r(5), r(3, 4), r(4, 5)),
    "bmm": lambda: torch.bmm(r(2, 3, 4), r(2, 4, 5)),
    "baddbmm": lambda: torch.baddbmm(r(2, 3, 5), r(2, 3, 4), r(2, 4, 5)),
    "linear": lambda: F.linear(r(2, 3, 4), r(5, 4), r(5)),
    "matmul": lambda: r(2, 3, 4) @ r(4, 5),
    "conv1d": lambda: F.conv1d(r(2, 4, 9), r(6, 4, 3), r(6), padding=1),
    "conv2d": lambda: F.conv2d(r(2, 4, 9, 7), r(6, 4, 3, 2), stride=2),
    "conv2d groups": lambda: F.conv2d(r(2, 4, 9, 7), r(6, 2, 3, 3), groups=2),
    "conv3d": lambda: F.conv3d(r(1, 2, 5, 5, 5), r(3, 2, 2, 2, 2)),
    "transposed": lambda: F.conv_transpose2d(r(2, 4, 5, 5), r(4, 6, 3, 3), stride=2),
    "attention": lambda: sdpa(r(2, 4, 5, 16), r(2, 4, 7, 16), r(2, 4, 7, 16)),
    "no product": lambda: (r(3) + 1).exp().sum(),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_the_count_is_torchs(program, backward):
    with Recorder() as recorder, FlopCounterMode(display=False) as counter:
        # The counter is innermost: it sees what the program calls; the recorder sees what the counter passes on.
        result = program()
        if backward:
            result.sum().backward()
    known = [node.semantics.flops for node in recorder.graph().steps]
    # The CPU's attention kernel is new to the counter in some releases.
    expected = counter.get_total_flops()
    if any("for_cpu" in node.operation for node in recorder.steps) and not expected:
        expected = 2 * (2 * 4 * 5 * 7 * 16 * 2) + (5 * 2 * 2 * 4 * 5 * 7 * 16 if backward else 0)
    assert None not in known
    assert sum(known) == expected
    assert (expected > 0) == (result.dim() > 0)


@pytest.mark.parametrize(
    ("steps", "lowered"),
    [
        (Node(0, "aten::linear", "", (Ref(0), Ref(1), None), (2,)), 2 * 2 * 3 * 4 * 5),
        (Node(0, "aten::scaled_dot_product_attention", "", (Ref(3), Ref(4), Ref(4)), (2,)), 2 * 6 * 5 * 7 * (8 + 8)),
        (Node(0, "aten::conv2d", "", (Ref(5), Ref(6), None), (7,)), 2 * 2 * 6 * 3 * 3 * 4 * 9),
        (
            Node(0, "aten::linear_backward", "", (Ref(0), Ref(2), Ref(1), Many((True, True, False))), (8, 9, -1)),
            2 * 2 * 2 * 3 * 4 * 5,
        ),
    ],
    ids=["linear", "attention", "conv2d", "linear_backward"],
)
def test_operators_kept_whole_count_as_what_they_become(steps, lowered):
    shapes = [(2, 3, 4), (5, 4), (2, 3, 5), (1, 6, 5, 8), (1, 6, 7, 8), (2, 4, 5, 5), (6, 4, 3, 3), (2, 6, 3, 3)]
    values = [TensorSpec(shape, "float32") for shape in [*shapes, (2, 3, 4), (5, 4)]]
    inputs = tuple(Input(value) for value in range(len(values)) if value not in steps.outputs)
    [node] = annotate(Graph(tuple(values), inputs, (steps,), ())).steps
    assert node.semantics.flops == lowered
