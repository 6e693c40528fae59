"""A client's whole conversation with a node, in records that are mostly well-formed: what they say is the fuzzer's."""

from __future__ import annotations

from collections.abc import Iterator

from genie.bindings import parameters
from genie.errors import GenieError
from genie.graph import TensorSpec
from genie.loops import Loop
from genie.wire import PROTOCOL, Kind, Limits, channels, frames, loops, messages, profiles
from genie.wire.messages import Hello
from genie_fuzz.feed import Feed, fed
from genie_fuzz.harness import Target
from genie_fuzz.nodes import DIGEST, WEIGHT, Bench, once
from genie_fuzz.plans import library, words

_bench = once(Bench)
_MOST = 48  # messages
_DTYPES = ("float32", "int64", "uint8", "bool", "bfloat16", "complex64", "float8_e4m3fn", "int3")
_KINDS = (
    *(Kind.UPLOAD, Kind.EXECUTE, Kind.LOAD_PLAN, Kind.FETCH, Kind.FREE, Kind.DESCRIBE, Kind.SEED, Kind.LOOP),
    *(Kind.GENERATOR_STATE, Kind.SET_GENERATOR_STATE, Kind.UPLOAD_BEGIN, Kind.UPLOAD_CHUNK, Kind.UPLOAD_COMMIT),
    *(Kind.SYNC, Kind.STATS, Kind.PROFILE, Kind.MARK, Kind.HEARD, Kind.TRACE, Kind.INLET, Kind.RECEIVE, Kind.SEND),
    *(Kind.OUTLET, Kind.BYE),
)
_ANY = len(_KINDS)  # a record of any kind, with any payload
_LONE = (Kind.UPLOAD, Kind.UPLOAD_CHUNK, Kind.LOAD_PLAN)  # whose bulk may follow the header


class Talk:
    """What the fuzzer's bytes say, as messages."""

    def __init__(self, data: bytes) -> None:
        self.feed = Feed(data)
        self.plans: list[int] = []  # numbers in the library

    def messages(self) -> Iterator[tuple[bytes, bytes | None]]:
        yield (
            frames.one(0, Kind.HELLO, messages.put_struct(Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=0))),
            None,
        )
        for seq in range(1, _MOST):
            if not self.feed:
                return
            yield self._message(seq)

    def _message(self, seq: int) -> tuple[bytes, bytes | None]:
        shape = self.feed.byte()
        if shape == 255:
            return self.feed.some(), self.feed.some()
        if shape == 254:
            seq = self.feed.number() & 0xFFFFFFFF
        if shape >= 224:
            alone = self.feed.choice(_LONE)
            payload, data = self._bulk(alone)
            return frames.one(seq, alone, payload, len(data)), data
        records = []
        for _ in range(1 + shape % 3):
            number = self.feed.byte() % (_ANY + 1)
            kind = self.feed.byte() if number == _ANY else int(_KINDS[number])
            payload = self.feed.some() if number == _ANY or self.feed.byte() > 250 else self._payload(kind)
            records.append(frames.record(kind, payload))
        return frames.message(seq, len(records), b"".join(records)), None

    def _bulk(self, kind: Kind) -> tuple[bytes, bytes]:
        if kind == Kind.UPLOAD:
            spec = self._spec()
            return messages.put_value(self._handle(), spec), bytes(_size(spec))
        if kind == Kind.UPLOAD_CHUNK:
            data = WEIGHT[: self.feed.number() & 0xFFFF]
            return messages.put_chunk(self._digest(), self.feed.number() & (1 << 63) - 1), data
        return self._plan()

    def _payload(self, kind: int) -> bytes:
        feed = self.feed
        match kind:
            case Kind.UPLOAD:
                spec = self._spec()
                size = _size(spec)
                return messages.put_value(self._handle(), spec, feed.take(size).ljust(size, b"\1"))
            case Kind.EXECUTE:
                number = feed.byte() % 4
                return messages.put_varint(number) + self._bindings(number)
            case Kind.LOAD_PLAN:
                head, data = self._plan()
                return head + data
            case Kind.FREE:
                return messages.put_handles([self._handle() & (1 << 63) - 1 or 1 for _ in range(feed.byte() % 8)])
            case Kind.FETCH | Kind.SEED:
                return messages.put_pair(self._handle(), messages.ANY_SIZE if feed.byte() < 200 else feed.number())
            case Kind.SEND:
                return messages.put_pair(feed.byte() % 3, self._handle())
            case Kind.DESCRIBE | Kind.GENERATOR_STATE | Kind.HEARD:
                return messages.HANDLE.pack(self._handle())
            case Kind.SET_GENERATOR_STATE:
                length = feed.choice((0, 1, 5056, 5055, 16))
                return (
                    messages.HANDLE.pack(feed.number()) + (feed.some() * (length or 1)).ljust(length, b"\xff")[:length]
                )
            case Kind.UPLOAD_BEGIN:
                return messages.put_chunk(self._digest(), len(WEIGHT) if feed.byte() < 128 else feed.number())
            case Kind.UPLOAD_COMMIT:
                spec = TensorSpec((len(WEIGHT),), "uint8") if feed.byte() < 128 else self._spec()
                return self._digest() + messages.put_value(self._handle(), spec)
            case Kind.LOOP:
                return self._loop()
            case Kind.PROFILE:
                return feed.choice(
                    (b"", profiles.put_share(1.0), profiles.put_share(0.0), profiles.put_share(float("nan")))
                )
            case Kind.TRACE:
                return feed.choice((b"", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01", feed.some()))
            case Kind.INLET:
                return channels.put(channels.Opening(number=feed.byte() % 3, source="peer"))
            case Kind.RECEIVE:
                return channels.put_receive(feed.byte() % 3, feed.number(), self._handle())
            case Kind.OUTLET:
                target = channels.Target(
                    token=feed.choice(("", "0" * 32)), address=feed.choice(("nowhere:1", "", "node:1"))
                )
                return channels.put(channels.Outlet(number=feed.byte() % 3, target=target))
        return b""

    def _handle(self) -> int:
        first = self.feed.byte()
        return first % 16 if first < 224 else self.feed.number()

    def _digest(self) -> bytes:
        return DIGEST if self.feed.byte() < 192 else bytes((self.feed.byte(),)) * 32

    def _spec(self) -> TensorSpec:
        feed = self.feed
        rank = feed.byte()
        rank = rank % 5 if rank < 250 else rank - 186  # up to 69
        shape = tuple(feed.number() if feed.byte() > 240 else feed.byte() % 6 for _ in range(rank))
        stride = tuple(feed.number() % 64 for _ in shape) if feed.byte() > 200 else None
        return TensorSpec(shape, feed.choice(_DTYPES), stride)

    def _plan(self) -> tuple[bytes, bytes]:
        choice = self.feed.byte()
        if choice >= 250:
            return messages.put_varint(self.feed.number() & 0xFFFFFFF), self.feed.some()
        number = choice % len(library())
        self.plans.append(number)
        return messages.put_varint(len(self.plans) - 1), library()[number][0]

    def _bindings(self, plan: int) -> bytes:
        """All words anew, most of them the plan's own parameters; or any bytes."""
        feed = self.feed
        if feed.byte() > 224 or plan >= len(self.plans):
            return feed.some()
        graph = library()[self.plans[plan]][1]
        own = parameters(graph)
        sent = bytearray(messages.put_varint(words(graph) + 1))
        for index in range(words(graph)):
            parameter = index - 1 - len(graph.inputs)
            word = self._handle() if parameter < 0 else own[parameter] if feed.byte() < 128 else feed.number()
            sent += _varint(word)
        return bytes(sent)

    def _loop(self) -> bytes:
        feed = self.feed
        if feed.byte() < 64:
            return loops.put_more(feed.byte())
        loop = Loop(
            carries=tuple((feed.byte() % 3, feed.byte() % 3) for _ in range(feed.byte() % 3)),
            strides=tuple((feed.byte() % 4, feed.byte() - 128) for _ in range(feed.byte() % 2)),
            emit=tuple(feed.byte() % 3 for _ in range(feed.byte() % 3)),
            stop=feed.byte() % 3 - 1,
        )
        number = feed.byte() % 4
        times = feed.byte() if feed.byte() < 224 else feed.number() & 0xFFFFFFFF
        return loops.put_begin(feed.byte() % 32, messages.put_varint(number), loop, times, self._bindings(number))


def _varint(word: int) -> bytes:
    out = bytearray()
    while word > 0x7F:
        out.append(word & 0x7F | 0x80)
        word >>= 7
    return bytes((*out, word))


def _size(spec: TensorSpec) -> int:
    try:
        size = messages.spec_bytes(spec, Limits())
    except GenieError:
        return 3
    return size if size <= 1 << 12 else 5


def one(data: bytes) -> None:
    _bench().serve(list(Talk(data).messages()))


def seeds() -> Iterator[bytes]:
    # In the terms above: shape of the message, number of the kind, no odd payload, then what the payload is made of.
    upload = bytes((0, 0, 0, 1, 0, 4, 0, 0, 3)) + b"\0\0\x80?" * 4
    for number, (_, graph) in enumerate(library()):
        inputs = len(graph.inputs)
        load = bytes((0, 2, 0, number))
        run = bytes((0, 1, 0, 0, 0, 9)) + bytes((3,)) * inputs + bytes(words(graph) - 1 - inputs)
        fetch, describe, free = bytes((0, 3, 0, 9, 0)), bytes((0, 5, 0, 9)), bytes((0, 4, 0, 2, 3, 9))
        yield upload + load + run + fetch + describe + free + bytes((0, 23, 0))
        again = bytes((0, 7, 0, 80, 0, 0, 1, 0, 0, 0, 0, 5, 4, 0, 9)) + run[6:]  # as a loop that emits its output
        yield upload + load + again + bytes((0, 7, 0, 1, 3)) + fetch
    yield bytes((0, 10, 0, 0, 0, 0, 12, 0, 0, 0, 3, 0, 3, 3, 0))  # the shared weight, by its digest
    yield bytes((0, 6, 0, 2, 0, 0, 8, 0, 2, 0, 9, 0, 2, 3)) + fed(b"\xff")  # generators
    yield bytes((0, _ANY, 255)) + fed(b"odd") + bytes((255,)) + fed(b"\xa7G\x01\0") + fed(b"")
    yield bytes((1, 13, 0, 14, 0, 0, 15, 0, 1, 0, 16, 0, 0, 17, 0, 0))
    yield bytes((0, 19, 0, 1, 0, 20, 0, 1, 0, 5)) + bytes((0, 22, 0, 0, 0, 1, 0, 21, 0, 1, 5))
    yield bytes((224, 1, 0, 4, 0, 0, 3, 0, 3, 0, 3, 0))  # bulk


TARGET = Target(
    name="session",
    one=one,
    seeds=seeds,
    modules=(
        "genie.remote.node.session.messages",
        "genie.remote.node.server",
        "genie.remote.node.content_store",
        "genie.remote.node.session.loop",
        "genie.remote.channels.ends",
        "genie.remote.channels.inlets",
        "genie.wire.messages",
        "genie.wire.kinds",
    ),
    bytes_per_byte=1 << 10,
    bytes_at_least=4 << 20,
    seconds=2.0,
    largest=2048,
    share=3.0,
)
