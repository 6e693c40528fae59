"""Classes of operators: what runs alike, and is therefore described by one roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from genie.flops import sizes, work
from genie.graph import Graph, Node, TensorSpec
from genie.graph.once import once

GEMM = "gemm"
SKINNY = "gemv"
BATCHED = "batched gemm"
ATTENTION = "attention"
CONVOLUTION = "convolution"
REDUCTION = "reduction"
ELEMENTWISE = "elementwise"
GATHER = "gather"
LAYOUT = "layout"
VIEW = "view"
RANDOM = "random"
OTHER = "other"
CLASSES = (
    GEMM, SKINNY, BATCHED, ATTENTION, CONVOLUTION, REDUCTION, ELEMENTWISE, GATHER, LAYOUT, VIEW, RANDOM, OTHER
)  # fmt: skip

_NAMES: Mapping[str, Sequence[str]] = {
    GEMM: "mm addmm linear matmul _scaled_mm _addmm_activation mv addmv dot vdot linear_backward".split(),
    BATCHED: "bmm baddbmm _grouped_mm".split(),
    REDUCTION: (
        "_softmax softmax _log_softmax log_softmax _safe_softmax native_layer_norm layer_norm native_group_norm "
        "group_norm rms_norm _fused_rms_norm native_batch_norm batch_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training cudnn_batch_norm sum nansum mean prod amax amin max min aminmax argmax "
        "argmin any all norm linalg_vector_norm var std var_mean std_mean logsumexp cumsum cumprod cummax cummin "
        "logcumsumexp nll_loss_forward nll_loss2d_forward avg_pool2d max_pool2d max_pool2d_with_indices "
        "adaptive_avg_pool2d _adaptive_avg_pool2d mean_out sum_out"
    ).split(),
    GATHER: (
        "embedding embedding_bag _embedding_bag _embedding_bag_forward_only index index_select gather take "
        "take_along_dim masked_select scatter scatter_add scatter_reduce index_put _index_put_impl index_add "
        "index_copy index_fill embedding_dense_backward nonzero"
    ).split(),
    LAYOUT: (
        "clone copy _to_copy contiguous cat stack constant_pad_nd repeat flip roll pad tril triu im2col col2im "
        "pixel_shuffle pixel_unshuffle repeat_interleave fill zero full full_like zeros zeros_like ones ones_like "
        "new_zeros new_ones new_full arange _copy_from tile"
    ).split(),
    VIEW: (
        "view _unsafe_view reshape _reshape_alias t transpose permute expand slice select unsqueeze squeeze as_strided "
        "split split_with_sizes chunk unbind alias detach view_as_real view_as_complex diagonal unfold movedim "
        "empty empty_like empty_strided new_empty new_empty_strided empty_permuted lift lift_fresh narrow"
    ).split(),
    RANDOM: (
        "rand randn randint randperm rand_like randn_like randint_like normal uniform bernoulli multinomial "
        "native_dropout exponential random cauchy geometric log_normal poisson"
    ).split(),
    ELEMENTWISE: (
        "add sub rsub mul div neg abs sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal pow square sin "
        "cos tan tanh sinh cosh asin acos atan atan2 sigmoid logit relu relu6 gelu silu mish elu selu celu leaky_relu "
        "hardtanh hardswish hardsigmoid softplus threshold clamp clamp_min clamp_max maximum minimum fmin fmax where "
        "masked_fill eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or "
        "bitwise_not bitwise_xor remainder fmod floor ceil round trunc frac isnan isinf isfinite erf erfc erfinv "
        "lerp addcmul addcdiv glu nan_to_num floor_divide true_divide heaviside polar complex real imag conj angle "
        "prelu __and__ __or__ __xor__ dropout sigmoid_backward tanh_backward gelu_backward silu_backward "
        "threshold_backward"
    ).split(),
}  # fmt: skip
_CLASS: Mapping[str, str] = MappingProxyType({name: kind for kind, names in _NAMES.items() for name in names})
# What else of a name tells, in this order.
_PARTS = (
    ("attention", ATTENTION),
    ("conv", CONVOLUTION),
    ("norm", REDUCTION),
    ("softmax", REDUCTION),
    ("pool", REDUCTION),
    ("_foreach_", ELEMENTWISE),
    ("_fused_adam", ELEMENTWISE),
    ("_fused_sgd", ELEMENTWISE),
    ("bmm", BATCHED),
    ("mm", GEMM),
)
_known: dict[str, str] = {}
_MOST_KNOWN = 1 << 14


def class_of(operation: str) -> str:
    """The class an operator's name (``aten::add_``) tells of, its shapes unseen."""
    known = _known.get(operation)
    if known is None:
        name = operation.rpartition("::")[2]
        known = _CLASS.get(name) or (_CLASS.get(name[:-1]) if name.endswith("_") else None)
        if known is None:
            known = next((kind for part, kind in _PARTS if part in name), OTHER)
        if known == OTHER and name.endswith("_backward"):
            known = _CLASS.get(name.removesuffix("_backward"), OTHER)
        if len(_known) < _MOST_KNOWN:
            _known[operation] = known
    return known


def classify(operation: str, flops: int, moved: int) -> str:
    """The class of an operator that does so much work: FLOPs, bytes moved."""
    kind = class_of(operation)
    return VIEW if kind == LAYOUT and not moved else kind


def on_device(kind: str, flops: float, moved: float, ridge: float) -> str:
    """The class on a device that does ``ridge`` FLOPs while it moves a byte: a product of few rows is *skinny* there,
    if reading its weight is most of the work."""
    return SKINNY if kind == GEMM and 2 * flops < ridge * moved else kind


class Trait(NamedTuple):
    """What a roofline asks of a node: its class, the dtype it computes in ("" where unknown), FLOPs, bytes moved.

    Skinny products are of the class of products: which ones are is the device's to say (:func:`on_device`)."""

    kind: str
    dtype: str
    flops: int
    moved: int


@once
def traits(graph: Graph) -> dict[int, Trait]:
    """Of each node of a verified graph, by its id."""
    size: list[int] | None = None
    values = graph.values
    found: dict[int, Trait] = {}
    for node in graph.steps:
        known = node.semantics
        if known is not None and known.bytes_read is not None and known.bytes_written is not None:
            flops, moved = known.flops or 0, known.bytes_read + known.bytes_written
        else:
            size = sizes(graph) if size is None else size
            done = work(node, values, size)
            flops, moved = done.flops or 0, done.read + done.written
        found[node.id] = Trait(classify(node.operation, flops, moved), _dtype(node, values), flops, moved)
    return found


def trait(node: Node) -> Trait | None:
    """Of a labelled node whose graph is not at hand; ``None`` where the labels do not say its work."""
    known = node.semantics
    if known is None or known.bytes_read is None or known.bytes_written is None:
        return None
    flops, moved = known.flops or 0, known.bytes_read + known.bytes_written
    return Trait(classify(node.operation, flops, moved), "", flops, moved)


def _dtype(node: Node, values: Sequence[TensorSpec]) -> str:
    for value in node.outputs:
        if value >= 0:
            return values[value].dtype
    return values[node.mutates[0]].dtype if node.mutates else ""
