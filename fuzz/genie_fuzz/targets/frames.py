"""A byte stream from a peer, cut into messages as it arrives in pieces of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from genie.errors import LimitExceeded, ProtocolError, VersionMismatch
from genie.wire import Kind, Limits, Message, frames
from genie_fuzz.harness import Target, check, refuses

_LIMITS = Limits(header=1 << 12, records=64, buffers=2, tensor=1 << 11, plan=1 << 11)
_REFUSALS = (LimitExceeded, ProtocolError, VersionMismatch)
_RING = 256


def one(data: bytes) -> None:
    """The first byte says how large the pieces are."""
    if len(data) > 1:
        refuses(_REFUSALS, lambda: _stream(memoryview(data)[1:], data[0] or 1))


def _stream(data: memoryview, step: int) -> None:
    assembler = frames.Assembler(_LIMITS, ring=_RING)
    asked = 0

    def allocate(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
        nonlocal asked
        asked += sum(sizes)
        check(max(sizes) <= _LIMITS.largest_buffer, "memory is asked for beyond the limit")
        if sizes[0] % 7 == 3:
            raise LimitExceeded("no room for it")
        return [memoryview(bytearray(size)) for size in sizes]

    sent = 0
    while sent < len(data):
        space = assembler.space()
        check(0 < len(space), "there is no room to read into")
        count = min(step, len(space), len(data) - sent)
        space[:count] = data[sent : sent + count]
        assembler.filled(count)
        sent += count
        while True:
            message = _pulled(assembler, allocate)
            if message is None:
                break
            _look(message)


def _pulled(assembler: frames.Assembler, allocate: object) -> Message | None:
    try:
        return assembler.pull(allocate)  # type: ignore[arg-type]
    except LimitExceeded as error:
        if "no room" not in error.message:
            raise
        return None  # its data is skipped, and the stream goes on


def _look(message: Message) -> None:
    header = message.header
    found = refuses((ProtocolError,), lambda: frames.split(header))
    alone = refuses((ProtocolError,), lambda: frames.single(header))
    if found is None:
        check(alone is None, "a header has one record, and is malformed")
        return
    seq, records = found  # type: ignore[misc]
    check((alone is not None) == (len(records) == 1), "split and single disagree on the number of records")
    if alone is not None:
        check((seq, *records[0]) == alone, "split and single disagree")  # type: ignore[comparison-overlap]
    check(seq == frames.sequence(header), "the sequence number changed")
    again = frames.message(
        seq, len(records), b"".join(frames.record(kind, body) for kind, body in records), list(map(len, message.buffers))
    )
    # A short record may be sent in the long form, and only then the bytes differ.
    check(len(again) <= len(header), "a message grew when it was sent on")
    check(frames.split(again) == (seq, records), "a message changed when it was sent on")


def seeds() -> Iterator[bytes]:
    short = frames.one(1, Kind.SYNC) + frames.one(2, Kind.FREE, b"\x02\x02")
    several = frames.message(3, 3, frames.record(1) + frames.record(17, b"ab") + frames.record(18, bytes(300)))
    bulk = frames.one(4, Kind.UPLOAD, b"spec", 9) + bytes(9) + frames.one(5, Kind.BYE)
    refused = frames.one(6, Kind.UPLOAD, b"spec", 10) + bytes(10) + frames.one(7, Kind.BYE)
    two = frames.message(8, 1, frames.record(49), (4, 0)) + bytes(4)
    for step in (1, 5, 255):
        for stream in (short, several, bulk, refused, two, short + bulk + several):
            yield bytes((step,)) + stream
    yield b"\xff\x16\x03\x01" + bytes(20)
    yield b"\xffGET / HTTP/1.1\r\n\r\n"


TARGET = Target(
    name="frames",
    one=one,
    seeds=seeds,
    modules=("genie.wire.frames",),
    bytes_per_byte=96,
    bytes_at_least=1 << 15,
    seconds=0.2,
    largest=2048,
    share=2.0,
)
