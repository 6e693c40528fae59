"""Plans: a graph with a place for every node, and all that follows from it."""

from genie.plan.lives import liveness, split_storage
from genie.plan.model import ExecutionPlan, Explanation
from genie.plan.records import Decision, Link, Stage, Transfer, stages
from genie.plan.rules import bare, verify

__all__ = [
    "Decision",
    "ExecutionPlan",
    "Explanation",
    "Link",
    "Stage",
    "Transfer",
    "bare",
    "liveness",
    "split_storage",
    "stages",
    "verify",
]
