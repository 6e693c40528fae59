"""The parts of a transformer, as a table of rules: norms, MLPs, experts, rotary positions, embeddings, residuals."""

from __future__ import annotations

from collections.abc import Mapping

from genie.graph.structure import PARTS, SAME
from genie.match import LINEAR, Rule, Structure, Table, activation, linear, op, weights

_ALONE = frozenset("add sub mul div pow square tanh sigmoid erf exp neg".split())
_NORMS = "native_layer_norm layer_norm rms_norm _fused_rms_norm native_group_norm native_batch_norm batch_norm"


def _weighted(view: Structure, at: int) -> bool:
    """Whether a product is with a weight."""
    heavy = weights(view.graph)
    return any(view.storage[value] in heavy for value in view.operands[at])


def _routes(view: Structure, at: int) -> bool:
    """A choice of a few of a few dozen: experts, not words."""
    shape = view.shape(view.operands[at][0])
    return bool(shape) and 1 < shape[-1] <= 1024 and len(view.steps[at].outputs) == 2


def _rejoins(view: Structure, at: int) -> bool:
    """A sum of two values of one shape, of which one went into something else, too: the branch that ends here."""
    operands = view.operands[at]
    return (
        len(operands) == 2
        and operands[0] != operands[1]
        and len(view.shape(operands[0])) >= 2
        and any(len(view.users[value]) > 1 for value in operands)
        and _without_ones(view.shape(operands[0])) == _without_ones(view.shape(operands[1]))
        and view.dtype(operands[0]).startswith(("float", "bfloat"))
        and not _weighted(view, at)  # an update
        and not _of_each_other(view, *operands)
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without dimensions of one element in front, which sums need not have."""
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


def _of_each_other(view: Structure, one: int, other: int) -> bool:
    """Whether one value is computed from the other element by element: a sum like that is a function, and no branch."""
    for value, whole in ((one, other), (other, one)):
        front = [value]
        for _ in range(4):
            makers = [at for each in front if (at := view.maker[view.source[each]]) >= 0]
            front = [each for at in makers if view.names[at] in _ALONE for each in view.operands[at]]
            if whole in front:
                return True
    return False


def _by_position(view: Structure, at: int) -> bool:
    """Whether the rows looked up are numbered by position: by counting, or the same in every call."""
    value = view.operands[at][1]
    for _ in range(8):
        maker = view.maker[value]
        if maker < 0:
            return any(entry.value == value and entry.origin == "buffer" for entry in view.graph.inputs)
        if view.names[maker] in ("arange", "cumsum"):
            return True
        if not view.operands[maker]:
            return False
        value = view.operands[maker][0]
    return False


def _turns(view: Structure, at: int) -> bool:
    """Whether sines or cosines are factors of something; of positions that are added they are summands."""
    front = list(view.steps[at].outputs[:1])
    for _ in range(6):
        following: list[int] = []
        for value in front:
            for user in view.users[value] if value >= 0 else ():
                name = view.names[user]
                if name == "mul" and len(view.operands[user]) == 2:
                    return True
                if name in SAME or name in PARTS or name in ("mul", "cat", "stack"):
                    following += view.steps[user].outputs[:1]
        front = following[:8]
    return False


def _three_dimensional(view: Structure, at: int) -> bool:
    heavy = weights(view.graph)
    return any(view.part[v] in heavy and len(view.shape(view.part[v])) == 3 for v in view.operands[at][:3])


def _is_gate(view: Structure, bound: Mapping[str, int]) -> bool:
    return bound["gate"] != bound["up"]


_linear = linear(where=_weighted)
_MLP = {"down": {"role": "mlp_down"}, "up": {"role": "mlp_up"}, "": {"role": "mlp_activation"}}
_GATED = {**_MLP, "gate": {"role": "mlp_gate"}, "": {"role": "mlp_activation"}}
_NORM = {"": {"role": "norm"}, "norm": {"role": "norm"}}
_ROTARY = {"": {"role": "rotary"}, "rotary": {"role": "rotary"}}
_mean_square = op("mean", op("pow square mul"))
_variance = op("add", op("mean var"))
_cubic = op("mul", op("add", None, op("mul", op("pow"))))  # x + 0.044715 x³, scaled

BLOCKS = Table(
    "llm-blocks",
    [
        # Norms: one operator, or root mean square written out.
        Rule("normalisation", op(_NORMS, as_="norm"), _NORM, confidence=1.0),
        Rule(
            "root mean square normalisation",
            op("mul", None, op("mul", None, op("rsqrt", op("add", _mean_square))), as_="norm", where=_weighted),
            _NORM,
        ),
        Rule(
            "root mean square normalisation", op("mul", None, op("rsqrt", op("add", _mean_square)), as_="norm"), _NORM
        ),
        Rule(
            "normalisation by variance",
            op("div", op("sub", None, op("mean")), op("sqrt", _variance), as_="norm"),
            _NORM,
        ),
        # Experts: a router picks some of a few; their weights are stacked, or called by index.
        Rule(
            "router",
            op("topk", op("softmax _softmax sigmoid", linear(as_="gate", where=_weighted)), as_="pick", where=_routes),
            {"gate": {"role": "moe_router"}, "pick": {"role": "moe_router"}, "": {"role": "moe_router"}},
        ),
        Rule(
            "router",
            op("topk", linear(as_="gate", where=_weighted), as_="pick", where=_routes),
            {"gate": {"role": "moe_router"}, "pick": {"role": "moe_router"}},
            confidence=0.8,
        ),
        Rule(
            "stacked experts",
            op("bmm baddbmm matmul _grouped_mm", as_="expert", where=_three_dimensional),
            {"expert": {"role": "moe_expert"}},
        ),
        # MLPs, gated and plain.
        Rule(
            "gated MLP",
            op(
                LINEAR,
                op("mul", activation(linear(as_="gate", where=_weighted)), linear(as_="up", where=_weighted)),
                as_="down",
            ),
            _GATED,
            when=_is_gate,
        ),
        Rule(
            "gated MLP, gate and values in one product",
            op(
                LINEAR,
                op("mul", activation(op("split chunk slice select", linear(as_="up", where=_weighted))), None),
                as_="down",
            ),
            _MLP,
        ),
        Rule("MLP", op(LINEAR, activation(linear(as_="up", where=_weighted)), as_="down", where=_weighted), _MLP),
        Rule(
            "MLP, GELU by tanh written out",
            op(
                LINEAR,
                op("mul", op("mul", linear(as_="up", where=_weighted)), op("add", op("tanh", _cubic))),
                as_="down",
                where=_weighted,
            ),
            _MLP,
        ),
        Rule(
            "MLP, GELU by sigmoid",
            op(
                LINEAR,
                op("mul", linear(as_="up", where=_weighted), op("sigmoid", op("mul", linear()))),
                as_="down",
                where=_weighted,
            ),
            _MLP,
        ),
        Rule(
            "MLP, squared",
            op(LINEAR, op("pow square", op("relu", linear(as_="up", where=_weighted))), as_="down"),
            _MLP,
        ),
        # Positions.
        Rule("rotary positions", op("add", op("mul"), op("mul", op("cat", op("neg"))), as_="rotary"), _ROTARY),
        Rule("rotary positions", op("add", op("mul"), op("mul", op("stack", op("neg"))), as_="rotary"), _ROTARY),
        Rule("rotary positions, complex", op("view_as_real", op("mul", op("view_as_complex")), as_="rotary"), _ROTARY),
        Rule("angles of positions", op("cos sin", as_="rotary", where=_turns), _ROTARY, confidence=0.6),
        Rule("positions", op("embedding", as_="row", where=_by_position), {"row": {"role": "position_embedding"}}),
        Rule("embedding", op("embedding", as_="row", where=_weighted), {"row": {"role": "embedding"}}, confidence=1.0),
        Rule("residual", op("add", as_="sum", where=_rejoins), {"sum": {"role": "residual"}}, confidence=0.7),
    ],
    specificity=10,
)
