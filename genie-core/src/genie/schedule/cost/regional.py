"""What a region node costs: what its regions' nodes cost, as often as they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from genie.flops import trips
from genie.graph import Graph, Node
from genie.graph.regions import COND, OPERATORS
from genie.interfaces import Estimate

_Appraise = Callable[[Sequence[Node]], Sequence[Estimate]]


def regional(nodes: Sequence[Node], estimates: Sequence[Estimate], appraise: _Appraise) -> Sequence[Estimate]:
    """The estimates, with those of region nodes made of their regions', which say in their source how."""
    if len(nodes) != len(estimates) or not any(node.operation in OPERATORS for node in nodes):
        return estimates
    return [
        _estimate(node, appraise) if node.operation in OPERATORS else made
        for node, made in zip(nodes, estimates, strict=True)
    ]


def _estimate(node: Node, appraise: _Appraise) -> Estimate:
    each = [_whole(region, appraise) for region in node.regions]
    if node.operation == COND:
        dearest = max(each, key=lambda one: one.seconds)
        return dearest._replace(source=f"its dearest branch, {dearest.source}")
    times = trips(node)
    how = "one iteration, nobody knows how many there are" if times is None else f"{times} iterations"
    seconds = sum(one.seconds for one in each) * (1 if times is None else times)
    return Estimate(seconds, f"{how}, {each[-1].source}", max(one.error for one in each))


def _whole(region: Graph, appraise: _Appraise) -> Estimate:
    nodes = region.nodes()
    made = regional(nodes, appraise(nodes), appraise)
    sources = dict.fromkeys(one.source for one in made)
    error = max((one.error for one in made), default=0.0)
    return Estimate(sum(one.seconds for one in made), " and ".join(sources)[:256] or "nothing to do", error)
