"""Operators without a kernel on the CPU compute what the CPU computes for the same program."""

from __future__ import annotations

import pytest
import torch
from local.both import Both, Program, bits, tensor_of

from genie.errors import RemoteOpError
from genie.graph import Arg, Many


def native(both: Both, target: str, results: int, *args: torch.Tensor | bool | list[bool] | None) -> list[torch.Tensor]:
    """The operator's results by the executor."""
    program = Program()
    given: list[Arg] = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            given.append(program.input(arg.detach()))
        else:
            given.append(Many(tuple(arg)) if isinstance(arg, list) else arg)
    outputs = program.calls(target, results, *given)
    made = both.execute_native(program.graph(*outputs), [both.put(tensor) for tensor in program.given])
    return [tensor_of(both.session.fetch(handle)) for handle in made]


def same(made: list[torch.Tensor], expected: list[torch.Tensor | None]) -> None:
    for one, other in zip(made, expected, strict=True):
        assert other is not None
        assert one.shape == other.shape
        assert bits(one) == bits(other.detach()), (one - other).abs().max()


@pytest.fixture
def gates() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    cells = {"x": torch.randn(5, 6), "hx": torch.randn(5, 7), "cx": torch.randn(5, 7)}
    return {name: tensor.requires_grad_() for name, tensor in cells.items()}


@pytest.mark.parametrize("looks", ["hy", "cy", "both"])
def test_lstm_cell(both: Both, gates: dict[str, torch.Tensor], looks: str) -> None:
    cell = torch.nn.LSTMCell(6, 7, bias=False)
    x, hx, cx = gates.values()
    hy, cy = cell(x, (hx, cx))
    from_x, from_h = x @ cell.weight_ih.t(), hx @ cell.weight_hh.t()
    made = native(both, "aten::_thnn_fused_lstm_cell", 3, from_x, from_h, cx, None, None)
    same(made[:2], [hy, cy])
    grad_hy = torch.randn_like(hy) if looks != "cy" else None
    grad_cy = torch.randn_like(cy) if looks != "hy" else None
    wanted = [(out, grad) for out, grad in ((hy, grad_hy), (cy, grad_cy)) if grad is not None]
    grads = torch.autograd.grad([o for o, _ in wanted], [x, hx, cx], [g for _, g in wanted])
    grad_gates, grad_cx, grad_bias = native(
        both, "aten::_thnn_fused_lstm_cell_backward_impl", 3, grad_hy, grad_cy, cx, cy, made[2], True
    )
    same([grad_gates @ cell.weight_ih, grad_gates @ cell.weight_hh, grad_cx], list(grads))
    same([grad_bias], [grad_gates.sum(0)])


def test_gru_cell(both: Both, gates: dict[str, torch.Tensor]) -> None:
    cell = torch.nn.GRUCell(6, 7, bias=False)
    x, hx, _ = gates.values()
    hy = cell(x, hx)
    from_x, from_h = x @ cell.weight_ih.t(), hx @ cell.weight_hh.t()
    made, workspace = native(both, "aten::_thnn_fused_gru_cell", 2, from_x, from_h, hx, None, None)
    same([made], [hy])
    grad = torch.randn_like(hy)
    grad_x, through_h, through_x, through_hx = torch.autograd.grad(hy, [x, hx, cell.weight_ih, cell.weight_hh], grad)
    backward = native(both, "aten::_thnn_fused_gru_cell_backward", 5, grad, workspace, True)
    grad_input, grad_hidden, grad_hx, input_bias, hidden_bias = backward
    same([grad_input @ cell.weight_ih, grad_hx + grad_hidden @ cell.weight_hh], [grad_x, through_h])
    same([grad_input.t() @ x, grad_hidden.t() @ hx], [through_x, through_hx])
    same([input_bias, hidden_bias], [grad_input.sum(0), grad_hidden.sum(0)])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_cells_with_biases(both: Both, gates: dict[str, torch.Tensor], kind: str) -> None:
    x, hx, cx = gates.values()
    if kind == "lstm":
        lstm = torch.nn.LSTMCell(6, 7)
        expected = list(lstm(x, (hx, cx)))
        from_x, from_h = x @ lstm.weight_ih.t(), hx @ lstm.weight_hh.t()
        made = native(both, "aten::_thnn_fused_lstm_cell", 3, from_x, from_h, cx, lstm.bias_ih, lstm.bias_hh)[:2]
    else:
        gru = torch.nn.GRUCell(6, 7)
        expected = [gru(x, hx)]
        from_x, from_h = x @ gru.weight_ih.t(), hx @ gru.weight_hh.t()
        made = native(both, "aten::_thnn_fused_gru_cell", 2, from_x, from_h, hx, gru.bias_ih, gru.bias_hh)[:1]
    # The frontend multiplied without the bias, the CPU's cell with it: the last bit may differ.
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_linear_backward(both: Both, shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 6, dtype=dtype, requires_grad=True)
    offset = torch.randn(4, dtype=dtype, requires_grad=True)
    y = torch.nn.functional.linear(x, weight, offset if bias else None)
    grad = torch.randn_like(y)
    wanted = [x, weight, *([offset] if bias else [])]
    expected = torch.autograd.grad(y, wanted, grad)
    program = Program()
    given = [program.input(tensor.detach()) for tensor in (x, grad, weight)]
    outputs = program.calls("aten::linear_backward", [True, True, bias], *given, Many((True, True, bias)))
    made = both.execute_native(program.graph(*outputs), [both.put(tensor) for tensor in program.given])
    same([tensor_of(both.session.fetch(handle)) for handle in made], list(expected))


def test_linear_backward_of_a_transposed_input(both: Both) -> None:
    x = torch.randn(6, 5).t().requires_grad_()
    weight = torch.randn(6, 4).t().requires_grad_()
    y = torch.nn.functional.linear(x, weight, torch.zeros(4))
    grad = torch.randn(4, 5).t()
    expected = torch.autograd.grad(y, [x, weight], grad)
    program = Program()
    stored = [program.input(tensor.detach().t()) for tensor in (x, grad, weight)]
    turned = [program.call("aten::t", ref) for ref in stored]
    outputs = program.calls("aten::linear_backward", [True, True, False], *turned, Many((True, True, False)))
    made = both.execute_native(program.graph(*outputs), [both.put(tensor) for tensor in program.given])
    same([tensor_of(both.session.fetch(handle)) for handle in made], list(expected))


def test_a_view_beyond_its_memory_fails(both: Both) -> None:
    program = Program()
    x = program.input(torch.arange(6.0))
    fine = program.call("aten::_reshape_alias", x, Many((3, 2)), Many((2, 1)))
    beyond = program.call("aten::_reshape_alias", x, Many((1 << 20,)), Many((1 << 10,)))
    good, bad = both.execute_native(program.graph(fine, beyond), [both.put(program.given[0])])
    assert tensor_of(both.session.fetch(good)).shape == (3, 2)
    with pytest.raises(RemoteOpError, match="out of bounds"):
        both.session.fetch(bad)
