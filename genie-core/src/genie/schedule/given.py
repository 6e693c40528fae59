"""What a call gives the scheduler, checked where it comes in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite
from typing import TypeVar

from genie.device import Device
from genie.errors import ConfigError
from genie.interfaces import Policy
from genie.schedule.policy import policy as policy_named

_K = TypeVar("_K")
_V = TypeVar("_V")


def devices_of(devices: Iterable[Device]) -> tuple[Device, ...]:
    if isinstance(devices, Device | str) or not isinstance(devices, Iterable):
        raise ConfigError(f"devices= must be a list of devices, not {devices!r}", hint=_DEVICES)
    its = tuple(devices)
    if not its:
        raise ConfigError("a scheduler needs at least one device", hint=_DEVICES)
    for number, each in enumerate(its):
        if not isinstance(each, Device):
            raise ConfigError(f"devices[{number}] is no device: {each!r}", hint=_DEVICES)
    ids = [each.id for each in its]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise ConfigError(f"two devices have one id: {twice!r}", hint="give each device an id of its own")
    return its


_DEVICES = "genie.devices() are those there are; genie.Device(id=…, type=…, …) describes one"


def policy_of(policy: str | Policy) -> Policy:
    if isinstance(policy, str):
        return policy_named(policy)
    if isinstance(policy, type) or not callable(getattr(policy, "score", None)):
        raise ConfigError(
            f"policy= is neither a policy's name nor a policy: {policy!r}",
            hint="a policy has a name and score(makespan, device_seconds, devices)",
        )
    return policy


def amount(name: str, number: object) -> float:
    """A number from 0 on."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not (isfinite(number) and number >= 0):
        raise ConfigError(f"{name} must be a finite number from 0 on, not {number!r}")
    return float(number)


def bytes_of(name: str, devices: Sequence[Device], taken: Mapping[str, int] | None) -> list[int]:
    """Per device, what is taken of its memory."""
    ids = [device.id for device in devices]
    its = mapping(name, taken)
    for device, count in its.items():
        if device not in ids:
            raise ConfigError(f"{name}: there is no device {device!r}", hint=f"devices: {', '.join(ids)}")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConfigError(f"{name}: {device!r} must be a number of bytes, not {count!r}")
    return [min(its.get(device.id, 0), device.memory_bytes) for device in devices]


def mapping(name: str, its: Mapping[_K, _V] | None) -> Mapping[_K, _V]:
    if its is None:
        return {}
    if not isinstance(its, Mapping):
        raise ConfigError(f"{name}= must be a mapping, not {its!r}", hint=_MAPPINGS.get(name, ""))
    return its


_MAPPINGS = {
    "homes": "{number of an input's value: device}",
    "pins": "{node id or module path: device}",
    "exclude": "{node id or module path: devices}",
    "reserved": "{device id: bytes}",
    "occupied": "{device id: bytes}",
}


def id_of(device: str | Device) -> str:
    return device.id if isinstance(device, Device) else device


def ids_of(devices: Collection[str | Device] | str | Device) -> list[str]:
    """Of one device or several."""
    if isinstance(devices, str | Device):
        return [id_of(devices)]
    if not isinstance(devices, Collection):
        raise ConfigError(f"not a device, nor several: {devices!r}", hint="devices are given by their ids")
    return sorted(map(id_of, devices), key=str)
