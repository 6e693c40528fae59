"""Roles around attention: what makes queries, keys and values, what keeps them, what attends, what projects back."""

from __future__ import annotations

from collections.abc import Iterator

from genie.graph import Evidence
from genie.match import (
    LINEAR,
    Attention,
    Finder,
    Match,
    Structure,
    attentions,
    calls,
    flow,
    lineage,
    weight_side,
    weights,
)

_LINEAR = frozenset(LINEAR.split())
_APPENDS = frozenset("cat index_copy index_put slice_scatter copy scatter".split())
_FARTHEST = 12


def _labels(role: str, reason: str) -> dict[str, object]:
    return {"role": role, "evidence": (Evidence("role", "structure", reason, 0.95),)}


class AttentionRoles(Finder):
    """Attention and the products and caches around it."""

    name = "llm-attention"
    specificity = 20

    def find(self, view: Structure) -> Iterator[Match]:
        heavy = weights(view.graph)
        chains, call_of = lineage(view.graph), calls(view.graph)
        taken: set[int] = set()
        kinds: dict[str, dict[str, object]] = {}

        def labelled(role: str, reason: str) -> dict[str, object]:
            key = role + reason
            if key not in kinds:
                kinds[key] = _labels(role, reason)
            return kinds[key]

        for each in attentions(view.graph):
            kind = describe(view, each)
            role = "cross_attention" if "cross" in kind else "causal_attention" if each.causal else "attention"
            if len(each.nodes) == 1:
                yield Match((view.steps[each.nodes[0]],), labelled(role, kind))
            else:
                product, apply, *between = each.nodes
                between = [at for at in between if at not in each.softmax]
                yield Match((view.steps[product],), labelled("attention_scores", kind))
                yield Match([view.steps[at] for at in each.softmax], labelled("attention_softmax", kind))
                yield Match((view.steps[apply],), labelled(role, kind))
                yield Match([view.steps[at] for at in between], labelled("attention_scores", kind))
            for operand, role in ((each.query, "query"), (each.key, "key"), (each.value, "value")):
                for at in _behind(view, operand, call_of[each.nodes[0]]):
                    if at in taken:
                        continue
                    taken.add(at)
                    name = view.names[at]
                    if name in _LINEAR and any(view.storage[v] in heavy for v in view.operands[at]):
                        yield Match((view.steps[at],), labelled(f"attention_{role}", f"makes the {role} of attention"))
                    elif name in _APPENDS and view.steps[at].outputs and view.steps[at].outputs[0] in chains:
                        yield Match((view.steps[at],), labelled("kv_append", "grows the cache attention reads"))
                written = view.writes.get(view.storage[operand], ()) if role != "query" else ()
                for at in written:
                    if at not in taken and view.names[at] in _APPENDS:
                        taken.add(at)
                        yield Match((view.steps[at],), labelled("kv_append", "writes into the cache attention reads"))
            after = _projection(view, each, heavy)
            if after >= 0 and after not in taken:
                taken.add(after)
                yield Match((view.steps[after],), labelled("attention_projection", "takes what attention gives"))


def describe(view: Structure, attention: Attention) -> str:
    """The kind of an attention in words: what it shares, what it may see."""
    words = []
    if attention.heads and attention.kv_heads and attention.kv_heads < attention.heads:
        words.append("multi-query" if attention.kv_heads == 1 else "grouped-query")
    if crosses(view, attention):
        words.append("cross")
    elif attention.causal:
        words.append("causal")
    words.append("attention")
    return " ".join(words) + ("" if len(attention.nodes) == 1 else ", written out")


def crosses(view: Structure, attention: Attention) -> bool:
    """Whether keys come from elsewhere than queries."""
    if is_kept(view, attention):
        return True
    call = calls(view.graph)[attention.nodes[0]]
    if _writes_own(view, attention, call):
        return False
    query, key = _product_of(view, attention.query, call), _product_of(view, attention.key, call)
    if query < 0 or key < 0 or query == key:
        return False
    mine, its = _data_of(view, query), _data_of(view, key)
    if _appends(view, its):
        return False  # keys computed from a compressed cache
    bits = flow(view.graph).bits
    elsewhere = attention.queries != attention.keys or bits[attention.query] != bits[attention.key]
    return view.part[mine] != view.part[its] and elsewhere


def _writes_own(view: Structure, attention: Attention, call: int) -> bool:
    """Whether what this call writes into the cache comes from where queries come from. Layers may share one cache: the
    latest writes before the attention are its own."""
    call_of, query = calls(view.graph), _product_of(view, attention.query, call)
    if query < 0:
        return False
    root = view.storage[view.source[attention.key]]
    before = [at for at in view.writes.get(root, ()) if call_of[at] == call and at < attention.nodes[0]]
    products = [_product_of(view, view.operands[at][-1], call) for at in before[-2:] if view.names[at] in _APPENDS]
    given = _data_of(view, query)
    return any(at >= 0 and view.part[_data_of(view, at)] == view.part[given] for at in products)


def _data_of(view: Structure, product: int) -> int:
    """What a product multiplies with its matrix."""
    if view.names[product] == "mm":
        return view.operands[product][1 - weight_side(view, product)]
    return view.operands[product][1 if view.names[product] in ("addmm", "baddbmm") else 0]


def _appends(view: Structure, value: int) -> bool:
    """Whether a value is a cache that has just grown."""
    at, chains = view.maker[view.source[value]], lineage(view.graph)
    return (
        at >= 0
        and view.names[at] == "cat"
        and any(each in chains or 0 in view.shape(each) for each in view.operands[at])
    )


def is_kept(view: Structure, attention: Attention) -> bool:
    """Whether keys are a cache to which this call adds nothing."""
    chains, call = lineage(view.graph), calls(view.graph)
    root, now = view.source[attention.key], call[attention.nodes[0]]
    if root not in chains and view.storage[root] not in chains:
        return False
    maker = view.maker[root]
    if maker >= 0 and call[maker] == now:
        return False
    return not any(call[at] == now for at in view.writes.get(view.storage[root], ()))


def behind(view: Structure, attention: Attention) -> list[int]:
    """Nodes that make the keys and values of an attention, down to the products they come from."""
    call = calls(view.graph)[attention.nodes[0]]
    return [at for operand in (attention.key, attention.value) for at in _behind(view, operand, call)]


def _product_of(view: Structure, value: int, call: int) -> int:
    return next((at for at in _behind(view, value, call) if view.names[at] in _LINEAR), -1)


def _behind(view: Structure, value: int, call: int) -> Iterator[int]:
    """Nodes on the way up from an operand of attention to the product that makes it, nearest first. Of a cache written
    in place, from what the call writes."""
    call_of = calls(view.graph)
    front = [value]
    for _ in range(_FARTHEST):
        following: list[int] = []
        for each in front:
            at = view.maker[view.source[each]]
            for writer in view.writes.get(view.storage[view.source[each]], ()):
                if call_of[writer] == call and view.names[writer] in _APPENDS:
                    following += view.operands[writer][-1:]
            if at < 0:
                continue
            yield at
            if view.names[at] in _LINEAR:
                continue
            operands = view.operands[at]
            # Of a cache that grows, or a part of which is replaced, the new part; of anything else, all there is.
            following += operands[-1:] if view.names[at] in _APPENDS else operands[:2]
        front = following[:4]


def _projection(view: Structure, attention: Attention, heavy: object) -> int:
    front = [attention.output]
    for _ in range(6):
        following: list[int] = []
        for value in front:
            for at in view.users[value]:
                if view.names[at] in _LINEAR:
                    return at
                following += [out for out in view.steps[at].outputs if out >= 0][:1]
        front = following[:4]
    return -1
