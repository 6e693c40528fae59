"""Which nodes draw random numbers: those must draw from one stream, in order, wherever a graph runs.

The names are those PyTorch tags ``nondeterministic_seeded``; a test compares them with the installed PyTorch.
"""

from __future__ import annotations

from typing import NamedTuple

from genie.graph.model import Arg, Const, Graph, Many, Node
from genie.graph.once import once
from genie.graph.regions import OPERATORS


class _Spare(NamedTuple):
    """Arguments that say that nothing is drawn: a flag that is ``False``, a probability that is zero."""

    flag: int = -1
    probability: int = -1


_ALWAYS = _Spare()
_TRAINING = _Spare(flag=2)
_LAYERS = _Spare(flag=6, probability=5)
_PACKED = _Spare(flag=7, probability=6)

_DRAWS: dict[str, _Spare] = (
    dict.fromkeys(
        """_cudnn_init_dropout_state _fill_mem_eff_dropout_mask_ _fused_dropout _nested_tensor_softmax_with_shape
        _sample_dirichlet _standard_gamma bernoulli bernoulli_ binomial cauchy cauchy_ exponential exponential_
        geometric geometric_ log_normal log_normal_ multinomial normal normal_ normal_functional poisson rand rand_like
        randint randint_like randn randn_like random random_ randperm uniform uniform_""".split(),
        _ALWAYS,
    )
    | dict.fromkeys(
        """alpha_dropout alpha_dropout_ dropout dropout_ feature_alpha_dropout feature_alpha_dropout_ feature_dropout
        feature_dropout_ native_dropout""".split(),
        _TRAINING,
    )
    | dict.fromkeys("gru lstm rnn_relu rnn_tanh _lstm_mps".split(), _LAYERS)
    | dict.fromkeys("rrelu rrelu_".split(), _Spare(flag=3))
    | dict.fromkeys("rrelu_with_noise rrelu_with_noise_ rrelu_with_noise_functional".split(), _Spare(flag=4))
    | {
        "_cudnn_rnn": _Spare(flag=12, probability=11),
        "miopen_rnn": _Spare(flag=10, probability=9),
        "_cudnn_attention_backward": _Spare(probability=13),
        "_cudnn_attention_forward": _Spare(probability=9),
        "_efficient_attention_forward": _Spare(probability=8),
        "_flash_attention_forward": _Spare(probability=7),
        "_flash_attention_forward_no_dropout_inplace": _Spare(probability=8),
        "_fused_sdp_choice": _Spare(probability=4),
        "_scaled_dot_product_attention_math": _Spare(probability=4),
        "_scaled_dot_product_attention_math_for_mps": _Spare(probability=4),
        "_scaled_dot_product_cudnn_attention": _Spare(probability=5),
        "_scaled_dot_product_cudnn_attention_backward": _Spare(probability=13),
        "_scaled_dot_product_efficient_attention": _Spare(probability=5),
        "_scaled_dot_product_efficient_attention_backward": _Spare(probability=9),
        "_scaled_dot_product_flash_attention": _Spare(probability=3),
        "_scaled_dot_product_flash_attention_for_cpu": _Spare(probability=3),
        "_scaled_dot_product_fused_attention_overrideable": _Spare(probability=4),
        "_triton_scaled_dot_attention": _Spare(probability=3),
        "scaled_dot_product_attention": _Spare(probability=4),
    }
)
_OVERLOADS = {
    ("gru", "data"): _PACKED,
    ("lstm", "data"): _PACKED,
    ("rnn_relu", "data"): _PACKED,
    ("rnn_tanh", "data"): _PACKED,
    ("_scaled_dot_product_flash_attention", "quantized"): _Spare(probability=6),
}
# Those of torch's compiler are there once it was imported.
_PRIMS = (
    "normal",
    "uniform",
    "inductor_seed",
    "inductor_seeds",
    "inductor_rand_eager_offset",
    "inductor_rand_eager_offsets",
)
DRAWING = frozenset({f"aten::{name}" for name in _DRAWS} | {f"prims::{name}" for name in _PRIMS})


def _spared(node: Node) -> int:
    """``-2`` when the node draws, ``-1`` when it does not, else the argument that spares it by being zero."""
    if node.operation in OPERATORS:
        # A probability in a region is no argument of the node, so none spares it.
        return -2 if any(_spared(inner) != -1 for region in node.regions for inner in region.steps) else -1
    if node.operation not in DRAWING:
        return -2 if any(map(_names_generator, node.args)) else -1
    name = node.operation.partition("::")[2]
    spare = _OVERLOADS.get((name, node.overload)) or _DRAWS.get(name, _Spare())
    args = node.args
    if max(spare) >= len(args):
        return -1  # left out, and so at its default, which spares it
    if spare.flag >= 0 and args[spare.flag] is False:
        return -1
    if spare.probability >= 0:
        number = args[spare.probability]
        if isinstance(number, int | float) and not isinstance(number, bool) and number == 0:
            return spare.probability
    return -2


def generators(graph: Graph) -> tuple[int, ...]:
    """The numbers of the generators that a graph may draw from; 0 is the default one."""
    found = {0}

    def look(arg: Arg) -> None:
        if isinstance(arg, Const) and arg.kind == "generator":
            found.add(int(arg.text))
        elif isinstance(arg, Many):
            for item in arg.items:
                look(item)

    for node in graph.steps:
        for arg in node.args:
            look(arg)
        if node.operation in OPERATORS:
            for region in node.regions:
                found.update(generators(region))
    return tuple(sorted(found))


def _names_generator(arg: Arg) -> bool:
    if isinstance(arg, Const):
        return arg.kind == "generator"
    return isinstance(arg, Many) and any(map(_names_generator, arg.items))


def draws(node: Node) -> bool:
    """Whether the node may draw random numbers, as it is written."""
    return _spared(node) == -2


@once
def drawing(graph: Graph) -> tuple[int, ...]:
    """The steps that may draw random numbers."""
    # Most operators draw nothing and take no constants: they are passed over without looking at their arguments.
    return tuple(
        step
        for step, node in enumerate(graph.steps)
        if (node.operation in DRAWING or node.operation in OPERATORS or any(type(arg) is Const for arg in node.args))
        and draws(node)
    )


@once
def spared(graph: Graph) -> tuple[tuple[int, int], ...]:
    """(step, argument) of every probability that is zero, and so a reason that its step draws nothing.

    Such a number is a parameter of the graph: who runs the graph with other parameters must look at these.
    """
    return tuple(
        (step, argument)
        for step, node in enumerate(graph.steps)
        if node.operation in DRAWING and (argument := _spared(node)) >= 0
    )
