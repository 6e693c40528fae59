"""Attention, in whatever operators it is written: one fused operator, or two products around a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from genie.graph import Graph
from genie.graph.once import once
from genie.graph.structure import Structure, structure

# Query, key and value are the first three operands, the mask the fourth, if any.
FUSED = frozenset(
    """scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention
    _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable""".split()
)
PRODUCTS = frozenset("bmm matmul baddbmm mm einsum linear".split())
# What may stand between the product of queries and keys and the softmax: scale, bias, mask, soft cap; and after it.
_BETWEEN = frozenset(
    """mul div add sub where masked_fill clamp clamp_min clamp_max tanh to _to_copy maximum minimum rsub relu
    nan_to_num baddbmm cat slice""".split()
)
_WEAKENS = frozenset("mul div slice".split())  # what may stand between the softmax and the product after it
_FARTHEST = 12  # operators between product and softmax


class Attention(NamedTuple):
    """One attention of the graph; ``nodes`` are positions of what it is made of, products first. Lengths are numbers of
    positions; ``kv_heads`` is less than ``heads`` where queries share keys (1: multi-query). 0 is unknown."""

    nodes: tuple[int, ...]
    query: int  # values
    key: int
    value: int
    output: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    causal: bool
    softmax: tuple[int, ...] = ()  # those of the nodes that are the softmax, where it is not all one operator


@once
def attentions(graph: Graph) -> tuple[Attention, ...]:
    """All attentions of a graph, in order."""
    view = structure(graph)
    found = [*_fused(view), *_composed(view), *_whole_layers(view)]
    return tuple(sorted(found, key=lambda each: each.nodes[0]))


def _fused(view: Structure) -> Iterator[Attention]:
    for name in FUSED & view.by_name.keys():
        for at in view.by_name[name]:
            node = view.steps[at]
            operands = view.operands[at]
            if len(operands) < 3 or not node.outputs or len(view.shape(operands[0])) < 3:
                continue
            query, key, value = operands[:3]
            causal = next((arg for arg in node.args[3:] if arg is True), False) is True
            if name == "scaled_dot_product_attention":
                causal = len(node.args) > 5 and node.args[5] is True
            mask = operands[3] if len(operands) > 3 else -1
            causal = causal or (mask >= 0 and is_causal(view, mask))
            yield _attention(view, (at,), query, key, value, node.outputs[0], causal)


class Softmax(NamedTuple):
    """``nodes`` are positions of what it is made of, the last of which makes its result."""

    nodes: tuple[int, ...]
    given: int  # values
    made: int


def softmaxes(view: Structure) -> Iterator[Softmax]:
    """One operator, or exponentials divided by their sum, mostly less their largest."""
    for name in ("_softmax", "softmax", "_safe_softmax"):
        for at in view.by_name.get(name, ()):
            if not view.steps[at].mutates and view.steps[at].outputs[0] >= 0:
                yield Softmax((at,), view.operands[at][0], view.steps[at].outputs[0])
    for at in view.by_name.get("div", ()):
        operands = view.operands[at]
        if len(operands) != 2 or view.made_by(view.source[operands[1]]) != "sum":
            continue
        total = view.maker[view.source[operands[1]]]
        raised = view.maker[view.source[operands[0]]]
        if raised < 0 or view.names[raised] != "exp":
            continue
        if view.source[view.operands[total][0]] != view.source[view.steps[raised].outputs[0]]:
            continue
        nodes, given = [raised, total, at], view.operands[raised][0]
        less = view.maker[given]
        if less >= 0 and view.names[less] == "sub" and len(view.operands[less]) == 2:
            given, largest = view.operands[less]
            nodes = [*_up_to(view, largest, ("amax", "max")), less, *nodes]
        yield Softmax(tuple(nodes), given, view.steps[at].outputs[0])


def _up_to(view: Structure, value: int, names: tuple[str, ...]) -> list[int]:
    """Positions of what makes a value, up to an operator of these names."""
    found: list[int] = []
    for _ in range(4):
        at = view.maker[view.source[value]]
        if at < 0:
            return []
        found.insert(0, at)
        if view.names[at] in names:
            return found
        if not view.operands[at]:
            return []
        value = view.operands[at][0]
    return []


def _composed(view: Structure) -> Iterator[Attention]:
    for softmax in softmaxes(view):
        found = _around(view, softmax)
        if found is not None:
            yield found


def _around(view: Structure, softmax: Softmax) -> Attention | None:
    """The attention of a softmax."""
    scores = softmax.made
    if len(view.shape(scores)) < 2:
        return None
    apply, carrier = _product_after(view, scores)
    if apply < 0:
        return None
    found = _product_before(view, softmax.given, _FARTHEST)
    if found is None:
        return None
    product, between, causal = found
    operands = view.operands[product]
    if view.names[product] == "baddbmm":
        operands = operands[1:]
    query, key = operands[0], operands[1]
    value = next((each for each in view.operands[apply] if each != carrier), -1)
    if value < 0:
        return None
    nodes = (product, apply, *reversed(softmax.nodes), *between)
    made = view.steps[apply].outputs[0]
    return _attention(view, nodes, query, key, value, made, causal, scores)._replace(softmax=softmax.nodes)


def _product_before(view: Structure, value: int, steps: int) -> tuple[int, list[int], bool] | None:
    """The product of queries and keys behind scale, bias and mask; what is in between; whether a mask is causal. Of two
    ways the one to a product of no weight: the other is a bias."""
    asked, value = value, view.source[value]
    maker = view.maker[value]
    if maker < 0 or steps == 0:
        return None
    name, operands = view.names[maker], view.operands[maker]
    writers = {at for each in (asked, value) for at in view.writes.get(view.storage[each], ())}
    causal = any(is_causal(view, each) for at in writers for each in view.operands[at][1:])
    if name in PRODUCTS and len(operands) >= 2:
        return maker, [], causal
    if name not in _BETWEEN or not operands:
        return None
    shape = view.shape(value)
    ways = [each for each in operands if view.shape(each) == shape and _float(view, each)] or [operands[0]]
    best: tuple[int, list[int], bool] | None = None
    for way in sorted(ways, key=lambda each: -view.maker[each]):
        found = _product_before(view, way, steps - 1)
        if found is None:
            continue
        sides = [each for each in operands if each != way]
        mine = (found[0], [maker, *found[1]], causal or found[2] or any(is_causal(view, side) for side in sides))
        if best is None or (_with_weight(view, best[0]) and not _with_weight(view, found[0])):
            best = mine
        if not _with_weight(view, found[0]):
            break
    return best


def _with_weight(view: Structure, at: int) -> bool:
    return any(view.maker[view.source[value]] < 0 for value in view.operands[at][:2])


def _float(view: Structure, value: int) -> bool:
    return view.dtype(value).startswith(("float", "bfloat"))


def _product_after(view: Structure, scores: int) -> tuple[int, int]:
    """The product that applies scores to values, behind casts and dropout, and the operand that brings the scores."""
    front = [scores]
    for _ in range(6):
        following: list[int] = []
        for value in front:
            for user in view.users[value]:
                said = view.steps[user].semantics
                if said is not None and said.phase in ("backward", "optimizer"):
                    continue
                name, operands = view.names[user], view.operands[user]
                if name in PRODUCTS and len(operands) >= 2:
                    return user, value
                made = view.steps[user].outputs
                if made and made[0] >= 0 and (view.source[made[0]] == view.source[value] or name in _WEAKENS):
                    following.append(made[0])
        front = following[:8]
    return -1, -1


def _whole_layers(view: Structure) -> Iterator[Attention]:
    """Encoder layers of torch.nn fused into one operator."""
    for name in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention"):
        for at in view.by_name.get(name, ()):
            node = view.steps[at]
            query = view.operands[at][0]
            shape = view.shape(query)
            heads = next((arg for arg in node.args[1:4] if type(arg) is int and arg < 4096), 0)
            if name == "_transformer_encoder_layer_fwd":
                heads = node.args[2] if len(node.args) > 2 and type(node.args[2]) is int else 0
            if len(shape) == 3 and node.outputs[0] >= 0:
                length = shape[1]
                yield Attention((at,), query, query, query, node.outputs[0], length, length, heads, heads, False)


def _attention(
    view: Structure,
    nodes: tuple[int, ...],
    query: int,
    key: int,
    value: int,
    output: int,
    causal: bool,
    scores: int = -1,
) -> Attention:
    shape = view.shape(query)
    if scores >= 0:
        queries, keys = view.shape(scores)[-2:]
    else:
        queries, keys = shape[-2], view.shape(key)[-2] if len(view.shape(key)) > 1 else 0
    if scores >= 0 and len(view.shape(scores)) == 4:
        shape = view.shape(scores)
    heads = shape[1] if len(shape) == 4 else 0
    return Attention(nodes, query, key, value, output, queries, keys, heads, _kv_heads(view, value, heads), causal)


def _kv_heads(view: Structure, value: int, heads: int) -> int:
    """Heads of the values before they were repeated for the queries that share them."""
    fewest = heads
    for _ in range(8):
        shape = view.shape(value)
        if len(shape) == 4 and 0 < shape[1] < fewest:
            fewest = shape[1]
        maker = view.maker[value]
        if maker < 0 or not view.operands[maker] or view.source[value] == value:
            break
        if view.names[maker] in ("permute", "transpose"):
            break  # before, heads may be another dimension
        if view.names[maker] == "expand":
            before, after = view.shape(view.operands[maker][0]), shape
            if len(before) == len(after) == 5 and before[2] == 1 and before[1]:
                fewest = min(fewest, before[1])
        value = view.operands[maker][0]
    return fewest


_COMPARES = frozenset("le ge lt gt tril triu".split())


def is_causal(view: Structure, mask: int) -> bool:
    """Whether a mask is made by comparing positions, and not by their distance: a window looks both ways."""
    front, seen, compares = [mask], {mask}, False
    for _ in range(32):
        if not front:
            break
        value = front.pop()
        maker = view.maker[value]
        if maker < 0:
            continue
        if view.names[maker] == "abs":
            return False
        compares = compares or (view.names[maker] in _COMPARES and len(view.shape(value)) >= 2)
        for operand in view.operands[maker]:
            if operand not in seen:
                seen.add(operand)
                front.append(operand)
    return compares
