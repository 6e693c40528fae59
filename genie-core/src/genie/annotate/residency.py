"""Where values belong: weights, caches, state, inputs, activations, scratch; by what the frontend knows of inputs, by
lineage, and by what values are computed from."""

from __future__ import annotations

from typing import NamedTuple

from genie.graph import Evidence, Graph, ValueSemantics
from genie.graph.attention import attentions
from genie.graph.calls import given_data, weights
from genie.graph.lineage import Lineage, lineage
from genie.graph.structure import Structure, structure


class State(NamedTuple):
    """A value that lives from call to call, by what it is for."""

    residency: str
    group: str
    why: Evidence


def residencies(graph: Graph) -> list[ValueSemantics | None]:
    """By value. A value that nothing is known of is ``None``."""
    view, heavy = structure(graph), weights(graph)
    shared: dict[tuple[str, ...], ValueSemantics] = {}
    states = _states(graph, view)
    read = _reads(view)
    data = given_data(graph)

    def meaning(residency: str, pattern: str, why: Evidence, group: str | None = None) -> ValueSemantics:
        key = (residency, pattern, why.reason, group or "")
        known = shared.get(key)
        if known is None:
            known = shared[key] = ValueSemantics(residency, None, pattern, group, (why,))
        return known

    of_input: dict[int, Evidence] = {}
    for entry in graph.inputs:
        if entry.value in heavy.known:
            of_input[entry.value] = _SAID[entry.origin]
        elif entry.value in heavy.told:
            of_input[entry.value] = _USED
    for value, number in graph.value_marks:
        mark = graph.marks[number]
        if mark.residency is not None:
            # The user's word holds of the memory, whatever view of it an operator reads.
            why = next((each for each in mark.evidence if each.label == "residency"), _MARKED)
            group = mark.colocation_group or f"{mark.residency}:marked:{value}"
            states[view.storage[value]] = State(mark.residency, group, why)
    found: list[ValueSemantics | None] = [None] * len(graph.values)
    for value in range(len(graph.values)):
        root = view.storage[value]
        weight = of_input.get(root)
        state = states.get(value) or states.get(root)
        if state is not None and state.why.source == "user":
            found[value] = meaning(state.residency, "persistent", state.why, state.group)
        elif weight is not None:
            found[value] = meaning("weight", "persistent", weight)
        elif state is not None:
            found[value] = meaning(state.residency, "persistent", state.why, state.group)
        elif view.maker[value] < 0:
            found[value] = meaning("input", "reused" if read[value] > 1 else "streaming", _ENTERS)
        elif data[value]:
            found[value] = meaning("activation", "reused" if read[value] > 1 else "streaming", _COMPUTED)
        else:
            found[value] = meaning("ephemeral", "ephemeral", _SCRATCH)
    return found


_SAID = {
    "parameter": Evidence("residency", "framework", "a parameter of a module"),
    "buffer": Evidence("residency", "framework", "a buffer of a module"),
}
_USED = Evidence("residency", "structure", "used only as weights are", 0.9)
_MARKED = Evidence("residency", "user", "user mark")
_ENTERS = Evidence("residency", "structure", "enters the graph and is no weight or state")
_COMPUTED = Evidence("residency", "structure", "computed from what enters")
_SCRATCH = Evidence("residency", "structure", "computed from constants and weights alone")
_TOGETHER = Evidence("residency", "structure", "keys or values of attentions, put together", 0.85)
_BECOMES = {
    "grown": "grows along one axis from call to call",
    "written": "written in place, a part at a time",
    "replaced": "a value computed from it takes its place in the next call",
    "kept": "kept from an earlier call and used again as it is",
}


def _states(graph: Graph, view: Structure) -> dict[int, State]:
    """Value → the state it is a version of. Keys and values of one attention are one group."""
    chains = lineage(graph)
    attended: dict[int, int] = {}  # chain, by its first version → number of the first attention that reads it
    first: dict[int, int] = {}
    parts = {view.part[value]: chain for value, chain in chains.items()}  # a window is a part of what attention reads
    for number, attention in enumerate(attentions(graph)):
        for operand in (attention.key, attention.value):
            for value in (operand, view.source[operand], view.part[operand], view.storage[operand]):
                chain = chains.get(value) or parts.get(value)
                if chain is not None:
                    attended.setdefault(chain.versions[0], number)
                first.setdefault(value, number)
    found: dict[int, State] = {}
    groups: dict[int, str] = {}
    for value, chain in chains.items():
        reader = attended.get(chain.versions[0])
        residency = _kind(view, chain, reader is not None)
        if residency is None:
            continue
        key = reader if reader is not None else -1 - chain.versions[0]
        group = groups.setdefault(key, f"{residency}:{len(groups)}")
        reason = _BECOMES[chain.kind] + (f" (axis {chain.axis})" if chain.axis >= 0 else "")
        reason += ", read as keys or values of attention" if reader is not None else ""
        found[value] = State(residency, group, Evidence("residency", "lineage", reason))
    for value in _ends_of_cells(view):
        if value not in found and value in graph.outputs:
            group = groups.setdefault(-1 - value, f"recurrent_state:{len(groups)}")
            why = Evidence("residency", "structure", "the state a recurrent cell ends with, used by nothing else", 0.8)
            found[value] = State("recurrent_state", group, why)
    for value in graph.outputs:
        if value in found or view.maker[value] < 0:
            continue
        # A part or another order of a cache's last version; or caches put together.
        chain = chains.get(view.part[value])
        inner = found.get(view.part[value])
        if chain is not None and inner is not None and len(view.shape(value)) == len(view.shape(view.part[value])):
            found[value] = inner
        elif view.made_by(value) in ("stack", "cat"):
            parts_of = view.operands[view.maker[value]]
            if parts_of and all(each in first or view.source[each] in first for each in parts_of):
                position = first.get(parts_of[0], first.get(view.source[parts_of[0]], 0))
                group = groups.setdefault(position, f"kv_cache:{len(groups)}")
                found[value] = State("kv_cache", group, _TOGETHER)
    widths = {(view.part[value], view.shape(value)[-1:]): position for value, position in first.items()}
    for value in graph.outputs:
        # Some of the keys of an attention, if no more: a window keeps the latest.
        position = first.get(value, widths.get((view.part[value], view.shape(value)[-1:]), -1))
        if value not in found and position >= 0 and view.maker[value] >= 0 and len(view.shape(value)) >= 2:
            group = groups.setdefault(position, f"kv_cache:{len(groups)}")
            why = Evidence("residency", "structure", "keys or values of attention that outlive the graph", 0.9)
            found[value] = State("kv_cache", group, why)
    return found


_CELLS = frozenset("_thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split())


def _ends_of_cells(view: Structure) -> list[int]:
    """What recurrent cells leave for the next call: of each cell the last state, by itself or layer by layer. States of
    one cell after another in time are its output."""
    found: list[int] = []
    last: dict[tuple[int, ...], int] = {}  # by the cell's weights: its last step
    weight_of: dict[int, tuple[int, ...]] = {}
    for name in _CELLS & view.by_name.keys():
        for at in view.by_name[name]:
            weight = tuple(value for value in view.operands[at] if view.maker[value] < 0)
            last[weight] = at
            weight_of |= {value: weight for value in view.steps[at].outputs[:2] if value >= 0}
    for at in last.values():
        for value in view.steps[at].outputs[:2]:
            if value < 0:
                continue
            found.append(value)
            for user in view.users[value]:
                if view.names[user] not in ("stack", "cat", "unsqueeze"):
                    continue
                together = [weight_of.get(each, ()) for each in view.operands[user]]
                if len(set(together)) == len(together):
                    found += [made for made in view.steps[user].outputs if made >= 0 and not view.users[made]]
    return found


def _kind(view: Structure, chain: Lineage, attended: bool) -> str | None:
    rank = len(view.shape(chain.versions[0]))
    if attended:
        return "kv_cache" if rank >= 2 else None
    if chain.kind == "kept":
        return None
    if chain.kind == "grown":
        # Keys and values of an attention that is written in no way known; results that are collected are none.
        read = sum(_is_read(view, value) for value in chain.versions)
        return "kv_cache" if rank >= 3 and read >= max(1, min(2, len(chain.versions) - 1)) else None
    return "recurrent_state"


def _is_read(view: Structure, value: int) -> bool:
    """Whether anything is made of a value but a longer one."""
    front = [value]
    while front:
        for at in view.users[front.pop()]:
            views = [output for output, _ in view.steps[at].aliases]
            if not views and view.names[at] != "cat":
                return True
            front += views
    return False


def _reads(view: Structure) -> list[int]:
    """By value: how many operators read it, behind views; a second read is what makes it worth keeping near."""
    reads = [0] * len(view.maker)
    for at in range(len(view.steps) - 1, -1, -1):
        node = view.steps[at]
        aliases = dict(node.aliases) if node.aliases and not node.mutates else {}
        if aliases:
            for output, operand in aliases.items():
                reads[operand] += reads[output]
        else:
            for value in dict.fromkeys(view.operands[at]):
                reads[value] += 1
    return reads


def cache_groups(graph: Graph, where: list[ValueSemantics | None]) -> list[str]:
    """By position: the group of the KV cache a node reads or writes; ``""`` for none."""
    cached = {
        value: meaning.colocation_group or ""
        for value, meaning in enumerate(where)
        if meaning is not None and meaning.residency == "kv_cache"
    }
    if not cached:
        return [""] * len(graph.steps)
    view = structure(graph)
    found = []
    for at, node in enumerate(graph.steps):
        group = next((cached[value] for value in view.operands[at] if value in cached), "")
        found.append(group or next((cached[value] for value in node.outputs if value in cached), ""))
    return found
