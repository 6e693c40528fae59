"""What SNAPSHOT, READ_MEMORY, SEND_MEMORY and RESTORE carry, and the state itself, which travels as a value's bytes."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from genie.errors import ProtocolError
from genie.snapshots import LARGEST, Snapshot, fault
from genie.wire.frames import Buffer

MINOR: Final = 1  # of the first version that knows the records
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
    try:
        snapshot = _snapshot_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the peer sent a malformed snapshot: {error}") from error
    if wrong := fault(snapshot):
        raise ProtocolError(f"the peer sent an impossible snapshot: {wrong}")
    return snapshot


def put_restoration(restoration: Restoration) -> bytes:
    return _encode(restoration)


def get_restoration(data: Buffer) -> Restoration:
    try:
        restoration = _restoration_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the peer sent a malformed snapshot: {error}") from error
    if wrong := fault(restoration.snapshot):
        raise ProtocolError(f"the peer sent an impossible snapshot: {wrong}")
    for number in (number for pair in restoration.staged for number in pair):
        if not 0 < number <= LARGEST:
            raise ProtocolError(f"{number} is no memory or handle")
    return restoration


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
