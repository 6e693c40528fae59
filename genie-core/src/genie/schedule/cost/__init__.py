"""Cost: how long a node takes on a device, and a value between two."""

from genie.schedule.cost.classes import CLASSES, Trait, class_of, classify, on_device, traits
from genie.schedule.cost.fitting import Sample, fit
from genie.schedule.cost.roofline import (
    Calibration,
    DeviceRoof,
    Fitted,
    Roofline,
    RooflineCostModel,
    asked_of,
    bandwidth,
    default_roofline,
)
from genie.schedule.links import Transfers

__all__ = [
    "CLASSES",
    "Calibration",
    "DeviceRoof",
    "Fitted",
    "Roofline",
    "RooflineCostModel",
    "Sample",
    "Trait",
    "Transfers",
    "asked_of",
    "bandwidth",
    "class_of",
    "classify",
    "default_roofline",
    "fit",
    "on_device",
    "traits",
]
