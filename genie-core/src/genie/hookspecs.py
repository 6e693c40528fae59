"""The hooks a plugin may implement. Each returns names and factories, and computes nothing.

A plugin is an entry point of group ``genie`` naming a module (or object) with some of these::

    from genie import hookimpl

    @hookimpl
    def genie_backends():
        def mine(settings):
            from mine.backend import MyBackend  # heavy imports belong here
            return MyBackend(timeout=settings.timeout)
        return {"mine": mine}

A factory is called on first use, with the :class:`genie.config.Settings` in force; its caller owns the object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import pluggy

from genie.compilers import Compiler
from genie.config import Settings
from genie.interfaces import Backend, CostModel, Frontend, PatternMatcher, PlacementStrategy, Policy, Transport

GROUP = "genie"  # of entry points, and pluggy's name of the project

_T = TypeVar("_T")
Factory: TypeAlias = Callable[[Settings], _T]
Offers: TypeAlias = Mapping[str, Callable[[Settings], Any]]

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def genie_frontends() -> Mapping[str, Factory[Frontend]]:  # type: ignore[empty-body]
    """Frontends: they turn programs of one framework into graphs."""


@hookspec
def genie_patterns() -> Mapping[str, Factory[PatternMatcher]]:  # type: ignore[empty-body]
    """Patterns: they label nodes. All installed patterns run on every graph."""


@hookspec
def genie_backends() -> Mapping[str, Factory[Backend]]:  # type: ignore[empty-body]
    """Backends: they execute plans."""


@hookspec
def genie_transports() -> Mapping[str, Factory[Transport]]:  # type: ignore[empty-body]
    """Transports: they carry messages between a client and a node."""


@hookspec
def genie_compilers() -> Mapping[str, Factory[Compiler]]:  # type: ignore[empty-body]
    """Compilers: they make programs of artifacts, for the backends that run them."""


@hookspec
def genie_cost_models() -> Mapping[str, Factory[CostModel]]:  # type: ignore[empty-body]
    """Cost models: they estimate seconds."""


@hookspec
def genie_placement_strategies() -> Mapping[str, Factory[PlacementStrategy]]:  # type: ignore[empty-body]
    """Placement strategies: they decide where nodes run."""


@hookspec
def genie_policies() -> Mapping[str, Factory[Policy]]:  # type: ignore[empty-body]
    """Policies: they decide which of two plans is better."""
