"""Programs named on the command line: ``package.module:attr`` or ``path/to/file.py:attr``, captured."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import genie
from genie.errors import CaptureError, ConfigError
from genie.graph import Graph
from genie.plan import ExecutionPlan

HINT = (
    "MODEL is package.module:function or path/to/file.py:function; the function takes no arguments and returns "
    "(program, args) or (program, args, kwargs), or runs a program under genie.capture() itself"
)


def captured(name: str) -> Graph | ExecutionPlan:
    """The graph of what ``name`` makes or runs, captured in this process."""
    place, _, attribute = name.rpartition(":")
    module = _module(place, name)
    if not hasattr(module, attribute):
        raise ConfigError(f"{place} has no attribute {attribute!r}", where=name, hint=HINT)
    function = getattr(module, attribute)
    if not callable(function):
        raise ConfigError(f"{attribute!r} is {type(function).__name__}, not a function", where=name, hint=HINT)
    before = _latest()
    made = _called(function, name)
    if isinstance(made, Graph | ExecutionPlan):
        return made
    match made:
        case (program, tuple() | list() as args) if callable(program):
            return _run(program, args, {}, name)
        case (program, tuple() | list() as args, Mapping() as kwargs) if callable(program):
            return _run(program, args, kwargs, name)
    graph = _latest()
    if graph is None or graph == before:  # importing the module may have captured something, too
        raise ConfigError(f"calling {attribute!r} captured nothing", where=name, hint=HINT)
    return graph


def _module(place: str, name: str) -> ModuleType:
    path = Path(place)
    # As for a program that Python runs: what is beside it, or here, can be imported.
    sys.path.insert(0, str(path.resolve().parent) if path.suffix == ".py" else "")
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(f"no file {place!r}", where=name, hint=HINT)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    if not all(part.isidentifier() for part in place.split(".")):
        raise ConfigError(f"{place!r} names no module", where=name, hint=HINT)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if place == missing or place.startswith(f"{missing}."):
            raise ConfigError(f"no module {missing!r}", where=name, hint=HINT) from error
        raise


def _called(function: Callable[[], Any], name: str) -> Any:
    try:
        return function()
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise ConfigError(f"cannot be called without arguments: {error}", where=name, hint=HINT) from error
        raise


def _run(program: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], name: str) -> Graph:
    with genie.capture():
        program(*args, **kwargs)
    graph = _latest()
    if graph is None:
        raise ConfigError("running the program captured nothing", where=name, hint=HINT)
    return graph


def _latest() -> Graph | None:
    try:
        return genie.get_graph()
    except CaptureError:
        return None
