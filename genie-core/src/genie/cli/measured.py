"""Files that say what a plan took: profiles, and reports of emulated runs."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import msgspec

from genie.cli.printing import err, escape
from genie.errors import CodecError, ConfigError
from genie.inspect.measured import CostsOfNodes, Traced
from genie.plan import ExecutionPlan
from genie.profile import Profile, Record, device_key, store

_MOST_BYTES = 1 << 27
_MOST_ENTRIES = 1 << 17


class Entry(msgspec.Struct, frozen=True):
    """As :class:`genie.emulate.Span`."""

    where: str
    what: str
    start: float
    finish: float
    bytes: int = 0


class Trace(msgspec.Struct, frozen=True):
    """What is needed of ``Report.to_json()``."""

    trace: tuple[Entry, ...]


def read_measured(plan: ExecutionPlan, path: Path) -> CostsOfNodes | Traced:
    """What FILE says of the plan's devices. Raises ``CodecError`` for a file that is neither, ``ConfigError`` for a
    profile of other devices."""
    if path.is_dir():
        profile = Profile(path)
        for problem in profile.load():
            err.print(escape(str(problem)))
        return _of_devices(plan, profile, path)
    if path.suffix == store.SUFFIX:
        return _of_devices(plan, _profile((store.read(path),)), path)
    data = _read(path)
    try:
        if data.lstrip()[:1] == b"[":
            return _of_devices(plan, _profile(msgspec.json.decode(data, type=tuple[Record, ...])), path)
        trace = msgspec.json.decode(data, type=Trace)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise CodecError(
            f"neither a profile nor a report: {error}",
            where=str(path),
            hint="`genie profile export FILE` writes one, genie.emulate.report().to_json() is the other",
        ) from error
    return _checked(trace, path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise CodecError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    if len(data) > _MOST_BYTES:
        raise CodecError(f"larger than {_MOST_BYTES} bytes", where=str(path))
    return data


def _profile(records: tuple[Record, ...]) -> Profile:
    profile = Profile(Path())
    for record in records:
        profile.observe(record.key, record.rows)
    return profile


def _of_devices(plan: ExecutionPlan, profile: Profile, path: Path) -> CostsOfNodes:
    there = [record.key for record in profile.records() if record.rows]
    wanted = list(dict.fromkeys(device_key(device) for device in plan.devices))
    if not set(there).intersection(wanted):
        raise ConfigError(
            f"the profile has none of the plan's devices: {'; '.join(wanted)}",
            where=str(path),
            hint=f"it has {'; '.join(there) or 'no rows'}",
        )
    return profile.model(plan.devices)


def _checked(trace: Trace, path: Path) -> Trace:
    if len(trace.trace) > _MOST_ENTRIES:
        raise CodecError(f"{len(trace.trace)} entries, more than {_MOST_ENTRIES}", where=str(path))
    for number, each in enumerate(trace.trace):
        if not (isfinite(each.start) and isfinite(each.finish) and each.start <= each.finish and each.bytes >= 0):
            raise CodecError(f"trace[{number}] has impossible times or bytes", where=str(path))
    return Trace(tuple(sorted(trace.trace, key=lambda each: (each.start, each.finish))))
