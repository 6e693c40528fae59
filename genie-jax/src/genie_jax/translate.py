"""From a jaxpr to a graph: equation by equation, each by its rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import jax
import numpy as np
import torch
from jax.extend import core

from genie.errors import UnsupportedOperation
from genie.graph import Graph
from genie_jax import keys, refusals, rules
from genie_jax.dtypes import carried, is_key, torch_dtype
from genie_jax.names import where, with_updates
from genie_jax.record import Recorder
from genie_jax.regions import Regions
from genie_jax.rules import (  # noqa: F401  (each registers its rules)
    compare,
    contract,
    control,
    convert,
    convolution,
    cumulative,
    elementwise,
    factor,
    fourier,
    indexing,
    integers,
    nested,
    order,
    randomness,
    reduce,
    shape,
    slicing,
    solve,
    special,
    windows,
)
from genie_jax.simplify import simplified

Tensor = torch.Tensor


@attrs.frozen
class Here:
    """See :class:`genie_jax.rules.Equation`."""

    taken: Sequence[Any]
    made: Sequence[Any]
    numbers: Sequence[Any]
    _translator: Translator

    def translate(self, jaxpr: Any, *operands: Tensor) -> Sequence[Tensor]:
        return self._translator.closed(jaxpr, operands)

    @property
    def regions(self) -> Regions:
        return Regions(self._translator.recorder)

    def of_jax(
        self, function: Callable[..., Any], *operands: Tensor, types: Sequence[Any] | None = None
    ) -> Sequence[Tensor]:
        shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (self.taken if types is None else types)]
        return self._translator.closed(jax.make_jaxpr(function)(*shapes), operands)


class Translator:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def closed(self, closed: Any, operands: Sequence[Tensor]) -> list[Tensor]:
        """The results of a ``ClosedJaxpr``, whose constants become part of the program."""
        return self.run(closed.jaxpr, [self.constant(each) for each in closed.consts], operands)

    def run(self, jaxpr: Any, constants: Sequence[Tensor], operands: Sequence[Tensor]) -> list[Tensor]:
        known: dict[Any, Tensor] = dict(zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, operands, strict=True))

        def value(atom: Any) -> Tensor:
            return self.constant(_literal(atom)) if isinstance(atom, core.Literal) else known[atom]

        outer = self.recorder.where
        for equation in jaxpr.eqns:
            self.recorder.where = where(equation, outer)
            made = self._by_rule(equation, [value(each) for each in equation.invars])
            known.update(zip(equation.outvars, made, strict=True))
        self.recorder.where = outer
        return [value(each) for each in jaxpr.outvars]

    def _by_rule(self, equation: Any, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        name = equation.primitive.name
        if refused := rules.refusal(name):
            raise UnsupportedOperation(
                f"JAX's primitive {name}: {refused[0]}", where=self.recorder.where.source, hint=refused[1]
            )
        found = rules.find(name)
        if found is None:
            raise refusals.of(equation.primitive, "has no translation", self.recorder.where.source)
        if strange := rules.unknown(name, equation.params):
            what = f"has parameters that its translation does not know: {', '.join(sorted(strange))}"
            raise refusals.of(equation.primitive, what, self.recorder.where.source)
        here = Here(
            [each.aval for each in equation.invars],
            [each.aval for each in equation.outvars],
            [_number(each) for each in equation.invars],
            self,
        )
        try:
            made = found(here, *operands, **equation.params)
            results = [made] if isinstance(made, Tensor) else list(made)
            for result, aval in zip(results, here.made, strict=True):
                _check(name, result, aval)
        except UnsupportedOperation as error:
            refusals.name(error, equation.primitive, self.recorder.where.source)
            raise
        return results

    def constant(self, number: Any) -> Tensor:
        """A number, or an array that is part of the program."""
        if is_key(getattr(number, "dtype", None)):
            return keys.of_words(self.constant(jax.random.key_data(number)))
        array = np.asarray(number)
        signed = array.view(carried(array.dtype)) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array
        dtype = torch_dtype(array.dtype)
        if array.ndim == 0 or (array.size and array.tobytes() == array.flat[0].tobytes() * array.size):
            return torch.full(array.shape, signed.flat[0].item() if array.size else 0, dtype=dtype)
        return self.recorder.constant(signed, dtype)


def _check(name: str, result: Tensor, aval: Any) -> None:
    """A rule that makes something else than JAX does is a fault of ours that must not pass for a result."""
    if is_key(aval.dtype):
        return
    if tuple(result.shape) != tuple(aval.shape) or result.dtype != torch_dtype(aval.dtype):
        raise UnsupportedOperation(
            f"the translation of JAX's primitive {name} gives {result.dtype}{list(result.shape)} for "
            f"{aval.dtype}{list(aval.shape)}"
        )


def _literal(atom: Any) -> Any:
    """A literal in its own type: one that was written as a number of Python's has only its variable's."""
    return atom.val if is_key(atom.aval.dtype) else np.asarray(atom.val, atom.aval.dtype)


def _number(atom: Any) -> Any:
    """A literal's number, as what carries it has it."""
    if not isinstance(atom, core.Literal) or np.ndim(atom.val):
        return None
    number = np.asarray(atom.val)
    return number.view(carried(number.dtype)).item() if number.dtype.kind == "u" else number.item()


def to_graph(
    closed: Any, origins: Sequence[tuple[str, str]], name: str = "", donated: Sequence[bool] = ()
) -> tuple[Graph, list[np.ndarray]]:
    """The graph of a ``ClosedJaxpr``, and the constants that are its last inputs. ``origins`` are name and origin of
    each of the program's operands, ``donated`` says which of them are not needed after it (none, where it says
    nothing)."""
    recorder = Recorder()
    with recorder:
        operands = []
        given = donated or [False] * len(origins)
        for variable, (called, origin), gives in zip(closed.jaxpr.invars, origins, given, strict=True):
            shape, dtype = physical(variable.aval)
            made = recorder.input(shape, dtype, called, origin, gives)
            operands.append(keys.of_words(made) if is_key(variable.aval.dtype) else made)
        results = Translator(recorder).closed(closed, operands)
        results = [
            keys.words(each, aval.dtype) if is_key(aval.dtype) else each
            for each, aval in zip(results, closed.out_avals, strict=True)
        ]
    return with_updates(simplified(recorder.graph(results, name))), recorder.constants


def physical(aval: Any) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and the type that carry it."""
    if is_key(aval.dtype):
        return (*aval.shape, *aval.dtype._impl.key_shape), torch.int32
    return tuple(aval.shape), torch_dtype(aval.dtype)
