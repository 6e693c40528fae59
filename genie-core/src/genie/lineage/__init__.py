"""Sessions that survive their node: what was asked of them is logged here, and asked again elsewhere."""

from genie.lineage.guard import elsewhere, guarded
from genie.lineage.terms import Terms

__all__ = ["Terms", "elsewhere", "guarded"]
