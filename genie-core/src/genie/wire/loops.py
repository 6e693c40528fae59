"""What LOOP and LOOPED carry.

::

    LOOP     iterations to run now u32 │ iterations of the whole loop u32 │ bytes of the loop u32 │ plan varint
             │ the loop, msgpack │ bindings of the first iteration
    LOOP     iterations to run now u32                                         (goes on with the loop begun last)
    LOOPED   flags u8 │ of each value that is emitted: length varint, bytes

A LOOP is answered by one LOOPED per iteration, as it ends. ``LAST`` is set on the last answer of a request, ``OVER``
when the loop goes no further, and ``RAN`` when there was an iteration. A node may answer fewer iterations than were
asked for, so that what nobody reads stays small. An ERROR ends the request and the loop.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from genie.errors import ProtocolError
from genie.loops import Loop
from genie.wire.frames import Buffer
from genie.wire.messages import get_varint, put_varint

LAST: Final = 1
OVER: Final = 2
RAN: Final = 4

_BEGIN: Final = struct.Struct("<III")
_MORE: Final = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Loop)


class Begin(NamedTuple):
    plan: int
    loop: Loop
    times: int
    bindings: memoryview


def put_begin(count: int, plan: bytes, loop: Loop, times: int, bindings: Buffer) -> bytes:
    """``plan`` is the plan's number as a varint."""
    packed = _encode(loop)
    return b"".join((_BEGIN.pack(count, times, len(packed)), plan, packed, bindings))


def put_more(count: int) -> bytes:
    return _MORE.pack(count)


def get(data: memoryview) -> tuple[int, Begin | None]:
    """How many iterations to run now, and of which loop if it is a new one."""
    if len(data) == _MORE.size:
        (count,) = _MORE.unpack(data)
        return int(count), None
    if len(data) < _BEGIN.size:
        raise ProtocolError("a LOOP record is cut short")
    count, times, length = _BEGIN.unpack_from(data)
    rest = data[_BEGIN.size :]
    plan, used = get_varint(rest)
    if used + length > len(rest):
        raise ProtocolError("a LOOP record is cut short")
    try:
        loop = _decoder.decode(rest[used : used + length])
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the peer sent a malformed LOOP: {error}") from error
    return count, Begin(plan, loop, times, rest[used + length :])


def put_answer(flags: int, emitted: Sequence[Buffer] = ()) -> bytes:
    parts = [bytes((flags,))]
    for value in emitted:
        parts += [put_varint(len(value)), bytes(value)]
    return b"".join(parts)


def get_answer(data: memoryview, values: int) -> tuple[int, tuple[memoryview, ...]]:
    """The flags, and what was emitted: ``values`` of them, if there was an iteration."""
    if not len(data):
        raise ProtocolError("a LOOPED record is empty")
    flags, rest = data[0], data[1:]
    emitted = []
    for _ in range(values if flags & RAN else 0):
        length, used = get_varint(rest)
        if used + length > len(rest):
            raise ProtocolError("a LOOPED record is cut short")
        emitted.append(rest[used : used + length])
        rest = rest[used + length :]
    if len(rest) or flags > LAST | OVER | RAN:
        raise ProtocolError("a LOOPED record says more than it should")
    return flags, tuple(emitted)
