"""What a node asks of the process that compiles, and what that answers: frames of msgpack on two pipes."""

from __future__ import annotations

import struct
from typing import IO, TypeAlias

import msgspec

from genie.graph import Abstract

LENGTH = struct.Struct("<Q")
MOST_BYTES = 1 << 30  # of an answer: what a program compiles to


class Request(msgspec.Struct, frozen=True, array_like=True):
    """``data`` is a StableHLO portable artifact whose entry takes ``operands`` and gives ``results``."""

    data: bytes
    operands: tuple[Abstract, ...]
    results: tuple[Abstract, ...]
    bounded: bool


class Made(msgspec.Struct, frozen=True, array_like=True, tag="made"):
    """A program as XLA stores it; a run of it allocates ``needs`` bytes, compiling took ``seconds``."""

    executable: bytes
    needs: int
    seconds: float


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Why there is no program."""

    reason: str


Answer: TypeAlias = Made | Refused


def framed(value: Request | Made | Refused) -> bytes:
    body = msgspec.msgpack.encode(value)
    return LENGTH.pack(len(body)) + body


def write(file: IO[bytes], value: Request | Made | Refused) -> None:
    file.write(framed(value))
    file.flush()
