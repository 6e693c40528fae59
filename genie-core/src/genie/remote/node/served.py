"""Which of a backend's devices a node serves, and what they are called there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from genie.device import Device
from genie.errors import ConfigError


def choose(devices: Sequence[Device], wanted: Sequence[str]) -> tuple[Device, ...]:
    """Those whose ids are ``wanted``; all, if none are. Raises :class:`ConfigError` for one that is not there."""
    if not wanted:
        return tuple(devices)
    by_id = {device.id: device for device in devices}
    unknown = [each for each in wanted if each not in by_id]
    if unknown:
        raise ConfigError(f"there is no device {unknown[0]!r}", hint=f"this host has {', '.join(by_id)}")
    return tuple(by_id[each] for each in wanted)


def each_its_name(devices: Sequence[Device]) -> tuple[Device, ...]:
    """A device served twice is two devices: the second one is ``cpu#2``."""
    counted: Counter[str] = Counter()
    named = []
    for device in devices:
        counted[device.id] += 1
        count = counted[device.id]
        named.append(device if count == 1 else msgspec.structs.replace(device, id=f"{device.id}#{count}"))
    return tuple(named)
