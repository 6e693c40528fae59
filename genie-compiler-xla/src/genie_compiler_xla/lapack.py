"""LAPACK's functions as custom calls: which may be called, and with operands and results of which shapes.

Their handlers take sizes from the first operand and trust the others to fit, so that is made sure of here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]
Value: TypeAlias = tuple[Shape, str]  # with the type of its elements, as MLIR calls it

_TARGET = re.compile(r"lapack_([sdcz])(potrf|getrf|geqrf|orgqr|ungqr|syevd|heevd|gesdd|trsm)_ffi")
_TYPES: Mapping[str, str] = MappingProxyType({"s": "f32", "d": "f64", "c": "complex<f32>", "z": "complex<f64>"})
_REAL: Mapping[str, str] = MappingProxyType({"s": "f32", "d": "f64", "c": "f32", "z": "f64"})
# What a letter given to LAPACK may be; another ends the process.
_LETTERS: Mapping[str, str] = MappingProxyType(
    {"uplo": "LU", "diag": "NU", "side": "LR", "trans_x": "NTC", "mode": "ASNV"}
)


def is_lapack(target: str) -> bool:
    return _TARGET.fullmatch(target) is not None


def fault(target: str, operands: Sequence[Value], results: Sequence[Value], options: Mapping[str, int]) -> str:
    """What is wrong with a call of ``target``, of those that :func:`is_lapack` names, or ""."""
    found = _TARGET.fullmatch(target)
    assert found is not None
    kind, name = found.groups()
    letters = {key: chr(value) if 0 < value < 128 else "" for key, value in options.items()}
    if any(key not in _LETTERS or not letter or letter not in _LETTERS[key] for key, letter in letters.items()):
        return f"options {dict(options)}"
    if not operands or len(operands[0][0]) < 2 or 0 in operands[0][0]:
        return "no matrices to compute with"
    *leading, rows, columns = operands[0][0]
    batch, least = tuple(leading), min(rows, columns)
    item, real = _TYPES[kind], _REAL[kind]
    matrix: Value = ((*batch, rows, columns), item)
    status: Value = (batch, "i32")
    given: list[list[Value]] = [[matrix]]
    made: list[list[Value]] = []
    if name == "potrf":
        made = [[matrix, status]]
    elif name == "getrf":
        made = [[matrix, ((*batch, least), "i32"), status]]
    elif name == "geqrf":
        made = [[matrix, ((*batch, least), item)]]
    elif name in ("orgqr", "ungqr"):
        given = [[matrix, ((*batch, count), item)] for count in range(columns + 1)] if rows >= columns else []
        made = [[matrix]]
    elif name in ("syevd", "heevd"):
        made = [[matrix, ((*batch, rows), real), status]]
    elif name == "gesdd":
        whole = ((*batch, rows, rows), item), ((*batch, columns, columns), item)
        thin = ((*batch, rows, least), item), ((*batch, least, columns), item)
        sides = {"A": [whole], "S": [thin], "N": [whole, thin]}.get(letters.get("mode", ""), [])
        made = [[matrix, ((*batch, least), real), *side, status] for side in sides]
    else:  # trsm: the second is solved for, from the side that fits
        side = {"L": -2, "R": -1}.get(letters.get("side", ""), 0)
        other = operands[1] if len(operands) == 2 else matrix
        fits = side and len(other[0]) == len(matrix[0]) and other[0][:-2] == batch and other[0][side] == rows
        given, made = ([[matrix, (other[0], item)]], [[(other[0], item)]]) if fits else ([], [])
    square = name in ("potrf", "syevd", "heevd", "trsm")
    if (square and rows != columns) or list(operands) not in given or list(results) not in made:
        return f"{_text(operands)} to {_text(results)}"
    return ""


def _text(values: Sequence[Value]) -> str:
    return ", ".join(f"{item}{list(shape)}" for shape, item in values)[:256]
