"""What the records about channels carry: the ways by which nodes send each other values.

A channel leads from a session on one node to a session on another. The client has the receiver open an *inlet*, which
names a token, and tells the sender of it, which connects an *outlet*: HELLO with the token, WELCOME, and from then on
VALUE and ERROR records, one message each, in one direction. SEND puts a value on its way; RECEIVE makes the n-th that
was sent a value of the receiving session, whose work waits for it.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from genie.errors import ProtocolError
from genie.wire.frames import Buffer
from genie.wire.messages import LARGEST_HANDLE, get_pair, put_pair

_T = TypeVar("_T")

_MOST_TEXT = 1 << 10


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """INLET: ``number`` is the client's choice, ``source`` names the sender, for errors."""

    number: int
    source: str = ""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """INLET_OPEN, and within OUTLET: where an inlet is. ``local_address`` serves senders on the host ``host``.

    ``address`` is as the client knows the node, which fills it in.
    """

    token: str
    host: str = ""
    local_address: str = ""
    address: str = ""


class Outlet(msgspec.Struct, frozen=True, kw_only=True):
    """OUTLET: from now on ``number`` leads to ``target``."""

    number: int
    target: Target


_encode = msgspec.msgpack.Encoder().encode
_opening_decoder = msgspec.msgpack.Decoder(Opening)
_target_decoder = msgspec.msgpack.Decoder(Target)
_outlet_decoder = msgspec.msgpack.Decoder(Outlet)

_RECEIVE = struct.Struct("<QQQ")


def put(value: Opening | Target | Outlet) -> bytes:
    return _encode(value)


def put_send(outlet: int, handle: int) -> bytes:
    return put_pair(outlet, handle)


def get_send(data: memoryview) -> tuple[int, int]:
    outlet, handle = get_pair(data, "SEND")
    return outlet, _handle(handle)


def put_receive(inlet: int, position: int, handle: int) -> bytes:
    """``position`` counts what was sent through the channel, from 0."""
    return _RECEIVE.pack(inlet, position, handle)


def get_receive(data: memoryview) -> tuple[int, int, int]:
    if len(data) != _RECEIVE.size:
        raise ProtocolError(f"a RECEIVE record has {len(data)} bytes instead of {_RECEIVE.size}")
    inlet, position, handle = _RECEIVE.unpack(data)
    return inlet, position, _handle(handle)


def _handle(handle: int) -> int:
    if not 0 < handle <= LARGEST_HANDLE:
        raise ProtocolError(f"{handle} is no handle")
    return handle


def get_opening(data: Buffer) -> Opening:
    opening = _decoded(_opening_decoder, data, "INLET")
    _check(opening.source)
    return opening


def get_target(data: Buffer) -> Target:
    target = _decoded(_target_decoder, data, "INLET_OPEN")
    _check(target.token, target.host, target.local_address, target.address)
    return target


def get_outlet(data: Buffer) -> Outlet:
    outlet = _decoded(_outlet_decoder, data, "OUTLET")
    _check(outlet.target.token, outlet.target.host, outlet.target.local_address, outlet.target.address)
    return outlet


def _decoded(decoder: msgspec.msgpack.Decoder[_T], data: Buffer, what: str) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the peer sent a malformed {what}: {error}") from error


def _check(*texts: str) -> None:
    if any(len(text) > _MOST_TEXT for text in texts):
        raise ProtocolError("the peer sent a name of impossible length")
