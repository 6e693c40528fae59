"""TRACE: which trace of the client's the records after it belong to.

The payload is a W3C ``traceparent``, or nothing: they belong to none. Only nodes of minor 1 and later are sent it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from genie.errors import ProtocolError
from genie.wire.frames import Buffer

MINOR: Final = 1  # of the first version that knows it
LONGEST: Final = 128  # later versions of the format may add to it

# https://www.w3.org/TR/trace-context/#traceparent-header
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Parent(NamedTuple):
    """The span that spans of the node's belong to."""

    trace: int
    span: int
    sampled: bool


def put(parent: Parent | None) -> bytes:
    if parent is None:
        return b""
    return f"00-{parent.trace:032x}-{parent.span:016x}-{parent.sampled:02x}".encode()


def get(data: Buffer) -> Parent | None:
    """``None`` also for what is no valid traceparent: the standard has that ignored. Raises
    :class:`ProtocolError` for one that is too long."""
    if len(data) > LONGEST:
        raise ProtocolError(f"a TRACE of {len(data)} bytes; the limit is {LONGEST}")
    match = _FORM.fullmatch(bytes(data).decode("ascii", "replace"))
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    trace, span = int(match[2], 16), int(match[3], 16)
    return Parent(trace, span, bool(int(match[4], 16) & 1)) if trace and span else None
