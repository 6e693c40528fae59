"""Pictures that enter a graph, and the convolutions over them, by their shapes."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from genie.graph import Graph
from genie.graph.structure import SAME
from genie.match import Entry, Structure, flow, once, result_of, structure, weights

CONVOLUTIONS = frozenset(
    """convolution conv1d conv2d conv3d _convolution mkldnn_convolution cudnn_convolution
    conv_transpose1d conv_transpose2d conv_transpose3d""".split()
)
POOLS = frozenset(
    """max_pool2d_with_indices max_pool2d max_pool3d_with_indices max_pool3d avg_pool2d avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool2d adaptive_max_pool3d""".split()
)
RESIZES = frozenset(
    """upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_nearest3d upsample_trilinear3d
    _upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    pixel_shuffle pixel_unshuffle""".split()
)
TRAINED = ("backward", "optimizer")
_STRIDE_IS_FOURTH = frozenset("convolution _convolution conv1d conv2d conv3d".split())
_CUTS = SAME | frozenset("unfold im2col slice".split())  # how a picture is cut into patches

_PREPARES = frozenset(("", "sub", "div", "mul", "add", "rsub", "clamp", "randn", "rand"))  # "": it is given


class Convolution(NamedTuple):
    """A convolution with a weight. ``ratio`` is how many positions of its input one of its output stands for, along
    the first axis; of a transposed one, how many of its output stand for one of its input."""

    at: int
    value: int  # the data
    output: int
    kernel: tuple[int, ...]
    ratio: int
    groups: int
    channels: int  # of the data
    transposed: bool
    entry: bool  # the data is given by the program


@once
def convolutions(graph: Graph) -> dict[int, Convolution]:
    """By position, in order of operators' names."""
    view = structure(graph)
    names = CONVOLUTIONS & view.by_name.keys()
    entries = {entry.at for entry in flow(graph).entries} if names else set()
    found = (_convolution(view, at, entries) for name in sorted(names) for at in view.by_name[name])
    return {each.at: each for each in found if each is not None}


def _convolution(view: Structure, at: int, entries: set[int]) -> Convolution | None:
    node, operands = view.steps[at], view.operands[at]
    if len(operands) < 2 or not node.outputs or node.outputs[0] < 0:
        return None
    if node.semantics is not None and node.semantics.phase in TRAINED:
        return None
    name = view.names[at]
    before, weight, after = view.shape(operands[0]), view.shape(operands[1]), view.shape(node.outputs[0])
    if not 3 <= len(before) == len(weight) == len(after) or not (prod(before) and prod(weight) and prod(after)):
        return None
    transposed = name.startswith("conv_transpose") or (len(node.args) > 6 and node.args[6] is True)
    wide, narrow = (after, before) if transposed else (before, after)
    ratio = max(1, round(wide[2] / narrow[2]))
    if name in _STRIDE_IS_FOURTH and len(node.args) > 3:
        said = getattr(node.args[3], "items", (node.args[3],))
        if said and type(said[0]) is int and said[0] > 0:
            ratio = said[0]
    groups = max(1, (after[1] if transposed else before[1]) // weight[1])
    return Convolution(
        at, operands[0], node.outputs[0], weight[2:], ratio, groups, before[1], transposed, at in entries
    )


@once
def pictures(graph: Graph) -> int:
    """The entries that are pictures or video, as bits in their order (see ``genie.match.flow``)."""
    view, bits = structure(graph), 0
    for number, entry in enumerate(flow(graph).entries):
        if entry.way in ("image", "frames") or (entry.way == "features" and is_patches(view, entry)):
            bits |= 1 << number
    return bits


def is_patches(view: Structure, entry: Entry) -> bool:
    """Whether features are patches of a picture, cut out and flattened."""
    value = entry.value
    for _ in range(12):
        maker = view.maker[value]
        if maker < 0 or view.names[maker] not in _CUTS or not view.operands[maker]:
            break
        value = view.operands[maker][0]
    if view.made_by(value) not in _PREPARES:
        return False
    shape, flat = view.shape(value), view.shape(entry.value)
    channels = min(shape[1], shape[-1]) if len(shape) in (4, 5) else 0
    # A picture has few channels, and a patch all of them.
    return channels in (1, 3, 4) and len(flat) >= 2 and flat[-1] > channels and flat[-1] % channels == 0


def bits_of(view: Structure, bits: list[int], at: int) -> int:
    """The entries that a node's result is computed from."""
    value = result_of(view, at)
    return bits[value] if value >= 0 else 0


def is_weight(view: Structure, value: int) -> bool:
    """Whether a value is a weight, or a view or copy of one."""
    heavy = weights(view.graph)
    return view.storage[value] in heavy or view.part[value] in heavy


def weighted(view: Structure, at: int) -> bool:
    """Whether a node takes a weight, or a view of one."""
    heavy = weights(view.graph)
    return any(view.storage[value] in heavy for value in view.operands[at])
