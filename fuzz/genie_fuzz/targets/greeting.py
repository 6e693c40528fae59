"""How strangers greet a node that wants tickets: nobody gets a session but who has one that fits."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from genie.errors import ProtocolError
from genie.remote.greeting import greeting
from genie.security import Guard, Identity, Scope, Ticket, TokenFile
from genie.security.tickets import prove_hello
from genie.wire import PROTOCOL, Kind, frames, messages
from genie.wire.messages import Back, Hello
from genie_fuzz.harness import Target, check, refuses
from genie_fuzz.nodes import Bench, once

_NONE, _RIGHT, _WRONG_KEY, _OTHER_GREETING, _OTHER_DEVICE, _TWICE, _SHORT, _RAW = range(8)
_ENTRY = {"name": "alice", "sha256": "0" * 64, "scopes": ["use"]}


def _make() -> Bench:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"tokens": [_ENTRY]}, file)
        file.flush()
        bench = Bench(guard=Guard(TokenFile(Path(file.name))), lease_seconds=0.001)
    return bench


_bench = once(_make)
_ALICE = Identity(name="alice", scopes=frozenset({Scope.USE}), digest="0" * 64)


def one(data: bytes) -> None:
    """The first byte says what is wrong with the ticket, the rest is HELLO, or with the last choice any header."""
    if not data:
        return
    bench, way, said = _bench(), data[0] % 8, data[1:]
    if way == _RAW:
        bench.serve([(said, None)])
        return
    # Without a number there is no device that a ticket could be for.
    hello = refuses((ProtocolError,), lambda: messages.get_hello(said))
    device = hello.device if isinstance(hello, Hello) else 0
    ticket = bench.server.guard.ticket(_ALICE, device + (way == _OTHER_DEVICE))
    shown = Ticket(ticket.id, bytes(32)) if way == _WRONG_KEY else ticket
    proof = ticket.id + prove_hello(shown, said + b"!" if way == _OTHER_GREETING else said)
    if way == _SHORT:
        proof = proof[: len(said) % len(proof)]
    told = bench.serve([(greeting(0, Kind.HELLO, said, None if way == _NONE else proof), None)]).told
    if way == _TWICE:
        told = bench.serve([(greeting(0, Kind.HELLO, said, proof), None)]).told
    for header, _ in told:
        kind, body = frames.split(header)[1][0]
        if kind == Kind.WELCOME and way not in (_RIGHT,):
            welcome = messages.get_welcome(body)
            check(not welcome.session and not welcome.devices, f"who has no ticket was told {welcome}")
        elif kind == Kind.ERROR:
            messages.get_error(body, "node")
    bench.server.guard._tickets._given.clear()


def seeds() -> Iterator[bytes]:
    hello = Hello(major=PROTOCOL[0], minor=PROTOCOL[1], genie="0.1.0", device=0, host="h", client="c")
    back = Back(session="a-1", key="0" * 32, heard=0, sent=1)
    for way in range(_RAW):
        yield bytes((way,)) + messages.put_struct(hello)
    for other in (
        Hello(major=PROTOCOL[0], minor=PROTOCOL[1]),
        Hello(major=PROTOCOL[0] + 1, minor=0, device=0),
        Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=0, resumes=True),
        Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=3),
        Hello(major=PROTOCOL[0], minor=PROTOCOL[1], channel="0" * 32),
        Hello(major=PROTOCOL[0], minor=PROTOCOL[1], back=back),
        Hello(major=PROTOCOL[0], minor=PROTOCOL[1], channel="0" * 32, back=back),
    ):
        yield bytes((_NONE,)) + messages.put_struct(other)
        yield bytes((_RIGHT,)) + messages.put_struct(other)
    yield bytes((_RAW,)) + frames.one(0, Kind.BYE)
    yield bytes((_RAW,)) + frames.one(0, Kind.HELLO, messages.put_struct(hello), 4)


TARGET = Target(
    name="greeting",
    one=one,
    seeds=seeds,
    modules=("genie.remote.node.server", "genie.remote.greeting", "genie.security.guard", "genie.security.tickets"),
    bytes_per_byte=1 << 9,
    bytes_at_least=1 << 20,
    seconds=2.0,
    msgpack_at=1,
    largest=2048,
)
