"""What a primitive of JAX is in ATen: one function per primitive, found by its name.

A rule is plain PyTorch. It is given the equation and the operands, and must take each parameter of the primitive by its
name, whether it needs it or not: a parameter that no rule knows of may change what is computed, so it is refused
(:mod:`genie_jax.translate`). Rules are for the shapes and types they are called with; nothing they compute has data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch

from genie_jax.regions import Regions

Tensor = torch.Tensor


class Equation(Protocol):
    """What a rule may ask about where it is."""

    @property
    def taken(self) -> Sequence[Any]:
        """The operands' abstract values, with JAX's own dtypes."""

    @property
    def made(self) -> Sequence[Any]:
        """The results'."""

    @property
    def numbers(self) -> Sequence[Any]:
        """The operands that are numbers written into the program, and None for the others."""

    def translate(self, jaxpr: Any, *operands: Tensor) -> Sequence[Tensor]:
        """The results of another program of JAX's (a ``ClosedJaxpr``) in this place."""

    def of_jax(
        self, function: Callable[..., Any], *operands: Tensor, types: Sequence[Any] | None = None
    ) -> Sequence[Tensor]:
        """The results of a function of JAX's on operands of this equation's types, or of ``types`` (anything with
        ``shape`` and ``dtype``, JAX's own)."""

    @property
    def regions(self) -> Regions:
        """Branches and loops here."""


Rule = Callable[..., Tensor | Sequence[Tensor]]

_RULES: dict[str, Rule] = {}
_TAKES: dict[str, frozenset[str]] = {}


def rule(*primitives: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        parameters = inspect.signature(function).parameters.values()
        named = frozenset(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)
        for name in primitives:
            assert name not in _RULES, f"two rules for {name}"
            _RULES[name], _TAKES[name] = function, named
        return function

    return register


_REFUSED: dict[str, tuple[str, str]] = {}


def refuse(*primitives: str, why: str, hint: str) -> None:
    """Have primitives refused, whatever their parameters."""
    _REFUSED.update(dict.fromkeys(primitives, (why, hint)))


def refusal(primitive: str) -> tuple[str, str] | None:
    """Why there can be no rule, and what to do instead."""
    return _REFUSED.get(primitive)


def find(primitive: str) -> Rule | None:
    return _RULES.get(primitive)


def unknown(primitive: str, parameters: Mapping[str, Any]) -> frozenset[str]:
    """The parameters of which the rule knows nothing."""
    return frozenset(parameters) - _TAKES[primitive]


def known() -> Mapping[str, Rule]:
    return MappingProxyType(_RULES)
