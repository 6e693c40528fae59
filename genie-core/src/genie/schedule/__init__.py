"""Scheduling: a graph and devices in, an execution plan out."""

from genie.schedule.cost import Roofline, RooflineCostModel, Transfers
from genie.schedule.placement import SingleDevice
from genie.schedule.policy import policy
from genie.schedule.portfolio import Portfolio
from genie.schedule.scheduler import Scheduler

__all__ = ["Portfolio", "Roofline", "RooflineCostModel", "Scheduler", "SingleDevice", "Transfers", "policy"]
