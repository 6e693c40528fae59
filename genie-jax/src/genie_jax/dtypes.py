"""JAX's dtypes and those a graph's values have.

ATen computes little in unsigned integers wider than a byte. Such a value is carried in the signed type of its width,
bit for bit: adding, multiplying, shifting left and moving data about are the same there, and a rule for which the sign
matters says so (:mod:`genie_jax.rules.unsigned`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jax import dtypes as jax_dtypes

from genie.errors import UnsupportedOperation

CARRIED: Mapping[str, str] = MappingProxyType({"uint16": "int16", "uint32": "int32", "uint64": "int64"})

_SAME = (
    "bool int8 int16 int32 int64 uint8 float16 bfloat16 float32 float64 complex64 complex128"
    " float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
).split()


def carried(dtype: Any) -> str:
    """The name of the type that carries ``dtype`` in a graph."""
    name = np.dtype(dtype).name if not isinstance(dtype, str) else dtype
    if name in CARRIED:
        return CARRIED[name]
    if name in _SAME:
        return name
    if np.dtype(dtype) == jax_dtypes.float0:
        raise UnsupportedOperation(
            "values of float0, JAX's derivatives by integers, are not carried: there is nothing in them",
            hint="have the function return the other derivatives alone",
        )
    raise UnsupportedOperation(
        f"values of {name} are not carried",
        hint="compute in a type of a byte or more that PyTorch has: float8_e4m3fn, float8_e5m2, int8 …",
    )


def torch_dtype(dtype: Any) -> torch.dtype:
    found = getattr(torch, carried(dtype))
    assert isinstance(found, torch.dtype)
    return found


def is_unsigned(dtype: Any) -> bool:
    """Whether the value is carried in a type that takes its sign bit for a sign."""
    return np.dtype(dtype).name in CARRIED


def is_key(dtype: Any) -> bool:
    """Whether it is one of JAX's typed random keys."""
    return bool(jax_dtypes.issubdtype(dtype, jax_dtypes.prng_key))
