"""What convolution models are made of: the kinds of convolutions, and a table of what stands between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

from genie.graph import Evidence, Many
from genie.match import ACTIVATION, LINEAR, Finder, Match, Op, Rule, Structure, Table, flow, op
from genie_patterns_vision.pictures import (
    CONVOLUTIONS,
    POOLS,
    RESIZES,
    Convolution,
    convolutions,
    is_patches,
    is_weight,
)

_LONGEST = 10  # operators of a residual block's branch
_Is = Callable[[Convolution], bool]

# The first that holds. Each costs little: they read shapes that are known already.
KINDS: tuple[tuple[str, str, _Is], ...] = (
    ("upsample", "a transposed convolution with a stride", lambda c: c.transposed and c.ratio > 1),
    (
        "patch_embedding",
        "a convolution of what is given, whose kernel equals its stride",
        lambda c: c.entry and len(c.kernel) > 1 and c.kernel[-1] > 1 and c.kernel[0] in (1, c.ratio) and _tiles(c),
    ),
    ("conv_stem", "a convolution of the picture that is given", lambda c: c.entry and len(c.kernel) > 1),
    ("depthwise_conv", "a convolution of each channel by itself", lambda c: 1 < c.groups == c.channels),
    ("downsample", "a convolution with a stride", lambda c: c.ratio > 1),
    ("pointwise_conv", "a convolution with a kernel of one position", lambda c: prod(c.kernel) == 1),
    ("conv", "a convolution", lambda c: True),
)


def _tiles(convolution: Convolution) -> bool:
    # Video may keep its frames apart or take several at once; rows and columns are cut alike.
    return convolution.ratio == convolution.kernel[0] if len(convolution.kernel) == 2 else True


class Convolutions(Finder):
    """Convolutions by kind; and pictures cut into patches for a product."""

    name = "vision-convolutions"
    specificity = 12

    def __init__(self) -> None:
        self._labels = {role: _labels(role, reason) for role, reason, _ in KINDS}

    def find(self, view: Structure) -> Iterator[Match]:
        graph = view.graph
        if "linear" in view.by_name or "addmm" in view.by_name or "mm" in view.by_name:
            for entry in flow(graph).entries:
                if entry.way == "features" and is_patches(view, entry):
                    yield Match((view.steps[entry.at],), _PATCHES)
        nodes: dict[str, list[int]] = {}
        for each in convolutions(graph).values():
            for role, _, holds in KINDS:
                if holds(each):
                    nodes.setdefault(role, []).append(each.at)
                    break
        for role, found in nodes.items():
            yield Match([view.steps[at] for at in found], self._labels[role])


def _labels(role: str, reason: str) -> dict[str, object]:
    return {"role": role, "evidence": (Evidence("role", "structure", reason, 0.95),)}


_PATCHES = _labels("patch_embedding", "a product of patches of the picture, flattened")


def _map(view: Structure, at: int) -> bool:
    """Whether a node makes a map: channels over two dimensions or more."""
    outputs = view.steps[at].outputs
    made = outputs[0] if outputs and outputs[0] >= 0 else next(iter(view.steps[at].mutates), -1)
    return made >= 0 and len(view.shape(made)) in (4, 5)


def _over_positions(view: Structure, at: int) -> bool:
    """A mean over all positions of a map; not one that norms are made of."""
    args, operands = view.steps[at].args, view.operands[at]
    rank = len(view.shape(operands[0])) if operands else 0
    if rank not in (4, 5) or len(args) < 2 or not isinstance(args[1], Many):
        return False
    axes = {axis % rank for axis in args[1].items if type(axis) is int}
    return axes == set(range(2, rank)) and not any(view.names[user] == "sub" for user in view.users[operands[0]])


def _grows(view: Structure, at: int) -> bool:
    operands = view.operands[at]
    if not operands or not _map(view, at) or is_weight(view, operands[0]):
        return False
    return view.shape(view.steps[at].outputs[0])[-1] > view.shape(operands[0])[-1]


def _shrinks(view: Structure, at: int) -> bool:
    operands = view.operands[at]
    if not operands or not _map(view, at) or is_weight(view, operands[0]):
        return False
    return view.shape(view.steps[at].outputs[0])[-1] < view.shape(operands[0])[-1]


def _scales_channels(view: Structure, at: int) -> bool:
    """One factor for all positions of a channel."""
    operands = view.operands[at]
    if len(operands) != 2 or not _map(view, at):
        return False
    one, other = (prod(view.shape(value)[2:]) for value in operands)
    return (one == 1) != (other == 1)


def _two_maps(view: Structure, at: int) -> bool:
    """Two maps of one shape, one of which is the other's beginning, or both of which come from one map."""
    operands = view.operands[at]
    if len(operands) != 2 or operands[0] == operands[1]:
        return False
    one, other = operands
    shape = view.shape(one)
    if len(shape) not in (4, 5) or shape != view.shape(other) or is_weight(view, one) or is_weight(view, other):
        return False
    if len(view.users[one]) > 1 or len(view.users[other]) > 1:
        return True
    return not _way(view, one).isdisjoint(_way(view, other))


def _way(view: Structure, value: int) -> set[int]:
    """The maps a map is computed from, as far back as a block may reach."""
    found: set[int] = set()
    for _ in range(_LONGEST):
        maker = view.maker[value]
        if maker < 0 or not view.operands[maker]:
            break
        value = view.operands[maker][0]
        found.add(value)
    return found


def _merged(view: Structure, at: int) -> bool:
    """Every second row and column beside each other: four maps a quarter of the size."""
    operands = view.operands[at]
    return len(operands) == 4 and all(view.made_by(value) == "slice" for value in operands) and _one_map(view, operands)


def _one_map(view: Structure, values: tuple[int, ...]) -> bool:
    whole = {view.part[value] for value in values}
    return len(whole) == 1 and 4 * prod(view.shape(values[0])) == prod(view.shape(next(iter(whole))))


_PRODUCT = f"{LINEAR} {' '.join(sorted(CONVOLUTIONS))}"
_POOL = " ".join(sorted(POOLS))


def _gate(excited: Op) -> Op:
    gate = op("sigmoid hardsigmoid", op(_PRODUCT, excited))
    return op("mul", None, gate, as_="scale", where=_scales_channels)


_squeezed = op(_PRODUCT, op(f"{_POOL} mean"))
_SQUEEZE = {"scale": {"role": "squeeze_excite"}, "": {"role": "squeeze_excite"}}
_RESIZE = " ".join(sorted(RESIZES))

BLOCKS = Table(
    "vision-blocks",
    [
        Rule("squeeze and excitation", _gate(op(f"{ACTIVATION} hardswish", _squeezed)), _SQUEEZE),
        # An activation in place is no operand of what follows.
        Rule("squeeze and excitation", _gate(_squeezed), _SQUEEZE, confidence=0.85),
        Rule("pooling", op(_POOL, as_="pool", where=_map), {"pool": {"role": "pool"}}, confidence=1.0),
        Rule("mean of all positions", op("mean", as_="pool", where=_over_positions), {"pool": {"role": "pool"}}),
        Rule("interpolation to more positions", op(_RESIZE, as_="up", where=_grows), {"up": {"role": "upsample"}}),
        Rule(
            "interpolation to fewer positions",
            op(_RESIZE, as_="down", where=_shrinks),
            {"down": {"role": "downsample"}},
        ),
        Rule(
            "neighbours merged",
            op(LINEAR, op("native_layer_norm layer_norm", op("cat", where=_merged)), as_="down"),
            {"down": {"role": "downsample"}},
        ),
        Rule("residual of maps", op("add", as_="sum", where=_two_maps), {"sum": {"role": "residual"}}, confidence=0.85),
    ],
    specificity=13,
)
