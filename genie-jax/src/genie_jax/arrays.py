"""Arrays that are elsewhere."""

from __future__ import annotations

import operator
from typing import Any

import jax
import numpy as np
from jax._src import core as jax_core
from jax._src import dtypes as jax_dtypes
from jax._src.lax import lax as jax_lax

from genie.errors import UnsupportedOperation
from genie_jax.device import Place, donated
from genie_jax.dtypes import is_key
from genie_jax.kinds import Kind


class RemoteArray:
    """A result of a remote program, where it was computed. ``np.asarray`` and ``jnp.asarray`` look at it, which waits
    for it and brings it here; given to a remote program it stays where it is. Arithmetic, comparing and the methods of
    arrays look, too, and so does saving it (pickle): their results are JAX's own arrays.

    ``shape`` and ``dtype`` are those of the array that JAX would have made.
    """

    __slots__ = ("__weakref__", "_handle", "_here", "_home", "_place", "kind")

    def __init__(self, place: Place, handle: int, kind: Kind) -> None:
        self._place = place
        self._home: Place | None = place  # until it is donated
        self._handle: int | None = handle
        self._here: np.ndarray | None = None
        self.kind = kind

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kind.shape

    @property
    def dtype(self) -> Any:
        return self.kind.dtype

    @property
    def ndim(self) -> int:
        return len(self.kind.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.kind.shape, dtype=np.int64))

    @property
    def itemsize(self) -> int:
        return int(self.kind.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def weak_type(self) -> bool:
        return self.kind.weak_type

    def handle(self, place: Place, passing: list[int], given: bool = False) -> int:
        """For a program of ``place``. Raises for an array that was donated; one that lives elsewhere is sent, and its
        handle there added to ``passing``, to be freed after the call."""
        if self._handle is None:
            raise donated(self.kind)
        if place is self._place:
            return self._handle
        passing.append(place.put(self._data()))
        return passing[-1]

    def donate(self, place: Place) -> None:
        """A program of ``place`` took it over, or what was sent there of it."""
        if self._handle is not None and place is not self._place:
            self._place.free(self._handle)
        self._handle = self._home = self._here = None

    def is_deleted(self) -> bool:
        return self._handle is None

    def block_until_ready(self) -> RemoteArray:
        self.handle(self._place, [])
        self._place.wait()
        return self

    def _data(self) -> np.ndarray:
        """Its elements; of random keys, their words."""
        if self._here is None:
            shape, dtype = self.shape, self.dtype
            if is_key(dtype):
                shape, dtype = (*shape, *dtype._impl.key_shape), np.dtype(np.uint32)
            self._here = self._place.get(self.handle(self._place, []), shape, np.dtype(dtype))
            self._here.flags.writeable = False
        return self._here

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if is_key(self.dtype):
            raise UnsupportedOperation(
                "a random key is no array of numbers", hint="jax.random.key_data of jnp.asarray of it"
            )
        here = self._data()
        if dtype is not None and np.dtype(dtype) != here.dtype:
            return here.astype(dtype)
        return here.copy() if copy else here

    def __jax_array__(self) -> jax.Array:
        if is_key(self.dtype):
            return jax.random.wrap_key_data(self._data(), impl=self.dtype._impl)
        made = jax.numpy.asarray(self._data())
        return jax_lax._convert_element_type(made, weak_type=True) if self.weak_type else made

    def item(self) -> Any:
        return self.__array__().item()

    def tolist(self) -> Any:
        return self.__array__().tolist()

    def __float__(self) -> float:
        return float(self.__array__())

    def __int__(self) -> int:
        return int(self.__array__())

    def __complex__(self) -> complex:
        return complex(self.__array__())

    def __bool__(self) -> bool:
        return bool(self.__array__())

    def __index__(self) -> int:
        return self.__array__().__index__()

    def __format__(self, how: str) -> str:
        return format(self.__array__()[()], how) if not self.shape else format(repr(self), how)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def __iter__(self) -> Any:
        return iter(self.__jax_array__())

    def __getitem__(self, index: Any) -> Any:
        return self.__jax_array__()[index]

    __hash__ = None  # type: ignore[assignment]  # as JAX's arrays: == compares elements

    def __reduce__(self) -> Any:
        return self.__jax_array__().__reduce__()

    def __repr__(self) -> str:
        return f"<RemoteArray {self.dtype}{list(self.shape)} on {self._place.engine.device.id}>"

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            self._place.free(handle)


def _here(name: str) -> Any:
    compute = divmod if name == "divmod" else getattr(operator, name)
    return (
        lambda self, other: compute(self.__jax_array__(), other),
        lambda self, other: compute(other, self.__jax_array__()),
    )


for _name in (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "matmul"),
    *("and_", "or_", "xor", "lshift", "rshift"),
):
    _straight, _reflected = _here(_name)
    _name = _name.rstrip("_")
    setattr(RemoteArray, f"__{_name}__", _straight)
    setattr(RemoteArray, f"__r{_name}__", _reflected)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(RemoteArray, f"__{_name}__", _here(_name)[0])


def _of_one(name: str) -> Any:
    compute = getattr(operator, name)
    return lambda self: compute(self.__jax_array__())


for _name in ("neg", "pos", "abs", "invert"):
    setattr(RemoteArray, f"__{_name}__", _of_one(_name))


def _its(name: str) -> Any:
    return property(lambda self: getattr(self.__jax_array__(), name))


for _name in (
    *("T", "mT", "real", "imag", "at", "astype", "reshape", "ravel", "flatten", "squeeze"),
    *("transpose", "swapaxes", "sum", "prod", "mean", "std", "var", "max", "min", "any", "all", "argmax", "argmin"),
    *("argsort", "sort", "cumsum", "cumprod", "dot", "round", "clip", "copy", "take", "repeat", "conj", "trace"),
):
    setattr(RemoteArray, _name, _its(_name))


def _aval(array: RemoteArray) -> Any:
    dtype = jax_dtypes.canonicalize_dtype(array.dtype, allow_extended_dtype=True)
    return jax.core.ShapedArray(array.shape, dtype, weak_type=array.weak_type)


# Given to a function of JAX's, it is looked at, as one of NumPy's is.
jax_core.pytype_aval_mappings[RemoteArray] = _aval
jax_dtypes.register_canonicalize_value_handler(RemoteArray, RemoteArray.__jax_array__)
