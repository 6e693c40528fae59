"""How much work a node is, from shapes alone: floating-point operations and bytes moved.

FLOPs follow the rules of ``torch.utils.flop_counter``: a multiply–add counts two, only products of matrices,
convolutions and attention count, an operator without a rule counts none. Bytes are those a kernel must move at
least once: a view moves none, a gather only what it picks. A scan's work is its body's, so many times; a cond's that of
its dearest branch; that of a while loop, whose iterations nobody can count before, one iteration's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from genie.graph import Arg, Graph, Many, Node, Ref, TensorSpec, refs
from genie.graph.once import once
from genie.graph.regions import OPERATORS, Cond, Scan, form
from genie.graph.sizes import nbytes as nbytes
from genie.graph.sizes import sizes as sizes

_Shape = tuple[int, ...]
_Rule = Callable[["_Call"], int]


class Work(NamedTuple):
    """``None`` where the shapes make no sense to the operator's rule."""

    flops: int | None
    read: int
    written: int


class _Call(NamedTuple):
    node: Node
    values: Sequence[TensorSpec]

    def shape(self, argument: int) -> _Shape:
        arg = self.node.args[argument]
        if not isinstance(arg, Ref):
            raise ValueError("no tensor")
        return self.values[arg.value].shape

    def output(self, number: int = 0) -> _Shape:
        """Of output ``number``; where that is the tensor passed in, of what the node writes to."""
        value = self.node.outputs[number]
        return self.values[value if value >= 0 else self.node.mutates[number]].shape

    def arg(self, argument: int) -> Arg:
        return self.node.args[argument]


def _mm(a: int) -> _Rule:
    def rule(call: _Call) -> int:
        (m, k), (_, n) = call.shape(a), call.shape(a + 1)
        return 2 * m * n * k

    return rule


def _bmm(a: int) -> _Rule:
    def rule(call: _Call) -> int:
        (batch, m, k), (_, _, n) = call.shape(a), call.shape(a + 1)
        return 2 * batch * m * n * k

    return rule


def _product(call: _Call) -> int:
    # linear and matmul: each element of the output is one row times one column.
    return 2 * prod(call.output()) * call.shape(0)[-1]


def _linear_backward(call: _Call) -> int:
    mask = call.arg(3)
    wanted = sum(item is True for item in mask.items[:2]) if isinstance(mask, Many) else 2
    return wanted * 2 * prod(call.shape(1)) * call.shape(0)[-1]


def _convolution(transposed: int | bool) -> _Rule:
    def rule(call: _Call) -> int:
        swapped = transposed if isinstance(transposed, bool) else call.arg(transposed) is True
        # A weight is (out, in per group, …) or, transposed, (in, out per group, …).
        return 2 * prod(call.shape(0) if swapped else call.output()) * prod(call.shape(1)[1:])

    return rule


def _convolution_backward(call: _Call) -> int:
    out_grad, x, weight = call.shape(0), call.shape(1), call.shape(2)
    mask = call.arg(10)
    swapped = call.arg(7) is True
    wanted = [item is True for item in mask.items] if isinstance(mask, Many) else [True, True]
    swept = x if swapped else out_grad
    total = 2 * prod(swept) * prod(weight[1:]) if wanted[0] else 0
    if wanted[1]:
        total += 2 * prod(weight[2:]) * prod(swept[2:]) * x[0] * x[1] * out_grad[1]
    return total


def _attention(query: int) -> _Rule:
    def rule(call: _Call) -> int:
        *batch, queries, width = call.shape(query)
        keys = call.shape(query + 1)[-2]
        return 2 * prod(batch) * queries * keys * (width + call.shape(query + 2)[-1])

    return rule


def _attention_backward(call: _Call) -> int:
    # Scores again, then two products on each side of them: 3 of the query's width and 2 of the value's.
    *batch, queries, width = call.shape(1)
    keys = call.shape(2)[-2]
    return 2 * prod(batch) * queries * keys * (3 * width + 2 * call.shape(3)[-1])


_FLOPS: dict[str, _Rule] = {
    "aten::mm": _mm(0),
    "aten::addmm": _mm(1),
    "aten::addmm_": _mm(1),
    "aten::_scaled_mm": _mm(0),
    "aten::_addmm_activation": _mm(1),
    "aten::bmm": _bmm(0),
    "aten::baddbmm": _bmm(1),
    "aten::baddbmm_": _bmm(1),
    "aten::linear": _product,
    "aten::matmul": _product,
    "aten::linear_backward": _linear_backward,
    "aten::convolution": _convolution(6),
    "aten::_convolution": _convolution(6),
    "aten::convolution_overrideable": _convolution(6),
    "aten::cudnn_convolution": _convolution(False),
    "aten::mkldnn_convolution": _convolution(False),
    "aten::_slow_conv2d_forward": _convolution(False),
    "aten::convolution_backward": _convolution_backward,
    "aten::scaled_dot_product_attention": _attention(0),
    "aten::_scaled_dot_product_attention_math": _attention(0),
    "aten::_scaled_dot_product_flash_attention": _attention(0),
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention(0),
    "aten::_scaled_dot_product_efficient_attention": _attention(0),
    "aten::_scaled_dot_product_cudnn_attention": _attention(0),
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention(0),
    "aten::_scaled_dot_product_flash_attention_backward": _attention_backward,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": _attention_backward,
    "aten::_scaled_dot_product_cudnn_attention_backward": _attention_backward,
}
for _rank in (1, 2, 3):
    _FLOPS[f"aten::conv{_rank}d"] = _convolution(False)
    _FLOPS[f"aten::conv_transpose{_rank}d"] = _convolution(True)

# What only makes memory; what picks from its first operand; what replaces what it writes to; what writes some of it.
_ALLOCATES = {
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
}
_PICKS = {f"aten::{name}" for name in ("embedding", "index_select", "gather", "index", "take", "take_along_dim")}
_REPLACES = {
    f"aten::{name}_"
    for name in ("copy", "fill", "zero", "normal", "uniform", "random", "bernoulli", "exponential", "log_normal")
}
_WRITES_SOME = {
    f"aten::{name}_"
    for name in ("index_copy", "index_put", "_index_put_impl", "scatter", "scatter_add", "index_add", "index_fill")
}  # fmt: skip


def work(node: Node, values: Sequence[TensorSpec], size: Sequence[int] | Mapping[int, int]) -> Work:
    """The work of a node of a verified graph; ``values`` and ``size`` (see :func:`sizes`) are the graph's."""
    operation, aliases, mutates = node.operation, node.aliases, node.mutates
    if operation in OPERATORS:
        return _regions_work(node)
    shared = {output for output, _ in aliases} if aliases else ()
    fresh = [value for value in node.outputs if value >= 0 and value not in shared]
    if (aliases and not fresh and not mutates) or operation in _ALLOCATES:
        return Work(0, 0, 0)
    operands = dict.fromkeys(refs(node.args))
    written = sum([size[value] for value in fresh])
    read = sum([size[value] for value in operands])
    if operation in _PICKS:
        first = next(iter(operands), None)
        read += min(written, size[first]) - size[first] if first is not None else 0
    elif mutates:
        into = sum([size[value] for value in mutates])
        if operation in _WRITES_SOME:
            read -= into
            written += min(read, into)
        else:
            written += into
            if operation in _REPLACES or node.overload == "out":
                read -= into
    rule = _FLOPS.get(operation)
    flops: int | None = 0
    if rule is not None:
        try:
            flops = rule(_Call(node, values))
        except (ValueError, IndexError):
            flops = None
        if flops is not None and flops >> 63:
            flops = None
    return Work(flops, min(max(read, 0), (1 << 63) - 1), min(written, (1 << 63) - 1))


def trips(node: Node) -> int | None:
    """How often a region node runs its regions; ``None`` where that is not known before it runs."""
    call = form(node)
    if isinstance(call, Cond):
        return 1
    return call.length if isinstance(call, Scan) else None


def _regions_work(node: Node) -> Work:
    call, each = form(node), [_whole(region) for region in node.regions]
    if isinstance(call, Cond):
        known = [work.flops for work in each if work.flops is not None]
        flops = max(known) if len(known) == len(each) else None
        return Work(flops, max(work.read for work in each), max(work.written for work in each))
    return _times(each, call.length if isinstance(call, Scan) else 1)


@once
def _whole(graph: Graph) -> Work:
    """The work of all of a graph's nodes."""
    size = sizes(graph)
    return _times([work(node, graph.values, size) for node in graph.steps], 1)


def _times(works: Sequence[Work], count: int) -> Work:
    most = (1 << 63) - 1
    flops = [work.flops for work in works]
    total = sum(known for known in flops if known is not None) * count
    return Work(
        None if None in flops or total > most else total,
        min(sum(work.read for work in works) * count, most),
        min(sum(work.written for work in works) * count, most),
    )
