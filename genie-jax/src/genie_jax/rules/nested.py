"""Primitives that call programs, and those about how JAX computes rather than what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jax.extend import core

from genie.errors import UnsupportedOperation
from genie_jax.rules import Equation, Tensor, refuse, rule


@rule("jit")
def _jit(
    here: Equation,
    *operands: Tensor,
    jaxpr: Any,
    compiler_options_kvs: Any,
    ctx_mesh: Any,
    donated_invars: Any,
    in_layouts: Any,
    in_shardings: Any,
    inline: Any,
    keep_unused: Any,
    name: Any,
    out_layouts: Any,
    out_shardings: Any,
) -> Sequence[Tensor]:
    return here.translate(jaxpr, *operands)


@rule("closed_call", "core_closed_call")
def _closed_call(here: Equation, *operands: Tensor, call_jaxpr: Any) -> Sequence[Tensor]:
    return here.translate(call_jaxpr, *operands)


@rule("composite")
def _composite(
    here: Equation, *operands: Tensor, jaxpr: Any, name: Any, attributes: Any, version: Any
) -> Sequence[Tensor]:
    """By its decomposition."""
    return here.translate(jaxpr, *operands)


@rule("custom_vmap_call")
def _custom_vmap(
    here: Equation, *operands: Tensor, call: Any, rule: Any, in_tree: Any, out_tree: Any
) -> Sequence[Tensor]:
    return here.translate(call, *operands)


@rule("linear_call")
def _linear_call(
    here: Equation, *operands: Tensor, callee: Any, transpose_thunk: Any, num_callee_consts: Any, num_res: Any
) -> Sequence[Tensor]:
    return here.translate(callee, *operands)


@rule("custom_partitioning")
def _custom_partitioning(
    here: Equation,
    *operands: Tensor,
    call: Any,
    partition: Any,
    propagate_user_sharding: Any,
    infer_sharding_from_operands: Any,
    decode_shardings: Any,
    sharding_rule: Any,
    in_tree: Any,
    out_tree: Any,
    static_args: Any,
) -> Sequence[Tensor]:
    """In one part."""
    return here.translate(call, *operands)


@rule("custom_jvp_call")
def _custom_jvp(
    here: Equation, *operands: Tensor, call_jaxpr: Any, jvp_jaxpr_fun: Any, num_consts: Any, symbolic_zeros: Any
) -> Sequence[Tensor]:
    return here.translate(call_jaxpr, *operands)


@rule("genie_remote")
def _remote(here: Equation, *operands: Tensor, program: Any, runs: Any, name: Any) -> Sequence[Tensor]:
    """A remote program within another is a part of it."""
    return here.translate(program, *operands)


refuse(
    *("pure_callback", "io_callback", "debug_callback", "debug_print"),
    why="a call back into Python (pure_callback, io_callback, jax.debug) cannot be made from where the program runs",
    hint="return what it should be given, and call it with that",
)
refuse(
    *("shard_map", "psum", "psum_invariant", "pmax", "pmin", "ppermute", "all_gather", "all_to_all", "reduce_scatter"),
    *("axis_index", "pvary", "pbroadcast", "ragged_all_to_all", "reshard"),
    why="a computation over several devices of JAX's (shard_map, and collectives within it): a remote program has one",
    hint="write it for one device, as for jax.jit; where several nodes compute it is the scheduler's to say",
)
refuse(
    *("ffi_call", "call_exported"),
    why="code compiled for this machine (jax.ffi, jax.export) is not sent to another one",
    hint="call it outside of what is remote",
)
refuse(
    "check",
    why="a check that raises (jax.experimental.checkify) cannot raise from where the program runs",
    hint="make remote what checkify.checkify makes of the function, and throw the error it gives here",
)
refuse(
    "rng_uniform",
    why="lax.rng_uniform, whose numbers are what XLA happens to have",
    hint="draw with jax.random, from a key",
)


@rule("custom_vjp_call")
def _custom_vjp(
    here: Equation,
    *operands: Tensor,
    call_jaxpr: Any,
    fwd_jaxpr_thunk: Any,
    bwd: Any,
    num_consts: Any,
    out_trees: Any,
    symbolic_zeros: Any,
) -> Sequence[Tensor]:
    return here.translate(call_jaxpr, *operands)


@rule("remat2")
def _remat(
    here: Equation, *operands: Tensor, jaxpr: Any, prevent_cse: Any, differentiated: Any, policy: Any
) -> Sequence[Tensor]:
    return here.translate(core.ClosedJaxpr(jaxpr, ()), *operands)


@rule("name")
def _name(here: Equation, x: Tensor, *, name: str) -> Tensor:
    return x


@rule("optimization_barrier")
def _optimization_barrier(here: Equation, *operands: Tensor) -> Sequence[Tensor]:
    return operands


@rule("sharding_constraint")
def _sharding_constraint(
    here: Equation, x: Tensor, *, sharding: Any, layout: Any, context_mesh: Any, unconstrained_dims: Any
) -> Tensor:
    """A remote program has one device."""
    return x


@rule("layout_constraint")
def _layout_constraint(here: Equation, x: Tensor, *, layout: Any) -> Tensor:
    return x


@rule("tie")
def _tie(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    return y


@rule("dce_sink")
def _dce_sink(here: Equation, x: Tensor, *, prevent_mlir_dce: Any) -> Sequence[Tensor]:
    return []


@rule("device_put")
def _device_put(here: Equation, *operands: Tensor, devices: Any, srcs: Any, copy_semantics: Any) -> Sequence[Tensor]:
    """Where an array is on the client's machine says nothing about a remote device."""
    return operands


@rule("platform_index")
def _platform_index(here: Equation, *, platforms: Any) -> Tensor:
    return torch.full((), of_platform(platforms), dtype=torch.int32)


def of_platform(platforms: Any) -> int:
    """What is written for a processor, or else for any platform: other ones' branches may be no arithmetic."""
    for number, names in enumerate(platforms):
        if names is not None and "cpu" in names:
            return number
    if None in platforms:
        return int(platforms.index(None))
    others = ", ".join(name for names in platforms for name in names)
    raise UnsupportedOperation(f"a computation that is only for {others}")
