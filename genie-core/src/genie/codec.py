"""Graphs and plans as bytes: bounded, versioned, hashed; verified on the way in and on the way out.

A file or message is a header of 36 bytes and a msgpack body::

    "GENIE" | kind: u8 | major: u8 | minor: u8 | body length: u64 little-endian | reserved: 4 zero bytes | blake2b-128

The hash covers everything before it and the body; it names the content (:func:`digest`) and finds accidents, not
enemies: what decodes is verified. A reader accepts newer minors, whose additions it ignores, and no other major.
"""

from __future__ import annotations

import os
import struct
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import msgspec

from genie import graph as graphs
from genie import plan as plans
from genie.errors import CodecError, VersionMismatch
from genie.graph import Graph
from genie.graph.collecting import paused_gc
from genie.plan import ExecutionPlan

MAGIC = b"GENIE"
MAJOR = 1
MINOR = 0
MAX_BYTES = 1 << 27

_PREFIX = struct.Struct("<5sBBBQ4x")
_HASH = 16
HEADER = _PREFIX.size + _HASH
_KINDS = {1: "graph", 2: "plan"}
_GRAPH, _PLAN = 1, 2

_encoder = msgspec.msgpack.Encoder()
_graph_decoder = msgspec.msgpack.Decoder(Graph)
_plan_decoder = msgspec.msgpack.Decoder(ExecutionPlan)


class Header(NamedTuple):
    kind: str
    major: int
    minor: int
    length: int
    digest: str


def verify(value: Graph | ExecutionPlan) -> None:
    """Check every rule. Raises ``GraphError`` or ``PlanError`` naming the first that is broken, and where."""
    if isinstance(value, Graph):
        graphs.verify(value)
    else:
        plans.verify(value)


def encode(value: Graph | ExecutionPlan) -> bytes:
    """Verify and encode. Raises ``GraphError``, ``PlanError`` or :class:`CodecError`."""
    if isinstance(value, Graph):
        kind = _GRAPH
        graphs.verify(value)
    else:
        kind = _PLAN
        plans.verify(value)
    with paused_gc(len(value.steps if isinstance(value, Graph) else value.decisions)):
        try:
            body = _encoder.encode(value)
        except (TypeError, OverflowError, ValueError, RecursionError) as error:
            raise CodecError(f"this {_KINDS[kind]} can't be encoded: {error}") from error
    if len(body) > MAX_BYTES:
        raise CodecError(f"a {_KINDS[kind]} of {len(body)} bytes is larger than {MAX_BYTES}")
    prefix = _PREFIX.pack(MAGIC, kind, MAJOR, MINOR, len(body))
    return b"".join((prefix, _hash(prefix, body), body))


def decode(data: bytes | bytearray | memoryview, where: str = "", limit: int = MAX_BYTES) -> Graph | ExecutionPlan:
    """Decode and verify what :func:`encode` made, of up to ``limit`` bytes; ``where`` is named in errors.

    Raises :class:`CodecError`, :class:`VersionMismatch`, ``GraphError`` or ``PlanError``, and nothing else.
    """
    view = memoryview(data)
    if view.nbytes > limit + HEADER:
        raise CodecError(f"{view.nbytes} bytes are more than the {limit} allowed", where=where)
    if not (view.contiguous and view.format == "B"):
        view = memoryview(bytes(view))
    header = read_header(view, where)
    prefix, stored, body = view[: _PREFIX.size], view[_PREFIX.size : HEADER], view[HEADER:]
    if _hash(prefix, body) != stored:
        raise CodecError("the content does not match its hash", where=where, hint="it was damaged: make it again")
    decoder = _graph_decoder if header.kind == "graph" else _plan_decoder
    with paused_gc(len(body) // 64):
        try:
            value: Graph | ExecutionPlan = decoder.decode(body)
        except (msgspec.DecodeError, RecursionError, MemoryError, ValueError, OverflowError) as error:
            raise CodecError(f"this {header.kind} does not decode: {error}", where=where) from error
        if isinstance(value, Graph):
            graphs.verify(value)
        else:
            plans.verify(value)
    return value


def decode_graph(data: bytes | bytearray | memoryview, where: str = "", limit: int = MAX_BYTES) -> Graph:
    value = decode(data, where, limit)
    if not isinstance(value, Graph):
        raise CodecError("this is a plan, not a graph", where=where)
    return value


def decode_plan(data: bytes | bytearray | memoryview, where: str = "", limit: int = MAX_BYTES) -> ExecutionPlan:
    value = decode(data, where, limit)
    if not isinstance(value, ExecutionPlan):
        raise CodecError("this is a graph, not a plan", where=where)
    return value


def read_header(data: bytes | bytearray | memoryview, where: str = "") -> Header:
    """The header, checked; the body is looked at by its length alone."""
    if len(data) < HEADER:
        raise CodecError(f"{len(data)} bytes are too few for a graph or plan", where=where)
    magic, kind, major, minor, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise CodecError("this is no graph or plan of Genie", where=where)
    if major != MAJOR:
        raise VersionMismatch(
            f"format version {major}.{minor}; this Genie reads {MAJOR}.x",
            where=where,
            hint="make the file again, or use the same Genie release on both sides",
        )
    if kind not in _KINDS:
        raise CodecError(f"kind {kind} is neither a graph nor a plan", where=where)
    if length > MAX_BYTES:
        raise CodecError(f"a body of {length} bytes is larger than {MAX_BYTES}", where=where)
    if length != len(data) - HEADER:
        raise CodecError(f"{len(data) - HEADER} bytes of body where {length} are announced", where=where)
    return Header(_KINDS[kind], major, minor, length, bytes(data[_PREFIX.size : HEADER]).hex())


def digest(data: bytes | bytearray | memoryview) -> str:
    """The content's name, from the header of encoded bytes: equal for equal content only."""
    return read_header(data).digest


def save(value: Graph | ExecutionPlan, path: str | Path) -> None:
    """Write a file whole or not at all."""
    write_whole(Path(path), encode(value))


def write_whole(path: Path, data: bytes) -> None:
    """A file with these bytes, or none. Raises :class:`CodecError`."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CodecError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def load(path: str | Path) -> Graph | ExecutionPlan:
    """Read and verify a file that :func:`save` wrote."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(HEADER + MAX_BYTES + 1)
    except OSError as error:
        raise CodecError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    return decode(data, where=str(path))


def to_json(value: Graph | ExecutionPlan) -> str:
    """Canonical, indented JSON of the same fields, for people and diffs; nothing reads it back."""
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=1).decode()


def _hash(prefix: bytes | memoryview, body: bytes | memoryview) -> bytes:
    state = blake2b(prefix, digest_size=_HASH)
    state.update(body)
    return state.digest()
