"""Messages over a link that may damage them: the stream is cut into records, each with a checksum.

::

    preamble   a7 b8 │ version u8 │ "genie xxh3-64"        once, from both sides, before anything else      (16 bytes)
    record     length u32 │ its complement u32 │ XXH3-64 u64 │ at most 512 KiB of the stream                (16 bytes +)

Everything is little-endian. The seed is the number of the record, counted from 0 by who connected and from 2^63 by
who listens: what was lost, repeated or put in another order is found as what was changed is. The complement is there so
that a damaged length is not waited for. TCP's own checksum has 16 bits, and boxes on the way compute it anew over what
they spoilt; TLS needs none of this.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

from xxhash import xxh3_64_intdigest as digest

from genie.errors import AccessDenied, ConnectionLost, DeadlineExceeded, GenieError, Stage, VersionMismatch
from genie.telemetry import counters
from genie.wire import Buffer, Limits, frames
from genie_backend_tcp.connection import SocketConnection, behind
from genie_backend_tcp.progress import Progress

PREAMBLE = b"\xa7\xb8\x01genie xxh3-64"
_HEAD = struct.Struct("<IIQ")
_HEAD_BYTES = _HEAD.size
_COMPLEMENT = 0xFFFFFFFF
_RECORD = 1 << 19  # still in the cache when it is sent, or looked at
_TOGETHER = 1 << 14  # what is smaller is copied into one record
_RING = _RECORD + (1 << 16)
_LISTENER = 1 << 63
_ALIKE = len(PREAMBLE) // 2  # of whose bytes so many are right was meant to be one

_DAMAGED = "something on the way changes bytes: a cable, a network card, a middlebox"

Redial: TypeAlias = Callable[[], socket.socket]


class CheckedConnection(SocketConnection):
    """One socket whose two sides check what they read.

    Who connects decides: with ``redial`` it may go on without, over a new socket, with a node that is too old to know
    of checksums; without it does not. ``accepted``, it may turn out to be plain, unless checksums are ``required``.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        limits: Limits,
        stall_timeout: float,
        spin_us: float,
        *,
        accepted: bool = False,
        required: bool = False,
        redial: Redial | None = None,
    ) -> None:
        super().__init__(sock, peer, limits, stall_timeout, spin_us)
        self._limits = limits
        self._accepted = accepted
        self._required = required
        self._redial = redial
        self._opening: bytearray | None = bytearray()  # what has come of the other side's preamble
        self._silent = False  # it was waited for, in vain
        self._unanswered: list[bytes] = []  # what was sent before that
        self._checks = not accepted
        self._said, self._heard = (_LISTENER, 0) if accepted else (0, _LISTENER)  # the numbers of the next records
        self._ring = memoryview(b"")
        self._start = self._end = 0  # of what has come and was not taken
        self._length = 0  # of the record being received, once its head is known
        self._digest = 0  # what it should have
        self._sound = 0  # bytes from the start on that were checked
        if not accepted:
            try:
                self._write([PREAMBLE])
            except OSError as error:
                raise self._translated(error, "took", stall_timeout) from error

    # --- the beginning ------------------------------------------------------------------------------

    def _begin(self) -> bool:
        """Hear what the other side begins with. Not if it hung up."""
        opening = self._opening
        assert opening is not None
        while len(opening) < len(PREAMBLE):
            piece = memoryview(bytearray(len(PREAMBLE) - len(opening)))
            self._silent = True
            count = super()._read(piece)
            self._silent = False
            if not count:
                return False
            opening += piece[:count]
        first = bytes(opening)
        if first != PREAMBLE and _meant(first):
            raise _damaged(self.peer)
        self._opening = None
        if first == PREAMBLE:
            self._ring = memoryview(bytearray(_RING))
            if self._accepted:
                self._checks = True
                with contextlib.suppress(OSError):  # gone already: what it said is heard all the same
                    self._write([PREAMBLE])
        elif self._accepted:
            self._go_on_plain(first)
        else:
            self._begin_again(first)
        self._unanswered = []
        return True

    def _go_on_plain(self, first: bytes) -> None:
        if self._required and first[: len(frames.MAGIC)] == frames.MAGIC:
            raise AccessDenied(
                "this node takes no connections without checksums",
                hint="set `checksums` to on where you connect from, or have the node speak TLS",
            )
        self._ahead[:0] = first

    def _begin_again(self, first: bytes) -> None:
        """An older node says, in plain, that it does not understand."""
        frames.header_length(first, self._limits)  # raises if it is no node
        if self._redial is None:
            raise VersionMismatch(
                "the node does not know of checksums",
                where=self.peer,
                hint="install the same version of Genie on both sides, or set `checksums` to auto or off here",
            )
        before, self._sock = self._sock, self._redial()
        before.close()
        patience = self._receive_timeout
        self._prepare()
        self._set_receive_timeout(patience)  # what is left to receive was to come in that time
        self._checks = False
        for said in self._unanswered:
            self._write([said])

    # --- out ----------------------------------------------------------------------------------------

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        try:
            if self._opening is not None:
                if self._accepted and self._silent:
                    raise DeadlineExceeded(
                        "the peer has not said how it wants to be spoken to", stage=Stage.GREETING, where=self.peer
                    )
                if self._accepted:
                    self._begin()
                elif not buffers:
                    self._unanswered.append(bytes(header))
                else:
                    self._redial = None
            if not self._checks:
                self._write([header, *buffers])
            elif sum(map(len, buffers), len(header)) <= _TOGETHER:
                data = b"".join((header, *buffers)) if buffers else header
                self._write([self._head(data) + data])
            else:
                for parts in self._records(header, buffers):
                    self._write(parts)
        except OSError as error:
            if isinstance(error, GenieError):
                raise
            raise self._translated(error, "took", self._stall) from error

    def _head(self, data: Buffer) -> bytes:
        number, length = self._said, len(data)
        self._said = number + 1
        return _HEAD.pack(length, length ^ _COMPLEMENT, digest(data, number))

    def _records(self, header: Buffer, buffers: Sequence[Buffer]) -> Iterator[list[Buffer]]:
        """Each is sent while it is in the cache; the first goes with what is before it."""
        before: list[Buffer] = []
        for part in (header, *buffers):
            view = memoryview(part).cast("B")
            for start in range(0, len(view), _RECORD):
                piece = view[start : start + _RECORD]
                before += [self._head(piece), piece]
                if part is not header:
                    yield before
                    before = []
        if before:
            yield before

    def _write(self, parts: Sequence[Buffer]) -> None:
        if len(parts) == 1:
            taken = self._sock.send(parts[0])
            if taken == len(parts[0]):
                return
        else:
            taken = self._sock.sendmsg(parts)
        progress = Progress(Stage.SEND, self.peer)
        while left := behind(parts, taken):
            progress.waits(self._stall)
            parts, taken = left, self._sock.sendmsg(left)
            progress.moved(taken)

    # --- in -----------------------------------------------------------------------------------------

    @property
    def _midway(self) -> bool:
        return super()._midway or bool(self._opening or self._length or self._end > self._start)

    def _read(self, space: memoryview) -> int:
        if self._opening is not None and not self._begin():
            return 0
        if not self._checks:
            return super()._read(space)
        while not self._sound:
            have = self._end - self._start
            if not self._length:
                if have >= _HEAD_BYTES:
                    self._open()
                    continue
            elif have >= self._length:
                self._check(self._ring[self._start : self._start + self._length])
                self._sound, self._length = self._length, 0
                break
            elif len(space) >= self._length:
                return self._land(space[: self._length])
            if not self._fill():
                return 0
        count = min(self._sound, len(space))
        start = self._start
        space[:count] = self._ring[start : start + count]
        self._start = start + count
        self._sound -= count
        return count

    def _open(self) -> None:
        length, complement, self._digest = _HEAD.unpack_from(self._ring, self._start)
        if length ^ complement != _COMPLEMENT or not 0 < length <= _RECORD:
            raise _damaged(self.peer)
        self._start += _HEAD_BYTES
        self._length = length

    def _check(self, data: memoryview) -> None:
        if digest(data, self._heard) != self._digest:
            raise _damaged(self.peer)
        self._heard += 1

    def _fill(self) -> int:
        start, end, ring = self._start, self._end, self._ring
        if start == end:
            start = end = 0
        elif start + max(self._length, _HEAD_BYTES) > len(ring):
            end -= start
            ring[:end] = ring[start : self._end]
            start = 0
        self._start, self._end = start, end
        count = super()._read(ring[end:])
        self._end = end + count
        return count

    def _receive_rest(self, target: memoryview) -> int:
        return self._sock.recvmsg_into((target, self._ring[:_HEAD_BYTES]))[0]

    def _land(self, target: memoryview) -> int:
        """The rest of a record, where it will stay; and with it the head of the next, but nothing behind that."""
        ring, length = self._ring, len(target)
        have = self._end - self._start
        target[:have] = ring[self._start : self._end]
        try:
            while have < length:
                if self._ahead:
                    count = super()._read(target[have:])
                else:
                    count = self._in_time(partial(self._receive_rest, target[have:]))
                if not count:
                    raise ConnectionLost("the peer closed the connection", where=self.peer)
                have += count
        except BaseException:  # whoever reads on has other memory
            ring[:have] = target[:have]
            self._start, self._end = 0, have
            raise
        self._start, self._end = 0, have - length
        self._check(target)
        self._length = 0
        return length


def _meant(first: bytes) -> bool:
    """Whether it was a preamble before something changed it."""
    return sum(one == other for one, other in zip(first, PREAMBLE, strict=True)) >= _ALIKE


def _damaged(peer: str) -> ConnectionLost:
    counters.add("damaged")
    return ConnectionLost("bytes arrived damaged", where=peer, hint=_DAMAGED)
