"""Small programs on scalars that primitives are given: how two elements become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from genie_jax.rules import Equation, Tensor


def named(jaxpr: Any) -> str | None:
    """The primitive that is all of a program of two scalars: ``add``, ``max`` …; ``second`` when it gives the second,
    and nothing for any other."""
    if len(jaxpr.invars) != 2 or len(jaxpr.outvars) != 1:
        return None
    if not jaxpr.eqns:
        return "second" if jaxpr.outvars[0] is jaxpr.invars[1] else None
    (first, *others) = jaxpr.eqns
    if others or first.params or jaxpr.outvars[0] is not first.outvars[0]:
        return None
    taken = list(first.invars)
    straight = taken == list(jaxpr.invars)
    crossed = taken == list(reversed(jaxpr.invars))
    name = str(first.primitive.name)
    return name if straight or (crossed and name in _SYMMETRIC) else None


_SYMMETRIC = frozenset({"add", "mul", "max", "min", "and", "or", "xor"})


def each(here: Equation, jaxpr: Any, constants: Sequence[Any], *operands: Tensor) -> Sequence[Tensor]:
    """A program of scalars, of every element of operands that have one shape."""
    shape = operands[0].shape
    count = operands[0].numel()
    scalars = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, list(constants)))
    lines = [jax.ShapeDtypeStruct((count,), variable.aval.dtype) for variable in jaxpr.invars]
    whole = jax.make_jaxpr(jax.vmap(scalars))(*lines)
    made = here.translate(whole, *(operand.reshape(count) for operand in operands))
    return [result.reshape(shape) for result in made]
