"""A remote program as one operation of JAX's: within ``jax.jit``, under ``grad`` and under ``vmap``.

Within a program that JAX runs here, it is a call out of it; within another remote program it is a part of that. The
operation takes and gives random keys as their words, which is what a call out of a program can be given.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax._src.lax import lax as jax_lax
from jax.extend import core
from jax.interpreters import batching, mlir

from genie_jax.dtypes import is_key

remote_call = core.Primitive("genie_remote")
remote_call.multiple_results = True

# A program that waits for its results.
Run = Callable[..., list[np.ndarray]]


class Runs:
    """What was made of one remote function within JAX's transformations: it lives as long as that does, and makes
    nothing twice. ``make`` has a program, by its name, run remotely."""

    def __init__(self, make: Callable[[Any, str], Run]) -> None:
        self._make = make
        self._made: dict[Any, Run] = {}
        self._batched: dict[Any, Any] = {}

    def __call__(self, program: Any, name: str) -> Run:
        run = self._made.get(program)
        if run is None:
            run = self._made.setdefault(program, self._make(program, name))
        return run

    def batched(self, program: Any, axes: Sequence[Any], operands: Sequence[Any]) -> Any:
        """A program of many of its operands each, along the axes that are not None."""
        shapes = [_shape(each) for each in operands]
        key = (program, tuple(axes), tuple((each.shape, each.dtype, each.weak_type) for each in shapes))
        known = self._batched.get(key)
        if known is None:
            many = jax.vmap(core.jaxpr_as_fun(program), in_axes=tuple(axes), out_axes=0)
            known = self._batched.setdefault(key, jax.make_jaxpr(many)(*shapes))
        return known


def _shape(value: Any) -> jax.ShapeDtypeStruct:
    aval = jax.typeof(value)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def operation(program: Any, runs: Runs, name: str) -> Callable[..., Sequence[Any]]:
    """``program``, a ``ClosedJaxpr``, of its flat operands."""
    call = _of_arrays(_of_words(program), runs, name)
    given = [aval.dtype for aval in program.out_avals]

    def whole(*operands: Any) -> Sequence[Any]:
        made = call(*map(_words, operands))
        return [_wrapped(each, dtype) for each, dtype in zip(made, given, strict=True)]

    return whole


def _words(value: Any) -> Any:
    return jax.random.key_data(value) if is_key(getattr(value, "dtype", None)) else value


def _wrapped(value: Any, dtype: Any) -> Any:
    return jax.random.wrap_key_data(value, impl=dtype._impl) if is_key(dtype) else value


def _of_words(program: Any) -> Any:
    """The program, in which keys that it takes and gives are their words."""
    taken = [aval.dtype for aval in program.in_avals]
    if not any(map(is_key, (*taken, *(aval.dtype for aval in program.out_avals)))):
        return program
    function = core.jaxpr_as_fun(program)

    def whole(*operands: Any) -> Sequence[Any]:
        return [*map(_words, function(*map(_wrapped, operands, taken)))]

    shapes = [
        jax.ShapeDtypeStruct((*aval.shape, *aval.dtype._impl.key_shape), np.uint32)
        if is_key(aval.dtype)
        else jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
        for aval in program.in_avals
    ]
    return jax.make_jaxpr(whole)(*shapes)


def _of_arrays(program: Any, runs: Runs, name: str) -> Callable[..., Sequence[Any]]:
    """The derivative of ``program`` is another remote program, which computes from the same operands again: nothing is
    kept here, or sent twice, between the two."""
    function = core.jaxpr_as_fun(program)
    smooth = [jax.numpy.issubdtype(aval.dtype, np.inexact) for aval in program.in_avals]
    derivative: list[Callable[..., Sequence[Any]]] = []  # once it was asked for

    @jax.custom_vjp
    def call(*operands: Any) -> Sequence[Any]:
        return tuple(remote_call.bind(*operands, program=program, runs=runs, name=name))

    def forward(*operands: Any) -> tuple[Sequence[Any], Sequence[Any]]:
        return call(*operands), operands

    def backward(operands: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
        answered = [c for c, aval in zip(cotangents, program.out_avals, strict=True) if _is_smooth(aval)]

        def gradients(*given: Any) -> Sequence[Any]:
            values, along = given[: len(operands)], given[len(operands) :]

            def partly(*varied: Any) -> Sequence[Any]:
                rest = iter(varied)
                whole = function(*(next(rest) if s else v for s, v in zip(smooth, values, strict=True)))
                return [each for each, aval in zip(whole, program.out_avals, strict=True) if _is_smooth(aval)]

            _, pull = jax.vjp(partly, *(v for s, v in zip(smooth, values, strict=True) if s))
            return pull(list(along))

        if not derivative:
            avals = [_shape(each) for each in (*operands, *answered)]
            derivative.append(_of_arrays(jax.make_jaxpr(gradients)(*avals), runs, f"gradient of {name}"))
        made = iter(derivative[0](*operands, *answered))
        return tuple(next(made) if s else None for s in smooth)

    call.defvjp(forward, backward)
    return call


def _is_smooth(aval: Any) -> bool:
    return bool(jax.numpy.issubdtype(aval.dtype, np.inexact))


@remote_call.def_abstract_eval
def _abstract(*operands: Any, program: Any, runs: Runs, name: str) -> Sequence[Any]:
    return [jax.core.ShapedArray(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in program.out_avals]


@remote_call.def_impl
def _at_once(*operands: Any, program: Any, runs: Runs, name: str) -> list[jax.Array]:
    made = map(jax.numpy.asarray, runs(program, name)(*operands))
    return [
        jax_lax._convert_element_type(each, weak_type=True) if aval.weak_type else each
        for each, aval in zip(made, program.out_avals, strict=True)
    ]


class _Writing(threading.local):
    parts = False


_writing = _Writing()


@contextlib.contextmanager
def parts_written_out() -> Iterator[None]:
    """While this thread has JAX write a program down for elsewhere: remote programs in it are parts of it."""
    _writing.parts = True
    try:
        yield
    finally:
        _writing.parts = False


def _within_jit(*operands: Any, program: Any, runs: Runs, name: str) -> Sequence[Any]:
    if _writing.parts:
        return core.jaxpr_as_fun(program)(*operands)
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.out_avals]
    made: Sequence[Any] = jax.pure_callback(runs(program, name), shapes, *operands)
    return made


mlir.register_lowering(remote_call, mlir.lower_fun(_within_jit, multiple_results=True))


def _batched(operands: Sequence[Any], axes: Sequence[Any], **parameters: Any) -> tuple[Sequence[Any], Sequence[int]]:
    whole = parameters["runs"].batched(parameters["program"], axes, operands)
    made = remote_call.bind(*operands, **{**parameters, "program": whole})
    return made, [0] * len(made)


batching.primitive_batchers[remote_call] = _batched
