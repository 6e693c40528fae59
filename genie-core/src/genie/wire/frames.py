"""Messages as bytes: a fixed prefix, the sizes of the raw buffers, records, then the buffers themselves.

::

    prefix   magic 2s │ version u8 │ flags u8 │ seq u32 │ body bytes u32 │ buffers u16 │ records u16     (16 bytes)
    sizes    u64 per buffer
    body     records, each: kind u8 │ length u8, or 255 and length u32 │ payload
    buffers  raw, in order

Everything is little-endian. Prefix, sizes and body together are a message's *header*: what a message-shaped
transport carries as one piece, and what a byte stream starts a frame with. Several requests travel as the records
of one message, so batching needs nothing of a transport. Records of bulk data name no size of their own: the
message has one record and one buffer, which is received where it will stay.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from genie.errors import LimitExceeded, LocalProtocolError, ProtocolError, VersionMismatch

Buffer: TypeAlias = bytes | bytearray | memoryview
Allocate: TypeAlias = Callable[[bytes, Sequence[int]], Sequence[memoryview]]

MAGIC = b"\xa7G"
_TLS = b"\x16\x03"  # how a handshake starts
VERSION = 1  # of this layout; what the records mean is negotiated in HELLO

PREFIX = struct.Struct("<2sBBIIHH")
_COUNTS = struct.Struct("<IIHH")  # the prefix from its sequence number on
_LONG = 255  # a record's length takes four more bytes
_SHORT_RECORD = struct.Struct("<BB")
_LONG_RECORD = struct.Struct("<BBI")
_LENGTH = struct.Struct("<I")
_ONE = struct.Struct("<2sBBIIHHBB")  # prefix and one short record
_ONE_WITH_BUFFER = struct.Struct("<2sBBIIHHQBB")

SEQ_MASK = 0xFFFFFFFF


class Limits(msgspec.Struct, frozen=True):
    """What one side takes. Bytes; checked before memory is asked for."""

    header: int = 1 << 20
    records: int = 1 << 14
    buffers: int = 1
    tensor: int = 1 << 38
    rank: int = 64
    plan: int = 64 << 20

    @property
    def largest_buffer(self) -> int:
        return max(self.tensor, self.plan)


class Message:
    """One message as received: the header's bytes and the filled buffers."""

    __slots__ = ("buffers", "header")

    def __init__(self, header: bytes, buffers: Sequence[Buffer] = ()) -> None:
        self.header = header
        self.buffers = buffers


def record(kind: int, payload: Buffer = b"") -> bytes:
    length = len(payload)
    if length < _LONG:
        return _SHORT_RECORD.pack(kind, length) + payload
    return _LONG_RECORD.pack(kind, _LONG, length) + payload


def message(seq: int, records: int, body: bytes, sizes: Sequence[int] = ()) -> bytes:
    """The header of a message whose ``body`` is ``records`` encoded records."""
    try:
        head = PREFIX.pack(MAGIC, VERSION, 0, seq & SEQ_MASK, len(body), len(sizes), records)
    except struct.error as error:
        raise LocalProtocolError(f"{records} records of {len(body)} bytes do not fit one message") from error
    if not sizes:
        return head + body
    return head + struct.pack(f"<{len(sizes)}Q", *sizes) + body


def one(seq: int, kind: int, payload: Buffer = b"", buffer: int | None = None) -> bytes:
    """The header of a message of one record, with a buffer of that many bytes if any."""
    length = len(payload)
    if length >= _LONG:
        return message(seq, 1, record(kind, payload), () if buffer is None else (buffer,))
    if buffer is None:
        return _ONE.pack(MAGIC, VERSION, 0, seq, 2 + length, 0, 1, kind, length) + payload
    return _ONE_WITH_BUFFER.pack(MAGIC, VERSION, 0, seq, 2 + length, 1, 1, buffer, kind, length) + payload


def header_length(prefix: Buffer, limits: Limits, offset: int = 0) -> int:
    """Bytes of the whole header whose first 16 are at ``offset``. Raises before anything is allocated."""
    magic, version, flags, _, body, buffers, records = PREFIX.unpack_from(prefix, offset)
    if magic == _TLS:
        raise ProtocolError(
            "the peer speaks TLS, this side does not", hint="a node speaks it when it has --cert and --key"
        )
    if magic != MAGIC:
        raise ProtocolError(
            f"the peer does not speak Genie's protocol: it starts with {bytes(prefix[offset : offset + 8])!r}",
            hint="check that the address is a Genie node's data port",
        )
    if version != VERSION:
        raise VersionMismatch(
            f"the peer frames its messages by version {version} of the protocol, this side by version {VERSION}",
            hint="install the same version of Genie on both sides",
        )
    if flags:
        raise ProtocolError(f"a frame has unknown flags {flags:#x}")
    if buffers > limits.buffers or records > limits.records or not records:
        raise LimitExceeded(f"a frame has {records} records and {buffers} buffers")
    length: int = PREFIX.size + 8 * buffers + body
    if length > limits.header:
        raise LimitExceeded(f"a frame has a header of {length} bytes; the limit is {limits.header}")
    return length


def sequence(header: Buffer) -> int:
    seq: int = PREFIX.unpack_from(header)[3]
    return seq


def sizes(header: Buffer, limits: Limits) -> tuple[int, ...]:
    """The sizes of the buffers that follow a complete header."""
    count = header[12] | header[13] << 8
    if not count:
        return ()
    lengths: tuple[int, ...] = struct.unpack_from(f"<{count}Q", header, PREFIX.size)
    for length in lengths:
        if length > limits.largest_buffer:
            raise LimitExceeded(f"a frame has a buffer of {length} bytes; the limit is {limits.largest_buffer}")
    return lengths


def split(header: bytes) -> tuple[int, list[tuple[int, memoryview]]]:
    """Sequence number and records of a complete header that passed :func:`header_length`."""
    if len(header) < PREFIX.size:
        raise ProtocolError(f"a header of {len(header)} bytes is cut short")
    _, _, _, seq, body, buffers, count = PREFIX.unpack_from(header)
    offset = PREFIX.size + 8 * buffers
    end = len(header)
    if offset + body != end:
        raise ProtocolError(f"a header of {end} bytes says it has {offset + body}")
    view = memoryview(header)
    records: list[tuple[int, memoryview]] = []
    for _ in range(count):
        start = offset + 2
        if start > end:
            raise ProtocolError("a record is cut short")
        kind, length = header[offset], header[offset + 1]
        if length == _LONG:
            start, length = _long(header, start)
        offset = start + length
        if offset > end:
            raise ProtocolError(f"a record of kind {kind} names {length} bytes, more than its message has")
        records.append((kind, view[start:offset]))
    if offset != end:
        raise ProtocolError(f"{end - offset} bytes after the last record")
    return seq, records


def single(header: bytes) -> tuple[int, int, memoryview]:
    """As :func:`split`, of a header that must have one record: sequence number, kind and payload."""
    end = len(header)
    if end < PREFIX.size:
        raise ProtocolError(f"a header of {end} bytes is cut short")
    seq, body, buffers, count = _COUNTS.unpack_from(header, 4)
    offset = PREFIX.size + 8 * buffers
    start = offset + 2
    if count != 1 or offset + body != end or start > end:
        raise ProtocolError(f"a header of {end} bytes with {count} records where one was due")
    kind, length = header[offset], header[offset + 1]
    if length == _LONG:
        start, length = _long(header, start)
    if start + length != end:
        raise ProtocolError(f"a record of kind {kind} names {length} bytes, its message has {end - start}")
    return seq, kind, memoryview(header)[start:]


def _long(header: bytes, offset: int) -> tuple[int, int]:
    """Where a long record's payload starts, and its length."""
    if offset + _LENGTH.size > len(header):
        raise ProtocolError("a record is cut short")
    return offset + _LENGTH.size, _LENGTH.unpack_from(header, offset)[0]


class Assembler:
    """Messages out of a byte stream, without reading it.

    The owner reads into :meth:`space`, says :meth:`filled`, and asks :meth:`pull` for a message; small messages
    arrive several at a time, the bulk of large ones lands where ``allocate`` said. After an error the stream is
    beyond repair, except when ``allocate`` refused: then the message's buffers are skipped.
    """

    def __init__(self, limits: Limits, ring: int = 1 << 17) -> None:
        self._limits = limits
        self._ring = bytearray(ring)
        self._view = memoryview(self._ring)
        self._start = 0
        self._end = 0
        self._need = 0  # length of the header being received, once its prefix is known
        self._skip = 0  # bytes to drop before the next message
        self._header = b""
        self._targets: list[memoryview] = []  # buffers being received
        self._current = 0  # which of them
        self._filled = 0  # how much of it

    @property
    def midway(self) -> bool:
        """Whether part of a message has arrived."""
        return bool(self._targets or self._skip or self._end > self._start)

    @property
    def bulk(self) -> bool:
        """Whether what arrives next is a message's data."""
        return bool(self._targets)

    def space(self) -> memoryview:
        if self._targets:
            return self._targets[self._current][self._filled :]
        if self._skip:
            return self._view[: min(self._skip, len(self._ring))]
        if self._start and len(self._ring) - self._start < max(self._need, PREFIX.size):
            self._compact()
        if self._need > len(self._ring):
            self._grow()
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        if self._targets:
            self._filled += count
            self._next_target()
        elif self._skip:
            self._skip -= count
        else:
            self._end += count

    def pull(self, allocate: Allocate) -> Message | None:
        """The next message if all of it is there. ``allocate`` may refuse its buffers by raising."""
        if self._targets:
            return self._complete()
        if self._skip:
            return None
        have = self._end - self._start
        if not self._need:
            if have < PREFIX.size:
                return None
            self._need = header_length(self._ring, self._limits, self._start)
        if have < self._need:
            return None
        header = bytes(self._view[self._start : self._start + self._need])
        self._consume(self._need)
        self._need = 0
        if not (header[12] or header[13]):
            return Message(header)
        lengths = sizes(header, self._limits)
        try:
            targets = [memoryview(target).cast("B") for target in allocate(header, lengths)]
            if tuple(map(len, targets)) != lengths:
                raise LocalProtocolError(f"memory of {list(map(len, targets))} bytes for buffers of {lengths}")
        except BaseException:
            self._drop(sum(lengths))
            raise
        self._header, self._targets, self._current, self._filled = header, targets, 0, 0
        self._take()
        return self._complete()

    def abandon(self) -> bool:
        """Give up the message under way, whose reader was interrupted; the stream stays in step. Whether there was one
        that will not come any more: one whose header is not whole yet will."""
        given_up = bool(self._targets)
        if self._targets:
            rest = sum(map(len, self._targets[self._current :])) - self._filled
            self._targets = []
            self._drop(rest)
        return given_up

    def _complete(self) -> Message | None:
        if self._current < len(self._targets):
            return None
        done = Message(self._header, self._targets)
        self._header, self._targets = b"", []
        return done

    def _take(self) -> None:
        """Move what the ring already holds of the buffers."""
        self._next_target()
        while self._current < len(self._targets) and self._end > self._start:
            room = self._targets[self._current][self._filled :]
            count = min(len(room), self._end - self._start)
            room[:count] = self._view[self._start : self._start + count]
            self._consume(count)
            self._filled += count
            self._next_target()

    def _next_target(self) -> None:
        while self._current < len(self._targets) and self._filled == len(self._targets[self._current]):
            self._current += 1
            self._filled = 0

    def _drop(self, count: int) -> None:
        held = min(count, self._end - self._start)
        self._consume(held)
        self._skip = count - held

    def _consume(self, count: int) -> None:
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0

    def _compact(self) -> None:
        held = self._end - self._start
        self._ring[:held] = self._ring[self._start : self._end]
        self._start, self._end = 0, held

    def _grow(self) -> None:
        larger = bytearray(self._need)
        larger[: self._end] = self._view[: self._end]
        self._ring, self._view = larger, memoryview(larger)
