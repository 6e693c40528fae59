"""JAX's typed random keys, each of which is one element: what moves elements about need not know of them.

A key of one, two or four words of 32 bits is an element of 32, 64 or 128. Nothing computes with such an element; the
complex type only moves its bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from genie.errors import UnsupportedOperation

_ELEMENT: Mapping[int, torch.dtype] = MappingProxyType({1: torch.int32, 2: torch.int64, 4: torch.complex128})


def key_shape(dtype: Any) -> tuple[int, ...]:
    """The shape of one key's words."""
    return tuple(dtype._impl.key_shape)


def of_words(words: torch.Tensor) -> torch.Tensor:
    """int32 [..., words] as keys [...]."""
    count = words.shape[-1]
    element = _ELEMENT.get(count)
    if element is None:
        raise UnsupportedOperation(f"random keys of {count} words", hint="use JAX's threefry2x32, rbg or philox keys")
    return words.contiguous().view(element).reshape(words.shape[:-1])


def words(keys: torch.Tensor, dtype: Any) -> torch.Tensor:
    """Keys [...] of one of JAX's key types as int32 [..., words]."""
    return keys.contiguous().unsqueeze(-1).view(torch.int32).reshape(*keys.shape, *key_shape(dtype))
