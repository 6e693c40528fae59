"""From the last product with the vocabulary to the choice of the next token."""

from __future__ import annotations

from collections.abc import Iterator

from genie.graph import Evidence, Graph
from genie.match import LINEAR, Finder, Match, Structure, attentions, calls, flow, once, structure, weight_side, weights

_LINEAR = frozenset(LINEAR.split())
_CHOOSES = frozenset("argmax multinomial topk sort max exponential".split())
_MIXES = _LINEAR | {"bmm", "einsum", "convolution", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"}


class Sampling(Finder):
    """The head over the vocabulary; and, where its scores end in a choice, everything on the way there."""

    name = "llm-sampling"
    specificity = 30

    def find(self, view: Structure) -> Iterator[Match]:
        heads = vocabulary_heads(view)
        if not heads:
            return
        why = Evidence("role", "structure", "a score for each word of the embedding", 0.95)
        yield Match([view.steps[at] for at in heads], {"role": "lm_head", "evidence": (why,)})
        nodes = choosing(view.graph)
        reason = "from scores of words to a choice"
        evidence = tuple(Evidence(label, "structure", reason, 0.9) for label in ("phase", "role"))
        labels = {"phase": "sampling", "role": "sampling", "evidence": evidence}
        if nodes:
            yield Match([view.steps[at] for at in nodes], labels)


@once
def choosing(graph: Graph) -> list[int]:
    """Positions of what leads from scores of words to a choice, in calls that make one."""
    view = structure(graph)
    after = _after(view, _heads(graph))
    return [at for found in after.values() if any(view.names[at] in _CHOOSES for at in found) for at in found]


def vocabulary_heads(view: Structure) -> dict[int, int]:
    """Products with a matrix that has a row for each word of an embedding, whose result is mixed with nothing:
    position → words."""
    return _heads(view.graph)


@once
def _heads(graph: Graph) -> dict[int, int]:
    view, heavy = structure(graph), weights(graph)
    # Ids of one position may come without a dimension for it.
    words = {
        view.shape(each.table)[0]
        for each in flow(graph).entries
        if "bag" not in view.names[each.at] and each.way in ("ids", "rows")
    }
    read = {view.part[value] for each in attentions(graph) for value in (each.query, each.key, each.value)}
    found: dict[int, int] = {}
    for name in _LINEAR & view.by_name.keys() if words else ():
        for at in view.by_name[name]:
            outputs = view.steps[at].outputs
            shape = view.shape(outputs[0]) if outputs and outputs[0] >= 0 else ()
            # One written the other way round gives a row for each word.
            if name == "mm" and shape and weight_side(view, at) == 0:
                shape = shape[::-1]
            if not shape or shape[-1] not in words or shape[-1] < 2:
                continue
            held = (value for value in view.operands[at] if view.storage[value] in heavy)
            matrix = next((value for value in held if len(view.shape(value)) == 2), -1)
            if outputs[0] in read:
                continue  # queries, keys and values in one product
            if matrix >= 0 and shape[-1] in view.shape(matrix) and _last(view, outputs[0], shape[-1]):
                found[at] = shape[-1]
    return found


def _last(view: Structure, scores: int, words: int) -> bool:
    """Whether scores stay scores of words, until they are chosen from or summed up: nothing multiplies them further."""
    front = [scores]
    for _ in range(6):
        following: list[int] = []
        for value in front:
            for at in view.users[value]:
                node = view.steps[at]
                if node.semantics is not None and node.semantics.phase in ("backward", "optimizer"):
                    continue
                if view.names[at] in _MIXES:
                    return False
                made = node.outputs[0] if node.outputs else -1
                if made >= 0 and words in view.shape(made):
                    following.append(made)
        front = following[:16]
    return True


def _after(view: Structure, heads: dict[int, int]) -> dict[int, list[int]]:
    """By call: positions of what is computed from the heads' scores without weights."""
    heavy, call_of = weights(view.graph), calls(view.graph)
    scores = bytearray(len(view.maker))
    nodes: dict[int, list[int]] = {}
    for at, node in enumerate(view.steps):
        if at in heads:
            scores[node.outputs[0]] = 1
            continue
        operands = view.operands[at]
        for value in operands:
            if scores[value]:
                break
        else:
            continue
        if any(view.storage[value] in heavy for value in operands):
            continue
        if node.semantics is not None and node.semantics.phase in ("backward", "optimizer"):
            continue
        for value in (*node.outputs, *node.mutates):
            if value >= 0:
                scores[value] = 1
        nodes.setdefault(call_of[at], []).append(at)
    return nodes
