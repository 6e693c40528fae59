"""Shapes and types of arrays, which calls are told apart by."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen(eq=False)
class Kind:
    """A shape and a type, of which there is one object, so that comparing is cheap."""

    shape: tuple[int, ...]
    dtype: Any
    weak_type: bool


_kinds: dict[Any, Kind] = {}


def kind_of(aval: Any) -> Kind:
    return kind(aval.shape, aval.dtype, aval.weak_type)


def kind(shape: tuple[int, ...], dtype: Any, weak_type: bool) -> Kind:
    key = (shape, dtype, weak_type)
    known = _kinds.get(key)
    return _kinds.setdefault(key, Kind(*key)) if known is None else known
