"""A node that answers a client as the fuzzer likes, also when it comes back to its session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn
from unittest import mock

from genie import codec
from genie.device import Device
from genie.errors import ConnectionLost, DeadlineExceeded, GenieError
from genie.graph import TensorSpec
from genie.loops import Loop
from genie.remote import RemoteSession
from genie.remote.client import rejoining
from genie.remote.client.rejoining import Rejoining, Reunion
from genie.remote.greeting import Met, meet
from genie.security import Ticket
from genie.wire import PROTOCOL, Allocate, Buffer, Dialogue, Kind, Message, channels, frames, loops, messages, profiles
from genie.wire.messages import Back, Standing, Welcome
from genie_fuzz.feed import Feed, fed
from genie_fuzz.harness import Finding, Target, check
from genie_fuzz.nodes import LIMITS
from genie_fuzz.plans import library

_HERE = Device(id="cpu:0", type="cpu", memory_gb=1, compute_tflops=1)
_SPEC = TensorSpec((2, 2), "float32")
_LOOP = Loop(emit=(0,))
_CALLS = 16
_ANSWERS: tuple[Callable[[Feed], tuple[int, bytes, bytes | None]], ...] = (
    lambda feed: (Kind.VALUE, messages.put_result(_SPEC, bytes(16)), None),
    lambda feed: (
        Kind.VALUE,
        messages.put_result(TensorSpec((feed.number() % 4096,), "uint8")),
        bytes(feed.number() % 4096),
    ),
    lambda feed: (Kind.VALUE, messages.put_result(TensorSpec((feed.number(), feed.number()), "float32")), feed.some()),
    lambda feed: (Kind.SPEC, messages.put_struct(_SPEC), None),
    lambda feed: (Kind.DONE, b"", None),
    lambda feed: (Kind.STATE, feed.some(), None),
    lambda feed: (Kind.COUNTERS, messages.put_struct({"values": feed.number()}), None),
    lambda feed: (Kind.PROFILED, profiles.put_rows([]), None),
    lambda feed: (Kind.INLET_OPEN, channels.put(channels.Target(token="0" * 32)), None),
    lambda feed: (Kind.LOOPED, loops.put_answer(feed.byte() % 8, (bytes(4),)), None),
    lambda feed: (Kind.HELD, messages.put_held(feed.number(), direct=feed.byte() > 127), None),
    lambda feed: (Kind.MARKED, messages.HANDLE.pack(feed.number()), None),
    lambda feed: (Kind.ERROR, messages.put_error(ConnectionLost("so it says")), None),
    lambda feed: (Kind.BYE, messages.put_error(GenieError("enough")), None),
    lambda feed: (Kind.WAIT, b"", None),
    lambda feed: (feed.byte(), feed.some(), None),
    lambda feed: (feed.byte(), feed.some(), feed.some()),
)


class Node:
    """The other end of a connection: what it says is read from the feed when the client listens."""

    peer = "memory:hostile"

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._seq = 0

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        if self._feed.byte() > 250:
            raise ConnectionLost("the link broke", where=self.peer)
        self._seq = frames.sequence(header)

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        feed = self._feed
        first = feed.byte()
        if not feed or first > 250:
            raise ConnectionLost("the link broke", where=self.peer)
        if first > 245:
            raise DeadlineExceeded("nothing came", where=self.peer)
        seq = self._seq if first < 224 else feed.number() & 0xFFFFFFFF
        kind, payload, data = _ANSWERS[first % len(_ANSWERS)](feed)
        header = frames.one(seq, kind & 0xFF, payload, None if data is None else len(data))
        if data is None:
            return Message(header)
        targets = [memoryview(target).cast("B") for target in allocate(header, [len(data)])]
        check([len(target) for target in targets] == [len(data)], "memory of another size than is received into it")
        targets[0][:] = data
        return Message(header, targets)

    def close(self) -> None:
        """It does not care."""


def one(data: bytes) -> None:
    """The first byte says whether the client greets, has a session, or one that it comes back to."""
    feed = Feed(data)
    way = feed.byte() % 4
    if way == 0:
        _greet(feed)
        return
    dialogue = Dialogue(client=True)
    dialogue.say(Kind.HELLO)
    dialogue.next_seq()
    dialogue.hear(Kind.WELCOME)
    with _impatient():
        connection = Rejoining(Node(feed), _reunion(feed)) if way == 3 else Node(feed)
        session = RemoteSession(connection, dialogue, _HERE, LIMITS, "hostile:1", 0.01)
        out = memoryview(bytearray(16))
        for _ in range(_CALLS):
            if not feed:
                break
            _call(session, feed.byte(), out)
        _tried(session.close)
        check(session.closed, "a closed session says it is open")


def _greet(feed: Feed) -> None:
    ticket = Ticket(bytes(16), bytes(32)) if feed.byte() < 64 else None
    greeted = Greeter(feed)
    met: list[Met] = []
    _tried(lambda: met.append(meet(greeted, "hostile:1", 0, 0.01, ticket=ticket)))
    check(not (met and ticket), "a node without the ticket's key was believed")


class Greeter(Node):
    """A transport to a node, and the connection."""

    name = "hostile"

    def connect(self, address: str, timeout: float) -> Node:
        return self

    def listen(self, address: str) -> NoReturn:
        raise Finding("a client listens")

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        feed = self._feed
        if not feed:
            raise ConnectionLost("the link broke", where=self.peer)
        choice = feed.byte()
        if choice < 128:
            records = frames.record(Kind.WELCOME, feed.some())
        elif choice < 192:
            records = frames.record(Kind.WAIT)
        else:
            return super().receive(allocate, timeout)
        if choice % 2:
            return Message(frames.message(0, 2, records + frames.record(Kind.PROOF, feed.some())))
        return Message(frames.message(0, 1, records))


def _reunion(feed: Feed) -> Reunion:
    def again(address: str, timeout: float, back: Back) -> Met:
        choice = feed.byte()
        if choice > 200 or not feed:
            raise ConnectionLost("nobody there", where=address)
        standing = None if choice > 190 else Standing(
            taken=back.sent + choice % 4 - 2 if choice < 128 else feed.number() & 0xFFFFFFFF,
            told=back.heard + choice % 3 if choice < 128 else feed.number() & (1 << 63) - 1,
            again=choice % 3 if choice < 160 else feed.number() & 0xFFFF,
        )  # fmt: skip
        return Met(Node(feed), Dialogue(client=True), Welcome(major=PROTOCOL[0], minor=PROTOCOL[1], standing=standing))

    return Reunion(
        meet=again, addresses=("hostile:1",), session="s", key="k", lease=0.005, heartbeat=0.001, connect_timeout=0.01
    )


def _call(session: RemoteSession, choice: int, out: memoryview) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: session.fetch(1),
        lambda: session.fetch(2, out),
        lambda: session.describe(1),
        session.synchronize,
        session.stats,
        session.profile,
        lambda: session.generator_state(0),
        lambda: session.inlet("peer"),
        lambda: session.upload(3, TensorSpec((1 << 14,), "uint8"), bytes(1 << 14), shared=True),
        lambda: session.upload(4, TensorSpec((1 << 16,), "uint8"), bytes(1 << 16)),
        lambda: _expected(session),
        lambda: session.free([1, 2]),
        lambda: list(session.loop(_load(session), b"\x00", _LOOP, 3)),
        lambda: session.execute(_load(session), b"\x00"),
    )
    _tried(calls[choice % len(calls)])


def _expected(session: RemoteSession) -> None:
    session.expect(5, 16)
    session.fetch(5)


def _load(session: RemoteSession) -> int:
    return session.load(codec.decode_plan(library()[0][0]))


def _tried(call: Callable[[], object]) -> None:
    try:
        call()
    except GenieError as error:
        check(type(error).__module__ == "genie.errors" and bool(error.message), f"a client was told {error!r}")


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """No pauses between attempts to come back."""
    with mock.patch.object(rejoining, "pauses", side_effect=lambda: iter([0.0] * 1000)):
        yield


def seeds() -> Iterator[bytes]:
    welcome = messages.put_struct(Welcome(major=PROTOCOL[0], minor=PROTOCOL[1], session="s", devices=(_HERE,), key="k"))
    for ticket in (0, 255):
        yield bytes((0, ticket, 0, 0)) + fed(welcome)
        yield bytes((0, ticket, 0, 130, 1)) + fed(welcome) + fed(bytes(48))
        yield bytes((0, ticket, 0, 200, 12, 0, 0))
    pairs = (
        (0, 0),
        (1, 0),
        (2, 3),
        (3, 4),
        (4, 6),
        (5, 7),
        (6, 5),
        (7, 8),
        (8, 10),
        (10, 0),
        (12, 9),
        (3, 12),
        (3, 13),
        (3, 15),
    )
    for way in (1, 3):
        for call, answer in pairs:
            yield bytes((way, call, 0, answer, 1, 0, 0, 0, 3, 0, 4, 0, 0))
        yield bytes((way, 3, 0, 255, 4, 3, 0, 4, 3, 0, 4, 1, 1))
        yield bytes((way, 3, 0, 250, 3, 0, 4, 0, 4, 4))
        yield bytes((way, 1, 255, 4, 3, 0, 4, 0, 0))


TARGET = Target(
    name="client",
    one=one,
    seeds=seeds,
    modules=(
        "genie.remote.client.conversation",
        "genie.remote.client.session",
        "genie.remote.client.rejoining",
        "genie.remote.client.offers",
        "genie.remote.client.expected",
        "genie.remote.greeting",
        "genie.remote.client.loops",
        "genie.remote.kept",
    ),
    bytes_per_byte=1 << 9,
    bytes_at_least=4 << 20,
    seconds=2.0,
    largest=1024,
    share=2.0,
)
