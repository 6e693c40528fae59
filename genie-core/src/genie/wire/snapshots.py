"""What SNAPSHOT, READ_MEMORY, SEND_MEMORY and RESTORE carry, and the state itself, which travels as a value's bytes."""

from __future__ import annotations

import struct
from typing import Final, TypeVar

import msgspec

from genie.errors import LimitExceeded, ProtocolError
from genie.snapshots import LARGEST, Snapshot, fault
from genie.wire.frames import Buffer

_T = TypeVar("_T")

MINOR: Final = 1  # of the first version that knows the records
MOST_BYTES: Final = 32 << 20  # of a state: decoded it takes several times as many
_READ: Final = struct.Struct("<QQQQ")
_SEND: Final = struct.Struct("<QQQ")
ALL: Final = (1 << 64) - 1

_encode = msgspec.msgpack.Encoder().encode


class Restoration(msgspec.Struct, frozen=True, array_like=True):
    """RESTORE: the state, and per memory the value that has its bytes."""

    snapshot: Snapshot
    staged: tuple[tuple[int, int], ...]


_snapshot_decoder = msgspec.msgpack.Decoder(Snapshot)
_restoration_decoder = msgspec.msgpack.Decoder(Restoration)


def put_snapshot(snapshot: Snapshot) -> bytes:
    return _encode(snapshot)


def get_snapshot(data: Buffer) -> Snapshot:
    snapshot = _decoded(_snapshot_decoder, data)
    _check(snapshot)
    return snapshot


def put_restoration(restoration: Restoration) -> bytes:
    return _encode(restoration)


def get_restoration(data: Buffer) -> Restoration:
    restoration = _decoded(_restoration_decoder, data)
    _check(restoration.snapshot)
    for number in (number for pair in restoration.staged for number in pair):
        if not 0 < number <= LARGEST:
            raise ProtocolError(f"{number} is no memory or handle")
    return restoration


def _decoded(decoder: msgspec.msgpack.Decoder[_T], data: Buffer) -> _T:
    if len(data) > MOST_BYTES:
        raise LimitExceeded(f"a snapshot of {len(data)} bytes; the limit is {MOST_BYTES}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the peer sent a malformed snapshot: {error}") from error


def _check(snapshot: Snapshot) -> None:
    if wrong := fault(snapshot):
        raise ProtocolError(f"the peer sent an impossible snapshot: {wrong}")


def put_read(id: int, version: int, offset: int, size: int | None) -> bytes:
    """READ_MEMORY: version 0 is any, size ``ALL`` what is left."""
    return _READ.pack(id, version, offset, ALL if size is None else size)


def get_read(data: memoryview) -> tuple[int, int, int, int | None]:
    if len(data) != _READ.size:
        raise ProtocolError(f"a READ_MEMORY record has {len(data)} bytes instead of {_READ.size}")
    id, version, offset, size = _READ.unpack(data)
    _bounded("READ_MEMORY", id, version, offset, 0 if size == ALL else size)
    return id, version, offset, None if size == ALL else size


def put_send(outlet: int, id: int, version: int) -> bytes:
    return _SEND.pack(outlet, id, version)


def get_send(data: memoryview) -> tuple[int, int, int]:
    if len(data) != _SEND.size:
        raise ProtocolError(f"a SEND_MEMORY record has {len(data)} bytes instead of {_SEND.size}")
    outlet, id, version = _SEND.unpack(data)
    _bounded("SEND_MEMORY", id, version)
    return outlet, id, version


def _bounded(what: str, *numbers: int) -> None:
    if any(number > LARGEST for number in numbers):
        raise ProtocolError(f"a {what} record has a number of more than 63 bits")
