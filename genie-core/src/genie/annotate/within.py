"""Labels within regions: each is annotated as a graph of its own, that knows where its inputs belong outside and the
phase of the node that runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from genie.annotate.labels import ordered
from genie.flops import trips
from genie.graph import Evidence, Graph, Input, Node, Semantics, ValueSemantics, relabelled
from genie.graph.regions import OPERATORS, Scan, carried_by, form, taken_by, with_regions

_PHASE = Evidence("phase", "structure", "in a region of a node of this phase", 0.5)
_MAIN = Evidence("phase", "structure", "what its region does, mostly", 0.8)
_STATES = ("kv_cache", "recurrent_state")
_UNCOUNTED = Evidence("flops", "structure", "how often the loop runs is not known before: one iteration", 0.1)


def labelled_within(graph: Graph, annotate: Callable[[Graph], Graph]) -> Graph:
    """The annotated graph, its regions annotated, too. What its loops carry belongs where it belongs within them."""
    if not any(node.operation in OPERATORS for node in graph.steps):
        return graph
    meanings = list(graph.meanings)
    steps = tuple(
        _labelled(graph, node, annotate, meanings) if node.operation in OPERATORS else node for node in graph.steps
    )
    return relabelled(graph, steps, tuple(meanings))


def _labelled(
    graph: Graph, node: Node, annotate: Callable[[Graph], Graph], meanings: list[ValueSemantics | None]
) -> Node:
    its = node.semantics or Semantics()
    outside = [graph.meanings[value] if value >= 0 else None for value in taken_by(node)]
    carried = len(carried_by(node))
    same = carried + (len(call.xs) if isinstance(call := form(node), Scan) else 0)  # from here on, in every turn
    recurs = bool(carried) and any(known is not None and known.residency == "weight" for known in outside[same:])
    found = [_entered(region, outside, carried, recurs, annotate) for region in node.regions]
    main = {_phase(region) for region in found[-1 if carried else 0 :]}
    guessed = its.phase is None or any(why.label == "phase" and why.confidence <= 0.5 for why in its.evidence)
    if guessed and len(main) == 1 and (phase := main.pop()):
        rest = tuple(why for why in its.evidence if why.label != "phase")
        its = replace(its, phase=phase, evidence=ordered(rest, (_MAIN,)))
    for value, made, entry in zip(carried_by(node), node.outputs, found[-1].inputs, strict=False):
        state = found[-1].meanings[entry.value]
        if state is not None and state.residency in _STATES:
            why = tuple(one for one in state.evidence if one.label == "residency")
            for each in (value, made):
                if not any(one.source == "user" for one in (meanings[each] or ValueSemantics()).evidence):
                    meanings[each] = ValueSemantics(state.residency, None, "persistent", None, why)
    regions = [_of_phase(region, its.phase) for region in found]
    if trips(node) is None and not any(why.label == "flops" for why in its.evidence):
        its = replace(its, evidence=ordered(its.evidence, (_UNCOUNTED,)))
    return replace(node, args=with_regions(node, regions), semantics=its)


def _phase(region: Graph) -> str | None:
    """The phase of most of a region's work."""
    work: Counter[str] = Counter()
    for node in region.steps:
        if node.semantics is not None and node.semantics.phase is not None:
            work[node.semantics.phase] += (node.semantics.flops or 0) + 1
    return max(work, key=lambda phase: work[phase], default=None)


def _entered(
    region: Graph,
    outside: Sequence[ValueSemantics | None],
    carried: int,
    recurs: bool,
    annotate: Callable[[Graph], Graph],
) -> Graph:
    """The region annotated: its inputs belong where they belong outside, or nobody knows where. What it carries on from
    turn to turn, with weights that are the same in each (``recurs``), is its state."""
    entries = [_told(entry, known) for entry, known in zip(region.inputs, outside, strict=True)]
    if recurs:
        entries[:carried] = [replace(entry, lineage="replaced") for entry in entries[:carried]]
    made = annotate(replace(region, inputs=tuple(entries)))
    meanings = list(made.meanings)
    for number, (entry, known) in enumerate(zip(region.inputs, outside, strict=True)):
        its = meanings[entry.value] or ValueSemantics()
        if number < carried and its.residency in _STATES:
            continue
        why = tuple(one for one in its.evidence if one.label != "residency")
        if known is not None:
            why = ordered(why, tuple(one for one in known.evidence if one.label == "residency"))
        meanings[entry.value] = replace(its, residency=known.residency if known else None, evidence=why)
    return relabelled(replace(made, inputs=region.inputs), made.steps, tuple(meanings))


def _told(entry: Input, known: ValueSemantics | None) -> Input:
    return replace(entry, origin="parameter") if known is not None and known.residency == "weight" else entry


def _of_phase(region: Graph, phase: str | None) -> Graph:
    if phase is None:
        return region
    steps: list[Node] = []
    for node in region.steps:
        its = node.semantics or Semantics()
        if its.phase is None:
            its = replace(its, phase=phase, evidence=ordered(its.evidence, (_PHASE,)))
        args = node.args
        if node.operation in OPERATORS:
            args = with_regions(node, [_of_phase(inner, its.phase) for inner in node.regions])
        steps.append(replace(node, args=args, semantics=its))
    return relabelled(region, tuple(steps), region.meanings)
