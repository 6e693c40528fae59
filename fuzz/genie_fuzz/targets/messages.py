"""What records of each kind carry, of both directions: read, written again, read again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from genie.errors import (
    AccessDenied,
    ConnectionLost,
    GenieError,
    LimitExceeded,
    OutOfMemory,
    ProtocolError,
)
from genie.graph import TensorSpec
from genie.loops import Loop
from genie.timing import Operand, Timing
from genie.wire import Limits, channels, loops, messages, profiles, traces
from genie.wire.messages import Back, Hello, Standing, Welcome
from genie_fuzz.harness import Target, check, refuses

_LIMITS = Limits()
_REFUSALS = (ProtocolError, LimitExceeded)


class Reader(NamedTuple):
    """How a payload is read, and how what was read is written again."""

    read: Callable[[memoryview], Any]
    write: Callable[[Any], bytes]
    examples: tuple[bytes, ...]


def _loop_again(read: tuple[int, loops.Begin | None]) -> bytes:
    count, begin = read
    if begin is None:
        return loops.put_more(count)
    return loops.put_begin(count, messages.put_varint(begin.plan), begin.loop, begin.times, begin.bindings)


def _spec(data: memoryview) -> tuple[TensorSpec, int]:
    spec = messages.get_spec(data)
    return spec, messages.spec_bytes(spec, _LIMITS)


def _bounded(data: memoryview) -> Welcome:
    welcome = messages.get_welcome(data)
    for number in vars_of(welcome.limits):
        check(0 <= number < 1 << 63, f"a node's limit of {number}")
    check(math.isfinite(welcome.lease) and welcome.lease >= 0, f"a lease of {welcome.lease}")
    return welcome


def _rows(data: memoryview) -> list[Timing]:
    """As they are written: those counted most first."""
    return sorted(profiles.get_rows(data), key=lambda row: row.count, reverse=True)


def vars_of(limits: Limits) -> tuple[int, ...]:
    return msgspec.structs.astuple(limits)


_SPEC = TensorSpec((2, 3), "float32")
_STRIDED = TensorSpec((2, 3), "bfloat16", (1, 2))
_HELLO = Hello(major=1, minor=1, genie="0.1.0", device=0, host="h", client="c", resumes=True)
_BACK = Hello(major=1, minor=1, device=0, back=Back(session="a-1", key="k" * 32, heard=3, sent=4))
_WELCOME = Welcome(major=1, minor=1, session="a-1", limits=_LIMITS, lease=30.0, key="k", standing=Standing(taken=1, told=2))
_ROW = Timing("aten::mm", "decode", (Operand("float32", (2, 2)),), (Operand("float32", (2, 2)),), 3, 1.0, 0.5, 0.1, 0.9)
_LOOP = Loop(carries=((0, 0),), strides=((0, 1),), emit=(0,), stop=0)
_TARGET = channels.Target(token="t" * 32, host="h", local_address="unix:/x", address="node:1")
_put, _bytes = messages.put_struct, bytes
_number = messages.HANDLE.pack
_ERRORS = (OutOfMemory("full", device="gpu0", kind="OutOfMemory"), AccessDenied("no"), ConnectionLost("gone", hint="wait"))

READERS: tuple[Reader, ...] = (
    Reader(messages.get_hello, _put, (_put(_HELLO), _put(_BACK))),
    Reader(_bounded, _put, (_put(_WELCOME), _put(Welcome(major=1, minor=0)))),
    Reader(lambda data: messages.get_error(data, "node"), messages.put_error, tuple(map(messages.put_error, _ERRORS))),
    Reader(messages.get_counters, _put, (_put({"values": 3, "memory": 1 << 40}),)),
    Reader(_spec, lambda read: _put(read[0]), (_put(_SPEC), _put(_STRIDED), _put(TensorSpec((), "bool")))),
    Reader(messages.get_value, lambda read: messages.put_value(*read), (messages.put_value(7, _SPEC, bytes(24)),)),
    Reader(
        messages.get_result, lambda read: len(read[0]).to_bytes(2, "little") + read[0] + read[1],
        (messages.put_result(_SPEC, bytes(24)),),
    ),
    Reader(messages.get_chunk, lambda read: messages.put_chunk(*read), (messages.put_chunk(bytes(32), 5),)),
    Reader(messages.get_commit, lambda read: messages.put_commit(*read), (messages.put_commit(bytes(32), 5, _SPEC),)),
    Reader(messages.get_held, lambda read: messages.put_held(read[0], direct=read[1]), (messages.put_held(9, direct=True),)),
    Reader(messages.get_handles, messages.put_handles, (messages.put_handles([1, 2, 3, 9, 4]), messages.put_handles([1 << 62]))),
    Reader(lambda data: messages.get_varint(data)[0], messages.put_varint, (b"\x05", b"\xff\xff\xff\xff\x0f")),
    Reader(lambda data: messages.get_pair(data, "FETCH"), lambda read: messages.put_pair(*read), (messages.put_pair(3, 1 << 63),)),
    Reader(lambda data: messages.get_handle(data, "DESCRIBE"), _number, (_number(5),)),
    Reader(channels.get_opening, channels.put, (channels.put(channels.Opening(number=1, source="gpu1")),)),
    Reader(channels.get_target, channels.put, (channels.put(_TARGET),)),
    Reader(channels.get_outlet, channels.put, (channels.put(channels.Outlet(number=1, target=_TARGET)),)),
    Reader(channels.get_send, lambda read: channels.put_send(*read), (channels.put_send(1, 2),)),
    Reader(channels.get_receive, lambda read: channels.put_receive(*read), (channels.put_receive(1, 2, 3),)),
    Reader(loops.get, _loop_again, (loops.put_more(4), loops.put_begin(2, b"\x00", _LOOP, 9, b"\x01\x02"))),
    Reader(
        lambda data: loops.get_answer(data, 2), lambda read: loops.put_answer(*read),
        (loops.put_answer(loops.RAN, (b"abcd", b"")), loops.put_answer(loops.LAST | loops.OVER)),
    ),
    Reader(profiles.get_share, profiles.put_share, (b"", profiles.put_share(0.5))),
    Reader(_rows, profiles.put_rows, (profiles.put_rows([_ROW]), profiles.put_rows([]))),
    Reader(traces.get, traces.put, (traces.put(traces.Parent(1, 2, True)), b"")),
)


def one(data: bytes) -> None:
    """The first byte says which reader."""
    if not data:
        return
    reader = READERS[data[0] % len(READERS)]
    read = refuses(_REFUSALS, lambda: reader.read(memoryview(data)[1:]))
    if read is None:
        return
    if isinstance(read, GenieError):
        _told(read)
        return
    written = reader.write(read)
    again = reader.read(memoryview(written))
    check(_same(again, read), f"{read!r} was written and read as {again!r}")


def _told(error: GenieError) -> None:
    """An error that a node tells is one of ours, and tells the same on its way further."""
    check(type(error).__module__ == "genie.errors", f"a peer made a {type(error)}")
    again = messages.get_error(messages.put_error(error), error.where)
    check((type(again), again.message, again.hint) == (type(error), error.message, error.hint), f"{error!r} changed")


def _same(one: object, other: object) -> bool:
    # Not a number equals nothing: such values are compared as they are written.
    return one == other or repr(one) == repr(other)


def seeds() -> Iterator[bytes]:
    for number, reader in enumerate(READERS):
        for example in reader.examples:
            yield bytes((number,)) + example


TARGET = Target(
    name="messages",
    one=one,
    seeds=seeds,
    modules=("genie.wire.messages", "genie.wire.channels", "genie.wire.loops", "genie.wire.profiles", "genie.wire.traces"),
    bytes_per_byte=128,
    bytes_at_least=1 << 15,
    seconds=0.2,
    msgpack_at=1,
    largest=2048,
    share=3.0,
)
