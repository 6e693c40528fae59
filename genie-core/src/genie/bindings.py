"""Bindings: what changes between two executions of one plan, and how few bytes say it.

An execution is a vector of 64-bit words::

    [first output handle, handle of input 0, …, handle of input n-1, parameter 0, …, parameter m-1]

A float parameter is carried as the bits of its IEEE double. Sender and receiver both remember, per plan, the
last vector and the last step of each word, and expect ``last + step`` next: an unchanged weight, a cache whose
handle moves by a constant, a length that grows by one all cost nothing. Only the surprises are sent::

    varint(number of surprises) { varint(gap since the last surprise) zigzag-varint(actual - expected) }*

A sender that can't know what the receiver remembers (an execution was interrupted half-way) sends every word, and
both remember no step::

    varint(number of words + 1) { varint(word) }*

All arithmetic is modulo 2**64. The native recorder and executor speak the same bytes; this module is the
reference they are tested against.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from genie.errors import LocalProtocolError, ProtocolError
from genie.graph import Arg, Graph, Many, Region, ScalarTensor

_MASK = (1 << 64) - 1


def float_bits(number: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", number))[0])


def bits_float(word: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", word & _MASK))[0])


def numbers(arg: Arg) -> Iterator[int | float]:
    """The parameters an argument holds, in their order."""
    if isinstance(arg, bool):
        return
    if isinstance(arg, int | float):
        yield arg
    elif isinstance(arg, Many):
        for item in arg.items:
            yield from numbers(item)
    elif isinstance(arg, ScalarTensor) and not isinstance(arg.number, bool):
        yield arg.number
    elif isinstance(arg, Region):
        for node in arg.graph.steps:
            for inner in node.args:
                yield from numbers(inner)


def parameters(graph: Graph) -> tuple[int, ...]:
    """The graph's parameters as words, in the order of nodes, arguments, list items and the nodes of regions."""
    return tuple(
        float_bits(number) if isinstance(number, float) else number & _MASK
        for node in graph.steps
        for arg in node.args
        for number in numbers(arg)
    )


class Prediction:
    """One side's memory of one plan: encode to send, decode to receive; both advance it."""

    def __init__(self, inputs: int, parameters: Sequence[int]) -> None:
        self._last = [0] * (1 + inputs) + [word & _MASK for word in parameters]
        self._step = [0] * len(self._last)
        self._expected = list(self._last)
        self._moving: list[tuple[int, int]] = []  # words that have a step, and the step

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prediction) and (self._last, self._step) == (other._last, other._step)

    __hash__ = None  # type: ignore[assignment]

    def encode(self, words: Sequence[int], anew: bool = False) -> bytes:
        """Bytes for ``words`` (same length as the vector). The memory advances; ``anew`` relies on none."""
        if len(words) != len(self._last):
            raise LocalProtocolError(f"{len(words)} words for a plan of {len(self._last)}")
        if anew:
            whole = bytearray()
            _put_varint(whole, len(words) + 1)
            for word in words:
                _put_varint(whole, word & _MASK)
            self._last = [word & _MASK for word in words]
            self._remember([0] * len(words))
            return bytes(whole)
        told = list(words)
        if told == self._expected:
            self._go_on()
            return _AS_EXPECTED
        told = [word & _MASK for word in told]
        surprises = bytearray()
        count, previous = 0, -1
        for index, (word, expected) in enumerate(zip(told, self._expected, strict=True)):
            if word != expected:
                surprise = (word - expected) & _MASK
                _put_varint(surprises, index - previous - 1)
                _put_varint(surprises, ((surprise << 1) ^ (_MASK if surprise >> 63 else 0)) & _MASK)
                count, previous = count + 1, index
        self._advance(told)
        head = bytearray()
        _put_varint(head, count)
        return bytes(head + surprises)

    def decode(self, data: bytes) -> tuple[int, ...]:
        """The words ``data`` stands for. Raises :class:`ProtocolError` on anything malformed."""
        count, offset = _get_varint(data, 0)
        if count == len(self._last) + 1:
            return self._decode_anew(data, offset)
        if count > len(self._last):
            raise ProtocolError(f"bindings name {count} words, the plan has {len(self._last)}")
        surprise: dict[int, int] = {}
        index = -1
        for _ in range(count):
            gap, offset = _get_varint(data, offset)
            zigzag, offset = _get_varint(data, offset)
            index += gap + 1
            if index >= len(self._last):
                raise ProtocolError(f"bindings name word {index}, the plan has {len(self._last)}")
            surprise[index] = (zigzag >> 1) ^ (_MASK if zigzag & 1 else 0)
        if offset != len(data):
            raise ProtocolError(f"{len(data) - offset} bytes after the bindings")
        if not surprise:
            self._go_on()
            return tuple(self._last)
        words = list(self._expected)
        for index, by in surprise.items():
            words[index] = (words[index] + by) & _MASK
        self._advance(words)
        return tuple(self._last)

    def _decode_anew(self, data: bytes, offset: int) -> tuple[int, ...]:
        words = []
        for _ in self._last:
            word, offset = _get_varint(data, offset)
            words.append(word)
        if offset != len(data):
            raise ProtocolError(f"{len(data) - offset} bytes after the bindings")
        self._last = words
        self._remember([0] * len(words))
        return tuple(words)

    def _go_on(self) -> None:
        """Every word was as expected."""
        self._last = list(self._expected)
        for index, step in self._moving:
            self._expected[index] = (self._expected[index] + step) & _MASK

    def _advance(self, words: list[int]) -> None:
        steps = [(word - last) & _MASK for word, last in zip(words, self._last, strict=True)]
        self._last = words
        self._remember(steps)

    def _remember(self, steps: list[int]) -> None:
        self._step = steps
        self._moving = [(index, step) for index, step in enumerate(steps) if step]
        self._expected = list(self._last)
        for index, step in self._moving:
            self._expected[index] = (self._expected[index] + step) & _MASK


_AS_EXPECTED = b"\0"


def _put_varint(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _get_varint(data: bytes, offset: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if offset >= len(data) or shift > 63:
            raise ProtocolError("bindings are cut short")
        byte = data[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & _MASK, offset
        shift += 7
