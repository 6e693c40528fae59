"""Genie: programs of a framework, run on remote accelerators through a semantically rich graph."""

from genie import aio
from genie.api import (
    annotate,
    capture,
    compile,
    device_count,
    devices,
    engine,
    execute,
    execute_local,
    get_graph,
    get_stats,
    init,
    init_cluster,
    is_capturing,
    on_shutdown,
    register_backend,
    register_cost_model,
    register_frontend,
    register_pattern,
    register_placement_strategy,
    register_policy,
    register_transport,
    run,
    set_backend,
    set_log_level,
    settings,
    shutdown,
)
from genie.config import Settings
from genie.device import Cluster, Device
from genie.errors import GenieError
from genie.execute import HostValue
from genie.graph import Graph, TensorSpec
from genie.hookspecs import hookimpl
from genie.interfaces import CostModel, PatternMatcher, PlacementStrategy, Policy
from genie.plan import ExecutionPlan
from genie.schedule import Scheduler

__version__ = "0.1.0"

__all__ = [
    "Cluster",
    "CostModel",
    "Device",
    "ExecutionPlan",
    "GenieError",
    "Graph",
    "HostValue",
    "PatternMatcher",
    "PlacementStrategy",
    "Policy",
    "Scheduler",
    "Settings",
    "TensorSpec",
    "__version__",
    "aio",
    "annotate",
    "capture",
    "compile",
    "device_count",
    "devices",
    "engine",
    "execute",
    "execute_local",
    "get_graph",
    "get_stats",
    "hookimpl",
    "init",
    "init_cluster",
    "is_capturing",
    "on_shutdown",
    "register_backend",
    "register_cost_model",
    "register_frontend",
    "register_pattern",
    "register_placement_strategy",
    "register_policy",
    "register_transport",
    "run",
    "set_backend",
    "set_log_level",
    "settings",
    "shutdown",
]
