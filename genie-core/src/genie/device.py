"""Devices and clusters: data only."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from genie.errors import ConfigError

_LARGEST_FILE = 1 << 20
_LARGEST = 1e9  # GB, TFLOPS, Gbit/s: in bytes, operations and bits per second it still fits 64 bits
_MOST_ENGINES = 16
_ENGINE = re.compile(r"[a-z][a-z0-9_]{0,31}:[a-z][a-z0-9_]{0,31}/[0-9]{1,4}")
CLIENT = "client"  # what a link's end is called that is this side


class Device(msgspec.Struct, frozen=True, omit_defaults=True):
    """One accelerator (or CPU).

    ``network_gbps`` is the link to it in Gbit/s; ``memory_bandwidth_gb_s`` its own memory's, in GB/s, where known.
    ``address`` is where its node listens (``None``: this process), ``index`` its number there. ``hardware`` names model
    and host, as its node tells them: measurements are kept under it. ``engines`` are those that compile for it, with
    the kind of artifact they take: ``xla:stablehlo/1``.

    >>> Device(id="gpu0", type="GPU", memory_gb=16, compute_tflops=10, network_gbps=100).memory_bytes
    17179869184
    """

    id: str
    type: str
    memory_gb: float
    compute_tflops: float
    network_gbps: float = 10.0
    address: str | None = None
    index: int = 0
    memory_bandwidth_gb_s: float | None = None
    hardware: str = ""
    engines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("id", "type"):
            _name(key, getattr(self, key))
        for key in ("memory_gb", "compute_tflops", "network_gbps", "memory_bandwidth_gb_s"):
            number = getattr(self, key)
            if number is None and key == "memory_bandwidth_gb_s":
                continue
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ConfigError(f"{key} must be a number, not {number!r}", where=f"device {self.id!r}")
            if not 0 < number <= _LARGEST:  # what is no number is neither
                what = f"{key} must be positive and at most {_LARGEST:g}, not {number!r}"
                raise ConfigError(what, where=f"device {self.id!r}")
            msgspec.structs.force_setattr(self, key, float(number))  # 16 and 16.0 are one device, byte for byte
        if isinstance(self.index, bool) or not isinstance(self.index, int) or self.index < 0:
            raise ConfigError(f"index must be a number from 0 on, not {self.index!r}", where=f"device {self.id!r}")
        if not isinstance(self.hardware, str) or len(self.hardware) > 512 or not self.hardware.isprintable():
            raise ConfigError(f"hardware must be printable text, not {self.hardware!r}", where=f"device {self.id!r}")
        if self.address is not None:
            _address(self.address, self.id)
        if self.engines and not (len(self.engines) <= _MOST_ENGINES and all(map(_ENGINE.fullmatch, self.engines))):
            raise ConfigError(f"engines must be names with kinds of artifacts, not {self.engines!r}", where=self.id)

    def engine_for(self, artifact: str) -> str:
        """The name of the engine that takes artifacts of that kind; "" if there is none."""
        found = (name for name, _, kind in (each.partition(":") for each in self.engines) if kind == artifact)
        return next(found, "")

    @property
    def kind(self) -> str:
        """The type in lower case: ``gpu``, ``cpu``, ``cuda``, …"""
        return self.type.lower()

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * (1 << 30))


def _name(key: str, text: object) -> None:
    if not isinstance(text, str) or not text or len(text) > 128 or not text.isprintable() or text != text.strip():
        raise ConfigError(f"{key} must be a short printable name, not {text!r}")


def _address(address: object, device: str) -> None:
    where = f"device {device!r}"
    if not isinstance(address, str) or not address or len(address) > 1024 or any(c.isspace() for c in address):
        raise ConfigError(f"address must be 'host:port', not {address!r}", where=where)
    # Other transports document addresses of their own; what looks like host:port must be a right one.
    _, colon, port = address.rpartition(":")
    if colon and port.isascii() and port.isdigit() and not 0 < int(port[:6]) < 65536:
        raise ConfigError(f"address {address!r}: the port must be from 1 to 65535", where=where)


class LinkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The way from ``source`` to ``target`` (ids of devices, or ``"client"``), and unless ``oneway`` back as well: so
    many Gbit/s of payload, and so much latency one way.

    >>> LinkSpec(source="gpu0", target="gpu1", gbps=25, latency_ms=0.2).bytes_per_second
    3125000000.0
    """

    source: str
    target: str
    gbps: float
    latency_ms: float = 0.05
    oneway: bool = False

    def __post_init__(self) -> None:
        where = f"link {self.source!r} → {self.target!r}"
        if self.source == self.target:
            raise ConfigError(f"a link leads from {self.source!r} to itself")
        if not (math.isfinite(self.gbps) and self.gbps > 0):
            raise ConfigError(f"gbps must be positive and finite, not {self.gbps!r}", where=where)
        if not (math.isfinite(self.latency_ms) and self.latency_ms >= 0):
            raise ConfigError(f"latency_ms must be finite and not negative, not {self.latency_ms!r}", where=where)

    @property
    def bytes_per_second(self) -> float:
        return self.gbps * 1e9 / 8

    @property
    def latency(self) -> float:
        """In seconds, one way."""
        return self.latency_ms / 1e3

    @property
    def ways(self) -> tuple[tuple[str, str], ...]:
        """(source, target), and back unless it is one way."""
        there = (self.source, self.target)
        return (there,) if self.oneway else (there, there[::-1])


class Emulation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the backend ``emulated`` reckons time: ``estimated`` by the cost model, the same in every run; or
    ``measured`` here and scaled by what the cost model says of the emulated and the real device."""

    time: Literal["estimated", "measured"] = "estimated"


class Scheduling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    policy: str = "min_latency"
    recomputation_threshold_ms: float = 5.0

    def __post_init__(self) -> None:
        _name("policy", self.policy)
        if not (math.isfinite(self.recomputation_threshold_ms) and self.recomputation_threshold_ms >= 0):
            raise ConfigError(f"recomputation_threshold_ms must not be negative, not {self.recomputation_threshold_ms}")


class FaultTolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``checkpoint_interval`` is in operations."""

    enabled: bool = True
    checkpoint_interval: int = 100

    def __post_init__(self) -> None:
        if self.checkpoint_interval < 1:
            raise ConfigError(f"checkpoint_interval must be at least 1, not {self.checkpoint_interval}")


class Security(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paths of files, which ``Cluster.load`` makes relative to the file that names them; ``plain_data`` as in the
    settings."""

    token_file: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    plain_data: bool | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("key", "cert") if self.cert is None else ("cert", "key")
            raise ConfigError(f"{given} is given without {missing}")


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``cluster.yaml`` says. ``backend`` may list several by preference: ``"dpdk,tcp"``."""

    devices: tuple[Device, ...] = ()
    links: tuple[LinkSpec, ...] = ()
    backend: str = "local"
    emulation: Emulation = Emulation()
    scheduling: Scheduling = Scheduling()
    fault_tolerance: FaultTolerance = FaultTolerance()
    security: Security = Security()

    def __post_init__(self) -> None:
        if not self.backends or not all(self.backends):
            raise ConfigError(f"backend must name one or more backends, not {self.backend!r}")
        ids: set[str] = set()
        places: dict[tuple[str, int], str] = {}
        for device in self.devices:
            if device.id in ids:
                raise ConfigError(f"devices: the id {device.id!r} is used twice")
            ids.add(device.id)
            if device.address is None:
                continue
            other = places.setdefault((device.address, device.index), device.id)
            if other != device.id:
                raise ConfigError(
                    f"devices: {other!r} and {device.id!r} are both number {device.index} at {device.address}",
                    hint="give each device of one node its own 'index'",
                )
        if self.links:
            self._check_links(ids)

    def _check_links(self, ids: set[str]) -> None:
        known = ", ".join((CLIENT, *(device.id for device in self.devices)))
        if CLIENT in ids:
            raise ConfigError(f"devices: {CLIENT!r} is what links call this side", hint="give the device another id")
        ways: dict[tuple[str, str], int] = {}
        for number, link in enumerate(self.links):
            for key in ("source", "target"):
                if (end := getattr(link, key)) not in ids and end != CLIENT:
                    raise ConfigError(f"links[{number}].{key}: there is no device {end!r}", hint=f"known: {known}")
            for way in link.ways:
                if (other := ways.setdefault(way, number)) != number:
                    raise ConfigError(
                        f"links[{number}]: the way from {way[0]!r} to {way[1]!r} is links[{other}] already",
                        hint="links lead both ways unless they say 'oneway: true'",
                    )

    @property
    def backends(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.backend.split(","))

    @classmethod
    def load(cls, path: str | Path) -> Cluster:
        """Read ``cluster.yaml``. Raises :class:`ConfigError` naming the file and the offending key."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                text = file.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise ConfigError(f"cannot read the cluster file: {error.strerror or error}", where=str(path)) from error
        if len(text) > _LARGEST_FILE:
            raise ConfigError("the cluster file is larger than 1 MiB", where=str(path))
        try:
            data = msgspec.yaml.decode(text)
        except Exception as error:  # the reader of YAML lets out whatever its making of a tagged value raises
            told = ", ".join(filter(None, map(str.strip, str(error).splitlines()))) or type(error).__name__
            raise ConfigError(f"the cluster file is not YAML: {told}", where=str(path)) from error
        cluster = cls.parse(data, where=str(path))
        given = {key: getattr(cluster.security, key) for key in Security.__struct_fields__}
        files = {
            key: str(path.parent / Path(name).expanduser()) for key, name in given.items() if isinstance(name, str)
        }
        return msgspec.structs.replace(cluster, security=msgspec.structs.replace(cluster.security, **files))

    @classmethod
    def parse(cls, data: object, where: str = "") -> Cluster:
        """From the parsed contents of a cluster file: a mapping with the one key ``cluster``."""
        if not isinstance(data, Mapping) or not isinstance(data.get("cluster"), Mapping):
            raise ConfigError("key 'cluster' is missing or no mapping", where=where, hint="start with 'cluster:'")
        for key in data:
            if key != "cluster":
                raise ConfigError(f"unknown key {key!r}", where=where, hint="everything goes below 'cluster:'")
        body: Mapping[str, Any] = data["cluster"]
        _known_keys(body, where)
        try:
            return msgspec.convert(body, cls)
        except msgspec.ValidationError as error:
            message, _, at = str(error).rpartition(" - at `$")
            message, key = (message, at.rstrip("`")) if message else (str(error), "")
            first, *rest = message.splitlines()
            told = {kind: text for kind, _, text in (line.strip().partition(": ") for line in rest)}
            its = f" ({told['where']})" if "where" in told else ""
            raise ConfigError(f"key 'cluster{key}'{its}: {first}", where=where, hint=told.get("hint", "")) from error
        except RecursionError as error:
            raise ConfigError("the cluster file is nested too deeply", where=where) from error


def _known_keys(body: Mapping[str, Any], where: str) -> None:
    # Device crosses the wire, where unknown fields of newer peers are accepted; in a file they are typing errors.
    _check_keys("cluster", body, Cluster.__struct_fields__, where)
    for name, fields in (("devices", Device.__struct_fields__), ("links", LinkSpec.__struct_fields__)):
        entries = body.get(name)
        for number, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, Mapping):
                its = f" ({entry['id']!r})" if isinstance(entry.get("id"), str) else ""
                _check_keys(f"cluster.{name}[{number}]{its}", entry, fields, where)


def _check_keys(place: str, entry: Mapping[str, Any], fields: tuple[str, ...], where: str) -> None:
    for key in entry:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(
                f"key '{place}': unknown key {key!r}", where=where, hint=f"{hint}known keys: {', '.join(fields)}"
            )
