"""What PROFILE and PROFILED carry: how long operators took."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from genie.errors import ProtocolError
from genie.timing import MOST_ROWS, Timing, fault
from genie.wire.frames import Buffer

_SHARE: Final = struct.Struct("<d")
MOST_BYTES: Final = 1 << 19  # of rows: they travel in a header
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(list[Timing])


def put_share(share: float | None) -> bytes:
    """PROFILE: the share of the time that timing may take from now on, or nothing."""
    return b"" if share is None else _SHARE.pack(share)


def get_share(data: Buffer) -> float | None:
    if not len(data):
        return None
    if len(data) != _SHARE.size:
        raise ProtocolError(f"a PROFILE record has {len(data)} bytes instead of 0 or {_SHARE.size}")
    share: float = _SHARE.unpack(data)[0]
    if not 0 <= share <= 1:
        raise ProtocolError(f"timing takes a share of the time from 0 to 1, not {share!r}")
    return share


def put_rows(rows: Sequence[Timing]) -> bytes:
    """PROFILED: as many rows as there is room for, those counted most first."""
    ordered = sorted(rows, key=lambda row: row.count, reverse=True)[:MOST_ROWS]
    packed = _encode(ordered)
    while len(packed) > MOST_BYTES:
        ordered = ordered[: len(ordered) * MOST_BYTES // len(packed) * 9 // 10]
        packed = _encode(ordered)
    return packed


def get_rows(data: Buffer) -> tuple[Timing, ...]:
    """The rows of a PROFILED, each of them checked."""
    if len(data) > 2 * MOST_BYTES:
        raise ProtocolError(f"{len(data)} bytes of timings")
    try:
        rows = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the peer sent malformed timings: {error}") from error
    if len(rows) > MOST_ROWS:
        raise ProtocolError(f"{len(rows)} timings are more than {MOST_ROWS}")
    for row in rows:
        if wrong := fault(row):
            raise ProtocolError(f"the peer sent an impossible timing: {wrong}")
    return tuple(rows)
