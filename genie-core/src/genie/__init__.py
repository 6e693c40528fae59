"""Genie: programs of a framework, run on remote accelerators through a semantically rich graph."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genie.api import (
    annotate,
    cancel,
    capture,
    compile,
    device_count,
    devices,
    engine,
    execute,
    execute_local,
    generate,
    get_graph,
    get_stats,
    init,
    init_cluster,
    is_capturing,
    map,
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
from genie.codec import load, save, verify
from genie.config import Settings
from genie.device import Cluster, Device
from genie.errors import GenieError
from genie.graph import Graph, TensorSpec
from genie.host import HostValue
from genie.interfaces import CostModel, PatternMatcher, PlacementStrategy, Policy
from genie.marks import mark, session
from genie.plan import ExecutionPlan
from genie.schedule import Scheduler
from genie.workload import summary

if TYPE_CHECKING:
    from genie import aio, inspect
    from genie.hookspecs import hookimpl
    from genie.remote import RemoteClient

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
    "RemoteClient",
    "Scheduler",
    "Settings",
    "TensorSpec",
    "__version__",
    "aio",
    "annotate",
    "cancel",
    "capture",
    "compile",
    "device_count",
    "devices",
    "engine",
    "execute",
    "execute_local",
    "generate",
    "get_graph",
    "get_stats",
    "hookimpl",
    "init",
    "init_cluster",
    "inspect",
    "is_capturing",
    "load",
    "map",
    "mark",
    "on_shutdown",
    "register_backend",
    "register_cost_model",
    "register_frontend",
    "register_pattern",
    "register_placement_strategy",
    "register_policy",
    "register_transport",
    "run",
    "save",
    "session",
    "set_backend",
    "set_log_level",
    "settings",
    "shutdown",
    "summary",
    "verify",
]

# Names whose modules bring asyncio, pluggy or sockets: not every program that imports genie needs those.
_LATER = {"aio": "genie.aio", "inspect": "genie.inspect", "hookimpl": "genie.hookspecs", "RemoteClient": "genie.remote"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'genie' has no attribute {name!r}")
    module = import_module(_LATER[name])
    value = module if module.__name__ == f"genie.{name}" else getattr(module, name)
    globals()[name] = value
    return value
