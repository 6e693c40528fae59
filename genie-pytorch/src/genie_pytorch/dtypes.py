"""PyTorch's codes and objects for dtypes, layouts and memory formats, and the names a graph uses."""

from __future__ import annotations

import torch

# c10::ScalarType, which PyTorch keeps stable for its serialised programs.
_CODES = (
    "uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool"
    " - - - bfloat16 - - - - - - - float8_e5m2 float8_e4m3fn float8_e5m2fnuz float8_e4m3fnuz"
    " uint16 uint32 uint64 uint1 uint2 uint3 uint4 uint5 uint6 uint7 - - - - float8_e8m0fnu"
    " int1 int2 int3 int4 int5 int6 int7 float4_e2m1fn_x2"
).split()
_LAYOUTS = ("strided", "sparse_coo", "sparse_csr", "_mkldnn", "sparse_csc", "sparse_bsr", "sparse_bsc", "jagged")
_FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")

NAME_OF_CODE = {code: name for code, name in enumerate(_CODES) if name != "-"}
CODE_OF_NAME = {name: code for code, name in NAME_OF_CODE.items()}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype), name
    return found


def layout_name(code: int) -> str:
    return _LAYOUTS[code]


def memory_format_name(code: int) -> str:
    return _FORMATS[code]
