"""Values in host memory, and the ways in and out of them."""

from __future__ import annotations

from typing import Any

import attrs

from genie.errors import UnsupportedOperation
from genie.graph import TensorSpec
from genie.interfaces import Buffer

# What numpy and the array interface call our dtypes; the others have no such name.
_TYPESTR = {
    "bool": "|b1",
    "uint8": "|u1",
    "int8": "|i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}
_NAMES = {typestr: name for name, typestr in _TYPESTR.items()}
_FORMATS = {"?": "bool", "b": "int8", "B": "uint8", "e": "float16", "f": "float32", "d": "float64"}
_FORMATS |= {"h": "int16", "H": "uint16", "i": "int32", "I": "uint32", "q": "int64", "Q": "uint64"}
_FORMATS |= {"l": "int64", "L": "uint64", "c": "uint8"}


@attrs.define
class HostValue:
    """A contiguous value in host memory; ``numpy.asarray`` of it copies nothing."""

    spec: TensorSpec
    data: memoryview

    @property
    def __array_interface__(self) -> dict[str, Any]:
        typestr = _TYPESTR.get(self.spec.dtype)
        if typestr is None:
            raise AttributeError(f"{self.spec.dtype} has no array interface")  # what the protocol asks for
        return {"version": 3, "shape": tuple(self.spec.shape), "typestr": typestr, "data": self.data}


def flat(data: Buffer) -> memoryview:
    """The bytes of a C-contiguous buffer."""
    view = memoryview(data)
    if view.nbytes == 0:
        return memoryview(bytearray())  # written to, perhaps
    return view if view.ndim == 1 and view.format == "B" and view.c_contiguous else view.cast("B")


def host_value(value: object) -> HostValue:
    """From whatever offers a buffer or an array: numpy, torch (on the CPU), ``array.array``, ``bytes`` (as uint8)."""
    if isinstance(value, HostValue):
        return value
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        convert = getattr(value, "__array__", None)
        if convert is None:
            raise UnsupportedOperation(
                f"a {type(value).__name__} is no operand of a remote operator",
                hint="pass tensors, arrays, or objects with the buffer protocol",
            ) from None
        try:
            view = memoryview(convert())
        except (TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedOperation(f"this {type(value).__name__} gives no host array: {error}") from error
    dtype = _FORMATS.get(view.format.lstrip("<=@")) or _NAMES.get({"Zf": "<c8", "Zd": "<c16"}.get(view.format, ""))
    if dtype is None:
        raise UnsupportedOperation(f"elements of format {view.format!r} are no dtype of Genie")
    shape = tuple(view.shape or ())
    return HostValue(TensorSpec(shape, dtype), flat(view if view.c_contiguous else view.tobytes()))
