"""Plans: a graph with a place for every node, and all that follows from it."""

from genie.plan.alternatives import Alternative
from genie.plan.constraints import DRAWN, Groups, broken, conflict, exact, grouped
from genie.plan.explanation import Explanation, Wait
from genie.plan.lives import liveness, room, split_storage
from genie.plan.model import ExecutionPlan
from genie.plan.moves import Links, peaks, transfers
from genie.plan.pinning import in_module, place, refuse
from genie.plan.records import Again, Constraint, Decision, EngineChoice, Link, Stage, Transfer, stages
from genie.plan.rules import bare, verify
from genie.plan.timeline import Span, Timeline, makespan, timeline

__all__ = [
    "DRAWN",
    "Again",
    "Alternative",
    "Constraint",
    "Decision",
    "EngineChoice",
    "ExecutionPlan",
    "Explanation",
    "Groups",
    "Link",
    "Links",
    "Span",
    "Stage",
    "Timeline",
    "Transfer",
    "Wait",
    "bare",
    "broken",
    "conflict",
    "exact",
    "grouped",
    "in_module",
    "liveness",
    "makespan",
    "peaks",
    "place",
    "refuse",
    "room",
    "split_storage",
    "stages",
    "timeline",
    "transfers",
    "verify",
]
