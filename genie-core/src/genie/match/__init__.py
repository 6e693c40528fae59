"""What patterns are made of: a small declarative matcher, and what is worth knowing of a graph before matching."""

from genie.graph.attention import Attention, attentions
from genie.graph.calls import calls, weight_side, weights
from genie.graph.lineage import lineage
from genie.graph.once import once
from genie.graph.structure import Structure, structure
from genie.match.flow import Entry, Flow, flow, result_of, trained_calls
from genie.match.pattern import ACTIVATION, LINEAR, Finder, Match, Op, Rule, Table, activation, linear, op

__all__ = [
    "ACTIVATION",
    "LINEAR",
    "Attention",
    "Entry",
    "Finder",
    "Flow",
    "Match",
    "Op",
    "Rule",
    "Structure",
    "Table",
    "activation",
    "attentions",
    "calls",
    "flow",
    "lineage",
    "linear",
    "once",
    "op",
    "result_of",
    "structure",
    "trained_calls",
    "weight_side",
    "weights",
]
