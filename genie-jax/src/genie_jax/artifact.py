"""A program as StableHLO, beside its graph: for nodes that have an XLA engine (:mod:`genie.graph.artifacts`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from genie import telemetry
from genie.errors import ConfigError, UnsupportedOperation
from genie.graph import Abstract, Artifact
from genie.graph.artifacts import MAX_ARTIFACT_BYTES
from genie_jax.dtypes import carried, is_key
from genie_jax.inside import parts_written_out

KIND = "stablehlo/1"
ENGINES = ("auto", "aten", "xla")

_log = telemetry.get_logger("genie.jax")


def checked(engine: str) -> str:
    """Raises :class:`ConfigError` for what is none."""
    if engine not in ENGINES:
        raise ConfigError(f"there is no engine {engine!r}", hint=f"engines are {', '.join(ENGINES)}")
    return engine


def artifacts(
    closed: Any, constants: Sequence[np.ndarray], engine: str, offered: Sequence[str]
) -> tuple[Artifact, ...]:
    """What goes with the graph of a ``ClosedJaxpr``: nothing where no engine would take it and none was asked for.

    ``constants`` are the graph's last inputs, and need not travel twice. Raises :class:`UnsupportedOperation` for what
    cannot be exported, if ``engine`` asks for it.
    """
    if engine == "aten" or (engine == "auto" and not any(each.endswith(f":{KIND}") for each in offered)):
        return ()
    required = engine != "auto"
    try:
        return (_exported(closed, constants, required),)
    except UnsupportedOperation:
        if required:
            raise
    except Exception as error:  # of many kinds, as JAX has it
        if required:
            raise UnsupportedOperation(
                f"JAX does not export the program: {str(error).splitlines()[0]}", hint="let the engine be auto or aten"
            ) from error
        _log.info("not exported", reason=str(error).splitlines()[0])
    return ()


def _exported(closed: Any, constants: Sequence[np.ndarray], required: bool) -> Artifact:
    lasting = {_memory(each): number for number, each in enumerate(constants)}
    places = [None if is_key(getattr(each, "dtype", None)) else lasting.get(_memory(each)) for each in closed.consts]
    count = len(closed.in_avals)

    def program(*operands: Any) -> Any:
        given = [
            jax.random.wrap_key_data(each, impl=aval.dtype._impl) if is_key(aval.dtype) else each
            for each, aval in zip(operands[:count], closed.in_avals, strict=True)
        ]
        consts = [
            each if at is None else _bits_as(operands[count + at], each.dtype)
            for each, at in zip(closed.consts, places, strict=True)
        ]
        made = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, consts))(*given)
        return [jax.random.key_data(each) if is_key(each.dtype) else each for each in made]

    faces = [_abstract(aval) for aval in closed.in_avals]
    originals = {at: each for each, at in zip(closed.consts, places, strict=True) if at is not None}
    for number, each in enumerate(constants):
        faces.append(Abstract(tuple(each.shape), np.dtype(originals.get(number, each).dtype).name))
    shapes = [jax.ShapeDtypeStruct(face.shape, jax.numpy.dtype(face.dtype)) for face in faces]
    with parts_written_out():
        made = jax.export.export(jax.jit(program), platforms=["cpu"])(*shapes)
    data = made.mlir_module_serialized
    if len(data) > MAX_ARTIFACT_BYTES:
        raise UnsupportedOperation(
            f"the program is {len(data)} bytes of StableHLO, of which {MAX_ARTIFACT_BYTES} are taken",
            hint="give large arrays to the function as arguments",
        )
    kept = tuple(made.module_kept_var_idx)
    results = tuple(_abstract(aval) for aval in closed.out_avals)
    return Artifact(KIND, data, kept, tuple(faces[at] for at in kept), results, required)


def _memory(array: Any) -> tuple[Any, ...]:
    """Names an array that lives: what lies like this at this place, as what carries it, is this array. One of NumPy's
    may be another one's memory in another order or type."""
    here = np.asarray(array)
    return here.__array_interface__["data"][0], here.shape, here.strides, carried(here.dtype)


def _bits_as(array: Any, dtype: Any) -> Any:
    return array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)


def _abstract(aval: Any) -> Abstract:
    """As its words, of random keys."""
    if is_key(aval.dtype):
        return Abstract((*aval.shape, *aval.dtype._impl.key_shape), "uint32")
    return Abstract(tuple(aval.shape), np.dtype(aval.dtype).name)
