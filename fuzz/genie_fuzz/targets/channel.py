"""A node that brings a session another node's values: what comes through a channel, and how it is taken."""

from __future__ import annotations

from collections.abc import Iterator

from genie.device import Device
from genie.errors import GenieError
from genie.graph import TensorSpec
from genie.remote.channels.ends import Channels
from genie.remote.channels.inlets import Inlets
from genie.remote.memory import room
from genie.testing import MemoryTransport
from genie.wire import Kind, frames, messages
from genie_fuzz.feed import Feed, fed
from genie_fuzz.harness import Target, check, refuses
from genie_fuzz.nodes import LIMITS, Script, brief

_HERE = Device(id="cpu:0", type="cpu", memory_gb=1 / 1024, compute_tflops=1)
_TRANSPORT = MemoryTransport(limits=LIMITS)
_SPECS = (TensorSpec((4,), "float32"), TensorSpec((2, 2), "uint8", (1, 2)), TensorSpec((4096,), "uint8"))


def one(data: bytes) -> None:
    """Messages of the sender, then the positions at which they are taken."""
    feed = Feed(data)
    registry = Inlets(LIMITS)
    channels = Channels(registry, _TRANSPORT, _HERE, "node")
    target = channels.open(0, "peer")
    inlet = registry.claim(target.token)
    script = Script([_message(feed, seq) for seq in range(1, 1 + feed.byte() % 12)])
    with brief():
        inlet.pump(script)
        check(script.closed, "the sender's connection was not closed")
        taken = 0
        while feed and taken < 12:
            taken += 1
            refuses((GenieError,), lambda: _take(inlet, feed.byte() % 8))
        channels.close()
    left = sum(max(reserved, 0) for _, reserved in inlet._arrived.values())
    check(inlet._arrivals.bytes == left, f"{inlet._arrivals.bytes} bytes are reserved for {left} that wait")
    check(
        inlet._arrivals.values == sum(reserved >= 0 for _, reserved in inlet._arrived.values()),
        "values are counted wrongly",
    )


def _take(inlet: object, position: int) -> None:
    inlet.check(position)  # type: ignore[attr-defined]
    value = inlet.take(position, lambda spec, size: room(size), lambda: True)  # type: ignore[attr-defined]
    check(messages.spec_bytes(value.spec, LIMITS) == len(value.data), "a value of another size than it says")


def _message(feed: Feed, due: int) -> tuple[bytes, bytes | None]:
    choice = feed.byte()
    seq = due if choice < 240 else feed.number() & 0xFFFFFFFF
    if choice % 8 < 4:
        spec = feed.choice(_SPECS)
        size = messages.spec_bytes(spec, LIMITS)
        if choice % 8 < 2:
            return frames.one(seq, Kind.VALUE, messages.put_result(spec, bytes(size))), None
        return frames.one(seq, Kind.VALUE, messages.put_result(spec), size), bytes(size)
    if choice % 8 == 4:
        return frames.one(seq, Kind.ERROR, messages.put_error(GenieError("it failed there"))), None
    if choice % 8 == 5:
        shape = tuple(feed.number() for _ in range(feed.byte() % 4))
        return frames.one(
            seq, Kind.VALUE, messages.put_result(TensorSpec(shape, "uint8")), feed.number() & 0x1FFFF
        ), b""
    if choice % 8 == 6:
        return frames.one(seq, feed.byte(), feed.some()), None
    return feed.some(), feed.some()


def seeds() -> Iterator[bytes]:
    yield bytes((4, 0, 0, 2, 2, 4, 1, 1, 0, 1, 2, 3))
    yield bytes((3, 2, 0, 2, 1, 3, 2, 2, 0, 1, 4))
    yield bytes((2, 5, 1, 9, 9, 6, 49)) + fed(b"\x05") + bytes((0, 1))
    yield bytes((2, 240, 0, 9, 7)) + fed(b"\xa7G\x01\0") + fed(b"")


TARGET = Target(
    name="channel",
    one=one,
    seeds=seeds,
    modules=("genie.remote.channels.inlets", "genie.remote.channels.ends", "genie.wire.messages"),
    bytes_per_byte=1 << 9,
    bytes_at_least=1 << 20,
    largest=512,
)
