"""What tenants may have: the file that says so, read again when it changes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from genie.errors import ConfigError
from genie.security.files import Watched, read_small

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]{0,63}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?")
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZES = ("memory", "receive", "send", "plan_bytes")
_LEAST_MEMORY = 1 << 20
_LEAST_RATE = 1 << 16

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class Priority(Enum):
    """From the one that goes first to the one that goes last."""

    REALTIME = "realtime"
    INTERACTIVE = "interactive"
    BATCH = "batch"

    @property
    def rank(self) -> int:
        """0 goes first."""
        return _RANKS[self]


_RANKS: Final = {priority: rank for rank, priority in enumerate(Priority)}

# How classes share a device when all of them want all of it: a preference with a bound, so that nobody starves.
SHARES: Final[Mapping[Priority, float]] = {Priority.REALTIME: 16.0, Priority.INTERACTIVE: 4.0, Priority.BATCH: 1.0}


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant may have of a node, all its sessions together; 0 is no limit.

    ``memory`` are bytes on all devices, ``receive`` and ``send`` bytes per second from and to its clients,
    ``in_flight`` messages worked on at a time, ``reserved`` sessions that nobody else gets. ``weight`` is its part of a
    device among the tenants of its priority. ``share_weights``: contents it uploads are others' to use by their digest,
    if those share, too, and theirs are its.
    """

    memory: int = 0
    sessions: int = 0
    in_flight: int = 0
    receive: int = 0
    send: int = 0
    plans: int = 0
    plan_bytes: int = 0
    reserved: int = 0
    weight: float = 1.0
    priority: Priority = Priority.INTERACTIVE
    share_weights: bool = False

    @property
    def paced(self) -> bool:
        """Whether its sessions have to ask before they read and answer."""
        return bool(self.in_flight or self.receive or self.send)


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As written; what is left out is as in the entry for everybody."""

    memory: int | str | None = None
    sessions: _Count | None = None
    in_flight: _Count | None = None
    receive: int | str | None = None
    send: int | str | None = None
    plans: _Count | None = None
    plan_bytes: int | str | None = None
    reserved: _Count | None = None
    weight: Annotated[float, msgspec.Meta(ge=0.01, le=1000)] | None = None
    priority: Priority | None = None
    share_weights: bool | None = None


class _Contents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    default: _Entry = _Entry()
    tenants: dict[str, object] = {}  # each an _Entry: taken one by one, so that an error can say whose is wrong
    model: int | str = 0  # of so many bytes: what every tenant is to have room for


class Tenants(msgspec.Struct, frozen=True, kw_only=True):
    """``default`` is for who has no quota of their own."""

    default: Quota = Quota()
    quotas: dict[str, Quota] = {}

    def of(self, tenant: str) -> Quota:
        return self.quotas.get(tenant, self.default)

    @property
    def reserved(self) -> int:
        return sum(quota.reserved for quota in self.quotas.values())


class TenantsFile:
    """The tenants of ``path``, read again when it has changed. Raises :class:`ConfigError` the first time only; later
    the last good version stays in use, and ``told`` hears why."""

    def __init__(
        self, path: str | Path, told: Callable[[str, str], None] | None = None, *, most_sessions: int = 0
    ) -> None:
        self._path = Path(path)
        self._watched = Watched("tenants", (self._path,), lambda: load(self._path, most_sessions=most_sessions), told)

    def get(self) -> Tenants:
        return self._watched.get()


def load(path: Path, *, most_sessions: int = 0) -> Tenants:
    """Raises :class:`ConfigError` naming the file, the tenant and what is wrong. ``most_sessions`` are the node's."""
    data = read_small(path, "the tenants file", hint="docs/tenancy.md has an example")
    entries: dict[str, _Entry] = {}
    whose = ""
    try:
        contents = msgspec.yaml.decode(data, type=_Contents)
        for name, written in contents.tenants.items():
            whose = f"{name[:64]!r}: "
            entries[name] = msgspec.convert(written, _Entry)
    except Exception as error:  # the reader of YAML lets out whatever its making of a tagged value raises
        text = ", ".join(filter(None, map(str.strip, str(error).splitlines()))) or type(error).__name__
        raise ConfigError(
            f"the tenants file is malformed: {whose}{text}", where=str(path), hint="docs/tenancy.md has an example"
        ) from error
    where = str(path)
    default = _quota(contents.default, Quota(), "default", where)
    if default.reserved:
        raise ConfigError("default: sessions are reserved for a tenant, not for everybody", where=where)
    quotas = {name: _quota(entry, default, name, where) for name, entry in entries.items()}
    for name in quotas:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name[:64]!r} is no name for a tenant", where=where)
    model = _bytes(contents.model, "model", where)
    for name, quota in {"default": default, **quotas}.items():
        if 0 < quota.memory < model:
            raise ConfigError(
                f"{name}: a memory quota of {quota.memory} bytes has no room for the model of {model} bytes",
                where=where,
                hint="raise `memory`, or say a smaller `model`",
            )
    tenants = Tenants(default=default, quotas=quotas)
    if most_sessions and tenants.reserved > most_sessions:
        raise ConfigError(
            f"{tenants.reserved} sessions are reserved of the {most_sessions} that the node has", where=where
        )
    return tenants


def _quota(entry: _Entry, default: Quota, name: str, where: str) -> Quota:
    given: dict[str, Any] = {
        field: value for field in _Entry.__struct_fields__ if (value := getattr(entry, field)) is not None
    }
    for field in _SIZES:
        if field in given:
            given[field] = _bytes(given[field], f"{name}: {field}", where)
    quota = msgspec.structs.replace(default, **given)
    for field, least in (("memory", _LEAST_MEMORY), ("receive", _LEAST_RATE), ("send", _LEAST_RATE)):
        value = getattr(quota, field)
        if 0 < value < least:
            raise ConfigError(f"{name}: {field} is {value}; the least is {least}", where=where, hint="0 is no limit")
    if quota.sessions and quota.reserved > quota.sessions:
        raise ConfigError(f"{name}: {quota.reserved} sessions are reserved of at most {quota.sessions}", where=where)
    return quota


def _bytes(value: int | str, what: str, where: str) -> int:
    """``8GiB`` and ``500 MB``; a number is bytes."""
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        number, power, binary = found.groups()
        size = float(number) * (1024 if binary else 1000) ** _POWERS[power]
        value = int(size) if math.isfinite(size) else value
    if not isinstance(value, int) or not 0 <= value < 1 << 60:
        raise ConfigError(f"{what}: {value!r} is no size", where=where, hint="for example 8GiB, 500MB, or bytes")
    return value


def priority_of(quota: Quota, wish: str) -> Priority:
    """The lower one of the tenant's and what its client asks for ("": nothing)."""
    try:
        wished = Priority(wish) if wish else quota.priority
    except ValueError:
        known = ", ".join(priority.value for priority in Priority)
        raise ConfigError(f"{wish[:64]!r} is no priority", where="setting 'priority'", hint=f"one of {known}") from None
    return max(quota.priority, wished, key=lambda each: each.rank)
