"""Plans across devices: one session that spreads its work over several."""

from genie.spread.parts import Part, Split, split
from genie.spread.session import Residency, SpreadSession

__all__ = ["Part", "Residency", "Split", "SpreadSession", "split"]
