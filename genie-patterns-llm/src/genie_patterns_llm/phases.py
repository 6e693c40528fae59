"""Phases of language models: prefill, decode, sampling, text encoding; by query length against cache length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from genie.graph import Evidence, Graph
from genie.match import (
    LINEAR,
    Attention,
    Entry,
    Finder,
    Flow,
    Match,
    Structure,
    attentions,
    calls,
    flow,
    lineage,
    result_of,
    trained_calls,
    weights,
)
from genie_patterns_llm.attention import behind, crosses
from genie_patterns_llm.sampling import choosing, vocabulary_heads

_RECURS = frozenset("_thnn_fused_lstm_cell _thnn_fused_gru_cell lstm gru rnn_tanh rnn_relu cumsum cumprod".split())
_RECURS |= {"genie::scan", "genie::while_loop"}
_PRODUCTS = frozenset(LINEAR.split())
_COPIES_WITH = frozenset("index_copy index_put slice_scatter select_scatter scatter".split())
_OFTEN = 3  # uses of one weight in a call that make a loop
_MOST_SPECULATED = 8  # positions checked at once by speculative decoding


class _Step(NamedTuple):
    """What an attention over a cache says: positions that are new, and that were there before (-1: unknown)."""

    new: int
    before: int


class _Call(NamedTuple):
    phase: str
    reason: str
    entries: int  # bits of the decoder's own entries; 0: all of the call
    source: str = "structure"
    confidence: float = 0.95


class Phases(Finder):
    """Labels every call of a language model, node by node."""

    name = "llm-phases"
    specificity = 20

    def find(self, view: Structure) -> Iterator[Match]:
        graph = view.graph
        call_of, currents = calls(graph), flow(graph)
        trained = trained_calls(graph)
        by_call: dict[int, list[Attention]] = {}
        for each in attentions(graph):
            by_call.setdefault(call_of[each.nodes[0]], []).append(each)
        heads = vocabulary_heads(view)
        reader = _Reader(view, graph, currents, heads)
        nodes_of: dict[int, list[int]] = {}
        for at, of in enumerate(call_of):
            nodes_of.setdefault(of, []).append(at)
        bits = [_bits(view, currents.bits, at) for at in range(len(view.steps))]
        past = [_bits(view, currents.carried, at) for at in range(len(view.steps))]
        for at in choosing(graph):
            bits[at] = past[at] = 0  # a choice is a phase of its own
        for call in range(max(call_of, default=-1) + 1):
            if call in trained:
                continue
            found = reader.read(call, by_call.get(call, []))
            members = nodes_of.get(call, [])
            for part in found:
                if part.phase in ("prefill", "decode"):
                    # What an encoder gave becomes keys and values in the decoder's call.
                    crossed = {at for each in by_call.get(call, []) if crosses(view, each) for at in behind(view, each)}
                else:
                    crossed = set()
                labels = {"phase": part.phase, "evidence": (_why(part),)}
                nodes = [at for at in members if at in crossed or _belongs(bits[at], past[at], part)]
                if nodes:
                    yield Match([view.steps[at] for at in nodes], labels)


def _why(call: _Call) -> Evidence:
    return Evidence("phase", call.source, call.reason, call.confidence)  # type: ignore[arg-type]


def _belongs(bits: int, past: int, call: _Call) -> bool:
    if call.phase == "text_encode":
        return bits != 0 and bits & ~call.entries == 0
    if bits == 0:
        return past != 0  # what a decoder does with what an encoder gave it before
    return bits & call.entries != 0 if call.entries else True


def _bits(view: Structure, bits: Sequence[int], at: int) -> int:
    value = result_of(view, at)
    return bits[value] if value >= 0 else 0


class _Reader:
    """Reads the phase of a call off its attentions, or, without any, off the state it keeps."""

    def __init__(self, view: Structure, graph: Graph, currents: Flow, heads: Mapping[int, int]) -> None:
        self.view, self.graph, self.flow, self.heads = view, graph, currents, heads
        self.chains = lineage(graph)
        self.call_of = calls(graph)
        self.outputs = set(graph.outputs)
        self.heavy = weights(graph)
        self.words = set(heads.values())
        self.headed = {self.call_of[at] for at in heads}

    def read(self, call: int, found: list[Attention]) -> list[_Call]:
        ids = 0
        for number, entry in enumerate(self.flow.entries):
            if entry.call == call and self._is_text(entry):
                ids |= 1 << number
        cached: list[tuple[Attention, _Step]] = []
        causal: list[Attention] = []
        encoding, filled = 0, False
        for each in found:
            step = self._step(each)
            computed = self._computed_from_cache(each, call)
            if computed is not None:
                cached.append((each, computed))
            elif crosses(self.view, each):
                # Filled in the decoder's first call, and only read from then on.
                filled = filled or (step is not None)
            elif step is not None:
                cached.append((each, step))
            elif each.causal:
                causal.append(each)
            elif self._self(each):
                encoding |= self.flow.bits[each.output]
        if cached:
            mine = self._own([each for each, _ in cached], ids)
            answer = [self._cached(cached, mine, filled)]
            rest = encoding & ids & ~mine
            return [*answer, *([_encode(rest)] if rest else [])]
        if causal and call in self.headed:
            mine = self._own(causal, ids)
            queries = max(each.queries for each in causal)
            if queries > 1 or call == 0:
                reason = f"causal attention over {queries} positions, and a head over the vocabulary"
                rest = encoding & ids & ~mine
                return [_Call("prefill", reason, mine, confidence=0.8), *([_encode(rest)] if rest else [])]
        if not found:
            return self._recurrent(call, ids)
        if ids and (encoding | self._own(causal, ids)) & ids and call not in self._tabular():
            return [_encode(ids)]
        return []

    def _tabular(self) -> set[int]:
        """Calls that look up rows of several tables by one index each: no text."""
        single: dict[int, int] = {}
        for entry in self.flow.entries:
            index = self.view.shape(entry.value)
            if entry.way == "rows" or (entry.way == "ids" and index and index[-1] == 1):
                single[entry.call] = single.get(entry.call, 0) + 1
        return {call for call, count in single.items() if count >= 2}

    def _own(self, found: list[Attention], ids: int) -> int:
        """Entries that all queries depend on: an encoder's join only behind the first layer."""
        mine = -1
        for each in found:
            bits = self.flow.bits[each.query]
            if bits:
                mine &= bits
        if mine == -1:
            return 0
        return mine & ids or mine

    def _self(self, attention: Attention) -> bool:
        return attention.queries == attention.keys > 1

    def _step(self, attention: Attention) -> _Step | None:
        """How much of what an attention reads is new, if it reads a cache."""
        view = self.view
        call = self.call_of[attention.nodes[0]]
        for value in (attention.key, view.source[attention.key], view.part[attention.key]):
            maker = view.maker[value]
            if maker >= 0 and view.names[maker] == "cat" and self.call_of[maker] == call:
                step = self._appended(maker)
                if step is not None:
                    return step
        root = view.storage[attention.key]
        for value in (root, view.storage[view.part[attention.key]], view.storage[view.source[attention.key]]):
            chain = self.chains.get(value)
            if chain is not None and chain.kind == "written":
                new = self._written(value, chain.axis, call)
                if new >= 0:
                    return self._room(attention, chain.versions[0], chain.axis, self._positions(call) or new)
        moved = self.chains.get(root)
        if moved is not None and moved.kind == "replaced" and (new := self._positions(call)):
            return _Step(new, max(attention.keys - new, 0))  # a window kept in place: moved on, then written
        if attention.key in self.outputs or view.source[attention.key] in self.outputs:
            # Keys of an encoder may be looked at, too.
            return _Step(attention.queries, 0) if self._self(attention) and call in self.headed else None
        return None

    def _computed_from_cache(self, attention: Attention, call: int) -> _Step | None:
        """Keys that are computed from a cache in every call: of compressed caches."""
        view = self.view
        if attention.queries >= attention.keys or view.made_by(view.source[attention.key]) == "cat":
            return None
        front, seen = [attention.key], {attention.key}
        for _ in range(96):
            if not front:
                return None
            value = front.pop(0)
            at = view.maker[value]
            writers = [each for each in view.writes.get(view.storage[value], ()) if self.call_of[each] == call]
            if at >= 0 and view.names[at] == "cat" and (step := self._appended(at)) is not None:
                return step
            for each in (at, *writers):
                for operand in view.operands[each] if each >= 0 else ():
                    if operand not in seen and view.dtype(operand).startswith(("float", "bfloat")):
                        seen.add(operand)
                        front.append(operand)
        return None

    def _positions(self, call: int) -> int:
        """Positions of the ids that enter a call; 0: none do."""
        lengths = [
            self.view.shape(entry.value)[-1] if entry.way == "ids" else 1
            for entry in self.flow.entries
            if entry.call == call and self._is_text(entry)
        ]
        return max(lengths, default=0)

    def _is_text(self, entry: Entry) -> bool:
        """Ids of words; one by one, where the model also scores so many words."""
        return entry.way == "ids" or (entry.way == "rows" and self.view.shape(entry.table)[0] in self.words)

    def _room(self, attention: Attention, root: int, axis: int, new: int) -> _Step:
        """Of a preallocated cache, what was there before: nothing, if it is made in this call; what is read besides the
        new positions, if that is not all the room there is; else unknown."""
        view, call = self.view, self.call_of[attention.nodes[0]]
        if self._made_in(root, call):
            return _Step(new, 0)
        # Where several axes are indexed at once, which of them has the positions is told by what is read.
        if axis >= 0 and attention.keys not in view.shape(root) and attention.keys >= new:
            return _Step(new, attention.keys - new)
        return _Step(new, -1)

    def _appended(self, at: int) -> _Step | None:
        """What a concatenation adds to a cache."""
        view, node = self.view, self.view.steps[at]
        before, *rest = view.operands[at]
        roots = (before, view.source[before], view.part[before])
        call = self.call_of[at]
        kept = any(value in self.chains for value in roots) and not self._made_in(roots[1], call)
        # An empty cache is one if what becomes of it stays.
        empty = 0 in view.shape(before) and node.outputs[0] in self.chains
        axis = node.args[1] if len(node.args) > 1 and type(node.args[1]) is int else 0
        rank = len(view.shape(node.outputs[0]))
        if not (kept or empty) or not rest or not rank or any(len(view.shape(each)) != rank for each in rest):
            return None
        axis %= rank
        new = sum(view.shape(each)[axis] for each in rest)
        return _Step(new, 0 if empty else view.shape(before)[axis])

    def _written(self, root: int, axis: int, call: int) -> int:
        """Positions written into a preallocated cache in a call; -1: none."""
        view = self.view
        for at in view.writes.get(root, ()):
            if self.call_of[at] != call:
                continue
            values = view.operands[at]
            given = values[-1]
            shape = view.shape(given)
            if len(shape) == len(view.shape(root)) and axis >= 0:
                return shape[axis]
            return shape[-2] if len(shape) >= 2 else 1
        for value in self.chains[root].versions if root in self.chains else ():
            at = view.maker[value]
            if at >= 0 and self.call_of[at] == call and view.names[at] in _COPIES_WITH:
                shape = view.shape(view.operands[at][-1])
                if len(shape) == len(view.shape(value)) and axis >= 0:
                    return shape[axis]
        return -1

    def _cached(self, found: list[tuple[Attention, _Step]], mine: int, filled: bool) -> _Call:
        new = max(step.new for _, step in found)
        before = max(step.before for _, step in found)
        if before > 0:
            few = new == 1 or (new <= _MOST_SPECULATED and 2 * new <= before)
            phase = "decode" if few else "prefill"
            return _Call(phase, f"{_positions(new)} against a cache of {before}", mine, "lineage", 1.0)
        if filled:
            return _Call("prefill", "keys of an encoder's output are cached", mine, "lineage", 0.95)
        if before == 0:
            return _Call("prefill", f"{_positions(new)} into an empty cache", mine, "lineage", 1.0)
        earlier = self.call_of[found[0][0].nodes[0]] > 0
        phase = "decode" if new == 1 or (earlier and new <= _MOST_SPECULATED) else "prefill"
        reason = f"{_positions(new)} into a preallocated cache"
        return _Call(phase, reason, mine, "lineage", 0.9)

    def _recurrent(self, call: int, ids: int) -> list[_Call]:
        if not ids or call not in self.headed:
            return []
        positions = self._positions(call)
        states = self._states_entering(call)
        if not states and not self._recurs(call):
            return []
        if positions == 1 and states:
            return [_Call("decode", f"one position, with state of {states} values", ids, "lineage", 0.9)]
        return [
            _Call("prefill", f"{_positions(positions)} at once, and a head over the vocabulary", ids, confidence=0.8)
        ]

    def _recurs(self, call: int) -> bool:
        """Whether a call goes along its positions one after the other: by cells, by sums so far, by the same weights
        again and again, or by what it leaves for the next call."""
        view = self.view
        if any(self.call_of[at] == call for name in _RECURS & view.by_name.keys() for at in view.by_name[name]):
            return True
        if any(chain.kind != "kept" and self._made_in(value, call) for value, chain in self.chains.items()):
            return True
        uses: dict[int, int] = {}
        for name in _PRODUCTS & view.by_name.keys():
            for at in view.by_name[name]:
                if self.call_of[at] == call:
                    for value in view.operands[at]:
                        if view.storage[value] in self.heavy:
                            uses[view.storage[value]] = uses.get(view.storage[value], 0) + 1
        return max(uses.values(), default=0) >= _OFTEN

    def _made_in(self, value: int, call: int) -> bool:
        maker = self.view.maker[value]
        return maker >= 0 and self.call_of[maker] == call

    def _states_entering(self, call: int) -> int:
        view = self.view
        found = 0
        for value, chain in self.chains.items():
            if chain.kind == "kept":
                continue
            maker = view.maker[value]
            if maker >= 0 and self.call_of[maker] >= call and not (chain.kind != "grown" and call > 0):
                continue
            if any(self.call_of[at] == call for at in view.users[value]):
                found += 1
        return found


def _positions(count: int) -> str:
    return "1 position" if count == 1 else f"{count} positions"


def _encode(entries: int) -> _Call:
    return _Call("text_encode", "attention over all positions of token ids at once", entries, confidence=0.9)
