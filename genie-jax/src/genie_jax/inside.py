"""A remote program as one operation of JAX's: within ``jax.jit``, under ``grad`` and under ``vmap``.

Within a program that JAX runs here, it is a call out of it; within another remote program it is a part of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import batching, mlir

remote_call = core.Primitive("genie_remote")
remote_call.multiple_results = True

# Of a program and its name: the call of it, which waits for the results.
Runs = Callable[[Any, str], Callable[..., list[np.ndarray]]]


def operation(program: Any, runs: Runs, name: str) -> Callable[..., Sequence[Any]]:
    """``program``, a ``ClosedJaxpr``, of its flat operands. Its derivative is another remote program, which computes
    from the same operands again: nothing is kept here, or sent twice, between the two."""
    function = core.jaxpr_as_fun(program)
    smooth = [jax.numpy.issubdtype(aval.dtype, np.inexact) for aval in program.in_avals]

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

        avals = [jax.ShapeDtypeStruct(np.shape(v), v.dtype) for v in (*operands, *answered)]
        made = iter(operation(jax.make_jaxpr(gradients)(*avals), runs, f"gradient of {name}")(*operands, *answered))
        return tuple(next(made) if s else None for s in smooth)

    call.defvjp(forward, backward)
    return call


def _is_smooth(aval: Any) -> bool:
    return bool(jax.numpy.issubdtype(aval.dtype, np.inexact))


@remote_call.def_abstract_eval
def _abstract(*operands: Any, program: Any, runs: Runs, name: str) -> Sequence[Any]:
    return [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in program.out_avals]


_called: dict[Any, Callable[..., list[np.ndarray]]] = {}


@remote_call.def_impl
def _at_once(*operands: Any, program: Any, runs: Runs, name: str) -> list[jax.Array]:
    run = _called.get((program, runs))
    if run is None:
        run = _called[(program, runs)] = runs(program, name)
    return [jax.numpy.asarray(each) for each in run(*operands)]


def _within_jit(*operands: Any, program: Any, runs: Runs, name: str) -> Sequence[Any]:
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.out_avals]
    made: Sequence[Any] = jax.pure_callback(runs(program, name), shapes, *operands)
    return made


mlir.register_lowering(remote_call, mlir.lower_fun(_within_jit, multiple_results=True))


def _batched(operands: Sequence[Any], axes: Sequence[Any], **parameters: Any) -> tuple[Sequence[Any], Sequence[int]]:
    program = parameters.pop("program")
    many = jax.vmap(core.jaxpr_as_fun(program), in_axes=tuple(axes), out_axes=0)
    whole = jax.make_jaxpr(many)(*(jax.ShapeDtypeStruct(np.shape(each), each.dtype) for each in operands))
    made = remote_call.bind(*operands, program=whole, **parameters)
    return made, [0] * len(made)


batching.primitive_batchers[remote_call] = _batched
