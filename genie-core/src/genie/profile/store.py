"""Profiles as files: one per device, written whole or not at all, verified when read.

A file is a header of 40 bytes and a msgpack body::

    "GENIEPRF" | major: u8 | minor: u8 | 6 zero bytes | body length: u64 little-endian | blake2b-128 of the body

A reader takes newer minors, whose additions it ignores, and no other major. The hash finds accidents, not enemies.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from math import isfinite
from pathlib import Path

import msgspec

from genie.codec import write_whole
from genie.errors import CodecError, VersionMismatch
from genie.profile.table import MOST_ROWS
from genie.schedule.cost import Calibration
from genie.schedule.links import Reach
from genie.timing import Timing, fault

try:
    import fcntl
except ImportError:  # no such locks here: the last of two writers wins
    fcntl = None  # type: ignore[assignment]

MAGIC = b"GENIEPRF"
MAJOR = 1
MINOR = 0
MAX_BYTES = 1 << 24
SUFFIX = ".profile"

_HEADER = struct.Struct("<8sBB6xQ16s")
_MAX_KEY = 1 << 10
_MAX_CLASSES = 1 << 10
UNREADABLE = (CodecError, VersionMismatch)  # what :func:`read` raises
_HINT = "`genie profile clear` removes it"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one device: ``key`` is :func:`genie.profile.device_key`'s; times are Unix time, 0 for never."""

    key: str
    rows: tuple[Timing, ...] = ()
    calibration: Calibration | None = None
    calibrated: float = 0.0
    reach: Reach | None = None
    address: str = ""  # of the node whose link ``reach`` is


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def default_directory(environ: Mapping[str, str] | None = None) -> Path:
    """``$XDG_DATA_HOME/genie``, by default ``~/.local/share/genie``."""
    base = (os.environ if environ is None else environ).get("XDG_DATA_HOME", "")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "share") / "genie"


def encode(record: Record) -> bytes:
    body = _encoder.encode(record)
    if len(body) > MAX_BYTES:
        raise CodecError(f"a profile of {len(body)} bytes is larger than {MAX_BYTES}")
    return _HEADER.pack(MAGIC, MAJOR, MINOR, len(body), _hash(body)) + body


def decode(data: bytes, where: str = "") -> Record:
    """Raises :class:`CodecError` or :class:`VersionMismatch`."""
    if len(data) < _HEADER.size or data[:8] != MAGIC:
        raise CodecError("this is no profile of Genie", where=where, hint=_HINT)
    _, major, minor, length, digest = _HEADER.unpack_from(data)
    if major != MAJOR:
        raise VersionMismatch(f"a profile of version {major}.{minor}; this is {MAJOR}.{MINOR}", where=where, hint=_HINT)
    body = data[_HEADER.size :]
    if length != len(body) or length > MAX_BYTES:
        raise CodecError(f"the profile has {len(body)} bytes of {length}", where=where, hint=_HINT)
    if _hash(body) != digest:
        raise CodecError("the profile does not match its hash", where=where, hint=_HINT)
    try:
        record = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError, MemoryError) as error:
        raise CodecError(f"the profile does not decode: {error}", where=where, hint=_HINT) from error
    if wrong := _fault(record):
        raise CodecError(f"the profile is impossible: {wrong}", where=where, hint=_HINT)
    return record


def _fault(record: Record) -> str:
    if not record.key or len(record.key) > _MAX_KEY or not record.key.isprintable():
        return "it names no device"
    if len(record.address) > _MAX_KEY or not record.address.isprintable():
        return "its node's address is none"
    if len(record.rows) > MOST_ROWS:
        return f"it has {len(record.rows)} rows"
    if not (isfinite(record.calibrated) and record.calibrated >= 0):
        return "its time is none"
    if record.calibration is not None and len(record.calibration.classes) > _MAX_CLASSES:
        return "it has too many classes"
    return next((f"{row.target[:64]!r}: {wrong}" for row in record.rows if (wrong := fault(row))), "")


def _hash(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


def path_of(directory: Path, key: str) -> Path:
    """Where a device's profile lies: the key may hold any character."""
    return directory / f"{blake2b(key.encode(), digest_size=8).hexdigest()}{SUFFIX}"


def paths(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else []


def read(path: Path) -> Record:
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER.size + MAX_BYTES + 1)
    except OSError as error:
        raise CodecError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    record = decode(data, str(path))
    if path_of(path.parent, record.key) != path:
        raise CodecError(f"the profile is of {record.key!r}, whose file has another name", where=str(path), hint=_HINT)
    return record


def write(directory: Path, record: Record) -> Path:
    """Raises :class:`CodecError`."""
    path = path_of(directory, record.key)
    data = encode(record)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CodecError(f"cannot write: {error.strerror or error}", where=str(path)) from error
    write_whole(path, data)
    return path


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Alone among the processes that write profiles there: what one adds, the next does not lose."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("w")
    except OSError as error:
        raise CodecError(f"cannot write: {error.strerror or error}", where=str(directory)) from error
    with file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
