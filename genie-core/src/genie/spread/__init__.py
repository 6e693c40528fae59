"""Plans across devices: one session that spreads its work over several."""

from genie.spread.parts import Part, Split, split
from genie.spread.placing import NOWHERE, Residency, Used
from genie.spread.session import SpreadSession

__all__ = ["NOWHERE", "Part", "Residency", "Split", "SpreadSession", "Used", "split"]
