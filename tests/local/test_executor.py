"""What plans do, natively and by the reference."""

from __future__ import annotations

import torch
from local.both import Both, Program

from genie.bindings import float_bits, parameters
from genie.graph import Const, Many, ScalarTensor

FLOAT = Const("dtype", "float32")
SELF = Const("device", "self")


def grid(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64).reshape(shape) * 0.37 - 1.5).to(dtype)


def test_views_keep_their_strides(both: Both) -> None:
    program = Program()
    x = program.input(grid(4, 6))
    turned = program.call("aten::transpose.int", x, 0, 1)
    part = program.call("aten::slice.Tensor", turned, 0, 1, 5, 2)
    wide = program.call("aten::expand", program.call("aten::unsqueeze", part, 0), Many((3, -1, -1)))
    handle = both.put(program.given[0])
    made = both.execute(program.graph(turned, part, wide), [handle])
    both.check(*made)
    for output in made:
        both.strides(output)


def test_in_place_through_a_view_reaches_the_base(both: Both) -> None:
    program = Program()
    x = program.input(grid(3, 4))
    row = program.call("aten::select.int", x, 0, 1)
    program.write("aten::mul_.Scalar", row, 10.0, to=[row])
    total = program.call("aten::sum", x)
    (made,) = both.run(program, total)
    base = grid(3, 4)
    base[1] *= 10.0
    assert torch.equal(made, base.sum())


def test_an_input_written_in_place_stays_written(both: Both) -> None:
    program = Program()
    x = program.input(grid(5))
    program.write("aten::add_.Tensor", x, x, 1, to=[x])
    graph = program.graph()
    handle = both.put(grid(5))
    both.execute(graph, [handle])
    both.execute(graph, [handle])
    (made,) = both.check(handle)
    assert torch.equal(made, grid(5) * 4)


def test_out_arguments(both: Both) -> None:
    program = Program()
    x, out = program.input(grid(3)), program.input(torch.zeros(3))
    program.write("aten::add.out", x, x, 2, out, to=[out])
    small = program.input(torch.zeros(0))  # resized by the operator
    program.write("aten::exp.out", x, small, to=[small])
    both.run(program, small)


def test_lists_and_optional_lists(both: Both) -> None:
    program = Program()
    x, index = program.input(grid(3, 4)), program.input(torch.tensor([2, 0]))
    joined = program.call("aten::cat", Many((x, x)), 1)
    picked = program.call("aten::index.Tensor", joined, Many((None, index)))
    stacked = program.call(
        "aten::stack", Many((ScalarTensor("float32", 1.5, False), ScalarTensor("float32", 2, False)))
    )
    scaled = program.calls("aten::_foreach_mul.ScalarList", 2, Many((x, joined)), Many((2, 0.5)))
    both.run(program, joined, picked, stacked, *scaled)


def test_dtype_layout_device_and_format_arguments(both: Both) -> None:
    program = Program()
    x = program.input(grid(2, 3, 4, 4))
    half = program.call(
        "aten::_to_copy", x, Const("dtype", "float16"), Const("layout", "strided"), SELF, None, False,
        Const("memory_format", "channels_last"),
    )  # fmt: skip
    ones = program.call("aten::ones", Many((2, 2)), Const("dtype", "int64"), None, SELF, False)
    made = both.execute(program.graph(half, ones), [both.put(program.given[0])])
    both.check(*made)
    both.strides(made[0])


def test_scalars_keep_being_integers_or_floats(both: Both) -> None:
    program = Program()
    x = program.input(torch.tensor([1, 2, 3]))
    outputs = [
        program.call("aten::add.Scalar", x, 2, 1),
        program.call("aten::add.Scalar", x, 2.0, 1),
        program.call("aten::pow.Scalar", 2, x),
        program.call("aten::mul.Tensor", x, ScalarTensor("float64", 0.5, True)),
        program.call("aten::mul.Tensor", x, ScalarTensor("float64", 0.5, False)),
        program.call("aten::mul.Tensor", x, ScalarTensor("bool", True, False)),
        program.call("aten::full", Many((2,)), True, None, None, SELF, False),
        program.call("aten::add.Scalar", x, Const("complex", "(1-2j)"), 1),
    ]
    made = both.run(program, *outputs)
    assert [one.dtype for one in made[:4]] == [torch.int64, torch.float32, torch.int64, torch.float32]


def test_several_and_undefined_results(both: Both) -> None:
    program = Program()
    x, w = program.input(grid(1, 2, 6, 6)), program.input(grid(3, 2, 3, 3))
    values, indices = program.calls("aten::max.dim", 2, x, 3, False)
    y = program.call("aten::convolution", x, w, None, Many((1, 1)), Many((0, 0)), Many((1, 1)), False, Many((0, 0)), 1)
    grad_x, grad_b = program.calls(
        "aten::convolution_backward", [True, False, True], y, x, w, Many((3,)), Many((1, 1)), Many((0, 0)),
        Many((1, 1)), False, Many((0, 0)), 1, Many((True, False, True)),
    )  # fmt: skip
    both.run(program, values, indices, y, grad_x, grad_b)


def test_lists_of_results(both: Both) -> None:
    program = Program()
    x = program.input(grid(5, 2))
    parts = program.calls("aten::split.Tensor", 3, x, 2, 0)
    rows = program.calls("aten::unbind.int", [True, False, False, False, True], x, 0)
    both.run(program, *parts, *rows)


def test_host_results_become_values(both: Both) -> None:
    program = Program()
    x = program.input(torch.tensor([2.5]))
    same = program.call("aten::equal", x, x)
    item = program.call("aten::_local_scalar_dense", x)
    size = program.call("aten::size.int", x, 0)
    equal, number, length = both.run(program, same, item, size)
    assert (equal.dtype, number.dtype, length.dtype) == (torch.bool, torch.float64, torch.int64)
    assert (equal.item(), number.item(), length.item()) == (True, 2.5, 1)


def test_composite_operators_run_whole(both: Both) -> None:
    program = Program()
    x, w, b = program.input(grid(2, 5, 8)), program.input(grid(8, 8)), program.input(grid(8))
    y = program.call("aten::linear", x, w, b)
    q = program.call("aten::view", y, Many((2, 5, 2, 4)))
    q = program.call("aten::transpose.int", q, 1, 2)
    a = program.call("aten::scaled_dot_product_attention", q, q, q, None, 0.0, True)
    normed = program.call("aten::layer_norm", y, Many((8,)), b, b)
    both.run(program, y, a, normed)


def test_strings_defaults_and_numbers_for_lists(both: Both) -> None:
    program = Program()
    x = program.input(grid(1, 1, 6, 6))
    both.run(
        program,
        program.call("aten::div.Scalar_mode", x, 2, "floor"),
        program.call("aten::avg_pool2d", x, 2),  # int for int[2], the rest by default
        program.call("aten::softmax.int", x, -1),
        program.call("aten::gelu", x, "tanh"),
    )


def test_operators_written_in_python(both: Both) -> None:
    program = Program()
    x = program.input(grid(4))
    y = program.call("prims::neg", x)
    bad = program.call("prims::view_of_dtype", y, Const("dtype", "float64"))
    made = both.execute(program.graph(y, bad), [both.put(program.given[0])])
    both.check(*made)


def test_metadata_changed_in_place(both: Both) -> None:
    program = Program()
    x = program.input(grid(2, 3))
    program.write("aten::t_", x, to=[x])
    program.write("aten::unsqueeze_", x, 0, to=[x])
    handle = both.put(grid(2, 3))
    both.execute(program.graph(), [handle])
    (made,) = both.check(handle)
    both.strides(handle)
    assert made.shape == (1, 3, 2)


def test_a_scalar_operand_written_to_is_new_each_time(both: Both) -> None:
    program = Program()
    x = program.input(torch.tensor(3.0))
    one = ScalarTensor("float32", 1.0, False)
    kept = [
        program.call("aten::alias", one),
        program.call("aten::atleast_1d", one),  # a composite that does not say that it makes a view
        *program.calls("aten::broadcast_tensors", 2, Many((one, one))),
    ]
    for value in kept:
        program.write("aten::add_.Tensor", value, x, 1, to=[value])
    graph = program.graph(*kept)
    handle = both.put(program.given[0])
    for _ in range(3):
        assert [made.item() for made in both.check(*both.execute(graph, [handle]))] == [4.0] * 4


def test_parameters_change_between_executions(both: Both) -> None:
    program = Program()
    x = program.input(grid(4, 6))
    part = program.call("aten::slice.Tensor", x, 1, 0, 4, 1)
    shaped = program.call("aten::reshape", part, Many((2, -1)))
    scaled = program.call("aten::mul.Tensor", shaped, ScalarTensor("float64", 2.0, True))
    lifted = program.call("aten::add.Scalar", scaled, 1.5, 2)
    stacked = program.call("aten::cat", Many((lifted, lifted)), 0)
    graph = program.graph(stacked)
    assert len(parameters(graph)) == 10
    handle = both.put(program.given[0])
    for end, rows, factor, term, alpha, dim in (
        (4, 2, 2.0, 1.5, 2, 0),
        (5, 4, 2.0, 1.5, 2, 1),
        (6, 8, -0.5, 7.25, 3, 1),
    ):
        words = [1, 0, end, 1, rows, -1, float_bits(factor), float_bits(term), alpha, dim]
        (value,) = both.check(*both.execute(graph, [handle], words))
        expected = (grid(4, 6)[:, :end].reshape(rows, -1) * factor).add(term, alpha=alpha)
        assert torch.equal(value, torch.cat([expected, expected], dim))


def test_donated_inputs_are_gone(both: Both) -> None:
    program = Program()
    x, kept = program.input(grid(3), donated=True), program.input(grid(3))
    y = program.call("aten::add.Tensor", x, kept, 1)
    both.run(program, y, x)  # a donated input may itself be an output
    assert both.session.stats()["values"] == 3


def test_one_value_under_two_handles(both: Both) -> None:
    program = Program()
    x = program.input(grid(3))
    y = program.call("aten::neg", x)
    made = both.execute(program.graph(y, y, x), [both.put(grid(3))])
    both.session.free(made[:1])
    both.check(*made[1:])


def test_the_same_plan_twice_is_the_same_id(both: Both) -> None:
    def load(number: float) -> int:
        program = Program()
        program.call("aten::add.Scalar", program.input(grid(3)), number, 1)
        return both.load(program.graph())

    ids = [load(1), load(2), load(1.0), load(True)]  # equal numbers in Python, different graphs
    assert len(set(ids)) == 4
    assert [load(1), load(2), load(1.0), load(True)] == ids
