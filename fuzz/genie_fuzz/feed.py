"""Bytes of a fuzzer read as numbers and choices. What is missing reads as zero, so every prefix is an input, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")

# Where checks of sizes and signs are: one off, and wrapped.
EDGES = (0, 1, 2, 127, 128, 255, 256, 1 << 15, 1 << 16, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 32) - 1) + (
    (1 << 62, (1 << 63) - 2, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
)


class Feed:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def number(self) -> int:
        """Below 2**64: small ones mostly, then edges, then any."""
        first = self.byte()
        if first < 192:
            return first
        if first < 248:
            return EDGES[first % len(EDGES)]
        return int.from_bytes(self.take(8), "little")

    def choice(self, of: Sequence[_T]) -> _T:
        return of[self.byte() % len(of)]

    def take(self, count: int) -> bytes:
        start = self._at
        self._at = min(start + count, len(self._data))
        return self._data[start : self._at]

    def some(self) -> bytes:
        """A length of one byte, or from 240 on two, then so many bytes."""
        length = self.byte()
        if length >= 240:
            length = (length - 240) << 8 | self.byte()
        return self.take(length)

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def fed(data: bytes) -> bytes:
    """What :meth:`Feed.some` reads as ``data``: for seeds."""
    if len(data) < 240:
        return bytes((len(data),)) + data
    if len(data) >= 16 << 8:
        raise ValueError(f"{len(data)} bytes are too many for a seed")
    return bytes((240 + (len(data) >> 8), len(data) & 0xFF)) + data
