"""Sessions whose decode steps run together beside the same sessions alone: every bit, every failure its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import attrs
import pytest
import torch
from local.both import Program, data_of, spec_of, tensor_of

from genie.bindings import Prediction, parameters
from genie.errors import OutOfMemory, RemoteOpError
from genie.graph import Graph, Semantics
from genie.schedule import Scheduler
from genie_backend_local import LocalBackend, LocalSession
from genie_backend_local.native import NativeBatcher, load

DEADLINE = 30.0


def batcher(fewest: int, *, exact: bool = True, lanes: int = 1, patience: float = DEADLINE) -> NativeBatcher:
    """One where executions wait for so many."""
    return load().Batcher(exact=exact, lanes=lanes, fewest=fewest, patience=patience)


def session(shared: NativeBatcher | None = None, limit: int = 0) -> LocalSession:
    device = LocalBackend(batching=False).devices()[-1]
    return LocalSession(device, load().Session("cpu", "cpu", limit, None, shared))
