"""What a node lets in of StableHLO: hostile bytes, other interfaces, and what reaches out are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("jaxlib")

import jax
import jax.numpy as jnp
from genie_compiler_xla import lapack
from genie_compiler_xla.verify import Unfit, bytecode

from genie.graph import Abstract

FLOATS = Abstract((4,), "float32")


def exported(function: Callable[..., Any], *shapes: Any, **options: Any) -> bytes:
    made = jax.export.export(jax.jit(function), platforms=["cpu"], **options)
    return bytes(made(*(shapes or (jax.ShapeDtypeStruct((4,), np.float32),))).mlir_module_serialized)


def test_a_program_with_its_interface_is_let_in() -> None:
    assert bytecode(exported(lambda x: jnp.sin(x)), (FLOATS,), (FLOATS,), bounded=True)


@pytest.mark.parametrize(
    ("operands", "results", "told"),
    [
        ((), (FLOATS,), "1 operands, the plan 0"),
        ((FLOATS,), (FLOATS, FLOATS), "1 results, the plan 2"),
        ((Abstract((5,), "float32"),), (FLOATS,), "operand 0 of the StableHLO is tensor<4xf32>"),
        ((Abstract((4,), "int32"),), (FLOATS,), "operand 0"),
        ((FLOATS,), (Abstract((4, 1), "float32"),), "result 0"),
    ],
)
def test_another_interface_than_the_plans(operands: Any, results: Any, told: str) -> None:
    with pytest.raises(Unfit, match=told):
        bytecode(exported(lambda x: x + 1), operands, results, bounded=False)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_bytes_that_are_no_stablehlo(damage: str) -> None:
    whole = exported(lambda x: x + 1)
    data = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:20] + bytes(each ^ 0x5A for each in whole[20:60]) + whole[60:],
        "empty": b"",
        "text": b"module { func.func @main() { return } }",
    }[damage]
    with pytest.raises(Unfit):
        bytecode(data, (FLOATS,), (FLOATS,), bounded=False)


def test_callbacks_and_unknown_custom_calls_are_refused() -> None:
    def calls(target: str) -> Callable[[Any], Any]:
        return lambda x: jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((4,), np.float32))(x)

    for target in (
        "xla_ffi_python_cpu_callback",
        "xla_python_cpu_callback",
        "system",
        "AllocateBuffer",
        "lapack_sgees_ffi",
    ):
        checks = [jax.export.DisabledSafetyCheck.custom_call(target)]
        with pytest.raises(Unfit, match="custom call"):
            bytecode(exported(calls(target), disabled_checks=checks), (FLOATS,), (FLOATS,), bounded=False)


def test_loops_are_refused_where_run_time_is_bounded() -> None:
    looping = exported(lambda x: jax.lax.while_loop(lambda c: c[0] > 0, lambda c: c - 1, x))
    assert bytecode(looping, (FLOATS,), (FLOATS,), bounded=False)
    with pytest.raises(Unfit, match="loops"):
        bytecode(looping, (FLOATS,), (FLOATS,), bounded=True)


def test_shapes_that_are_not_known_are_refused() -> None:
    (size,) = jax.export.symbolic_shape("n")
    dynamic = exported(lambda x: x + 1, jax.ShapeDtypeStruct((size,), np.float32))
    with pytest.raises(Unfit):
        bytecode(dynamic, (FLOATS,), (FLOATS,), bounded=False)


MATRIX = ((2, 5, 3), "f32")


@pytest.mark.parametrize(
    "function",
    [
        jax.lax.linalg.cholesky,
        jax.lax.linalg.lu,
        jnp.linalg.eigh,
        lambda x: jnp.linalg.qr(x, mode="complete"),
        lambda x: jnp.linalg.svd(x[:, :3], full_matrices=True),
        lambda x: jnp.linalg.svd(x[:, :3], full_matrices=False),
        lambda x: jnp.linalg.svd(x, compute_uv=False),
        lambda x: jax.lax.linalg.triangular_solve(x, x[:, :2], left_side=True, lower=True),
        lambda x: jax.lax.linalg.triangular_solve(x, x[:2], left_side=False, conjugate_a=True, transpose_a=True),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_what_jax_asks_of_lapack_is_let_in(function: Callable[..., Any], dtype: str) -> None:
    shape = jax.ShapeDtypeStruct((4, 4), np.dtype(dtype))
    made = jax.export.export(jax.jit(function), platforms=["cpu"])(shape)
    faces = [
        tuple(Abstract(tuple(each.shape), each.dtype.name) for each in avals)
        for avals in (made.in_avals, made.out_avals)
    ]
    assert bytecode(bytes(made.mlir_module_serialized), faces[0], faces[1], bounded=False)


@pytest.mark.parametrize(
    ("target", "operands", "results", "options"),
    [
        ("lapack_sgetrf_ffi", [MATRIX], [MATRIX, ((2, 1), "i32"), ((2,), "i32")], {}),  # pivots beyond the result
        ("lapack_sgetrf_ffi", [MATRIX], [MATRIX, ((2, 3), "i32"), ((1,), "i32")], {}),
        ("lapack_sgetrf_ffi", [((5,), "f32")], [MATRIX, ((2, 3), "i32"), ((2,), "i32")], {}),
        ("lapack_dgetrf_ffi", [MATRIX], [MATRIX, ((2, 3), "i32"), ((2,), "i32")], {}),
        ("lapack_spotrf_ffi", [MATRIX], [MATRIX, ((2,), "i32")], {"uplo": ord("L")}),  # not square
        ("lapack_spotrf_ffi", [((3, 3), "f32")], [((3, 3), "f32"), ((), "i32")], {"uplo": ord("X")}),
        ("lapack_spotrf_ffi", [((3, 3), "f32")], [((3, 3), "f32"), ((), "i32")], {"uplo": 300}),
        ("lapack_spotrf_ffi", [((0, 0), "f32")], [((0, 0), "f32"), ((), "i32")], {"uplo": ord("L")}),
        ("lapack_sorgqr_ffi", [MATRIX, ((2, 4), "f32")], [MATRIX], {}),  # more reflectors than columns
        ("lapack_strsm_ffi", [((3, 3), "f32"), ((4, 2), "f32")], [((4, 2), "f32")], {"side": ord("L")}),
        ("lapack_strsm_ffi", [((3, 3), "f32"), ((3, 2), "f32")], [((2, 3), "f32")], {"side": ord("L")}),
        ("lapack_strsm_ffi", [((3, 3), "f32")], [((3, 3), "f32")], {"side": ord("L")}),
        ("lapack_cheevd_ffi", [((3, 3), "complex<f32>")], [((3, 3), "complex<f32>"), ((2,), "f32"), ((), "i32")], {}),
    ],
)
def test_what_lapack_would_trust_is_checked(target: str, operands: Any, results: Any, options: Any) -> None:
    assert lapack.is_lapack(target)
    assert lapack.fault(target, operands, results, options)
