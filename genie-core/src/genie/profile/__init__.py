"""Profiles: what operators took on each device, kept over runs, and estimates from it.

Data and arithmetic alone: what measures tells a :class:`Profile`, what schedules asks its
:meth:`~Profile.model`.
"""

from genie.profile.book import Profile, ProfiledCostModel
from genie.profile.rooflines import Seen, fitted
from genie.profile.signature import Signature, device_key, signature_of, trait_of
from genie.profile.store import Record, default_directory
from genie.profile.table import merged

__all__ = [
    "Profile",
    "ProfiledCostModel",
    "Record",
    "Seen",
    "Signature",
    "default_directory",
    "device_key",
    "fitted",
    "merged",
    "signature_of",
    "trait_of",
]
