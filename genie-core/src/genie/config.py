"""Settings: one frozen value, from a call, the environment or a file, in that order of precedence.

``resolve`` merges the three and says of every setting where it came from, so that an error can.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from genie.device import Cluster
from genie.errors import ConfigError

_PREFIX = "GENIE_"
_LARGEST_FILE = 1 << 20

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. Each field is ``GENIE_<FIELD>`` in the environment and ``field`` in ``genie.toml``.

    ``nodes`` are ``host:port`` addresses; with nodes and no ``backend`` the backend is ``tcp``, with neither it is
    ``local``: this process. ``backend`` may list several by preference (``"dpdk,tcp"``); ``auto`` agrees with
    each node on the best of ``transports``.
    """

    backend: str = "local"
    nodes: tuple[str, ...] = ()
    cluster: Cluster | None = None  # the contents of cluster.yaml; in files and variables its path
    frontend: str = ""  # which one genie.capture() uses; "" is the only one installed
    policy: str = "min_latency"
    cost_model: str = "profiled"
    placement: str = "portfolio"
    # What takes less is made again on a second device where that is cheaper than to send it; 0: never.
    recomputation_threshold_ms: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 5.0
    # What runs programs that come with an artifact (docs/jax.md): auto (by cost), aten (their steps), or a compiler.
    engine: str = "auto"
    compile_seconds: _Seconds = 30.0  # of one compilation on a node
    timeout: _Seconds = 60.0  # of any wait for a node
    connect_timeout: _Seconds = 10.0
    # A node keeps a session that long for a client whose connection broke, which comes back meanwhile; 0: it ends.
    lease_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    heartbeat_seconds: _Seconds = 10.0  # a node that is silent for so long is asked whether the link is why
    # See docs/recovery.md.
    recovery: bool = False  # a program goes on, on another node or the same one started anew, when its node dies
    recovery_attempts: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 50
    recovery_seconds: _Seconds = 60.0  # for looking for a node
    recovery_silence_seconds: _Seconds = 30.0  # of a node that does not answer, before it is given up
    recovery_log_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20
    recovery_disk_bytes: Annotated[int, msgspec.Meta(ge=0)] = 16 << 30
    checkpoint_interval: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0  # seconds; 0: none
    checkpoint_to: Literal["disk", "node"] = "disk"
    recovery_dir: str = ""  # where uploads and checkpoints are kept; "" is $XDG_CACHE_HOME/genie/recovery
    spin_us: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 50.0  # poll a socket this long before sleeping on it
    # Paths of files, see docs/security.md: whom we believe, who we are, whom a node takes for a client.
    token_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    client_ca: str = ""
    # On connections over TCP without TLS: auto (to other hosts), on (always, and nobody else is let in), off.
    checksums: Literal["auto", "on", "off"] = "auto"
    # Where a node is full: how long a client waits for a place, and how long a node lets it.
    admission_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0
    priority: Literal["", "realtime", "interactive", "batch"] = ""  # a lower one than the tenant's
    tenants: str = ""  # path of the file that says what a node's tenants may have: docs/tenancy.md
    transports: str = "dpdk,unix,tcp"  # that the backend auto may use, by preference
    dpdk_device: str = "vdev:memif"  # what carries the packets of the transport dpdk
    # Data may go unencrypted over a transport that does not speak TLS, if a ticket that came over TLS protects it.
    plain_data: bool = False
    unix_sockets: bool = True  # used instead of TCP when the node is on this host
    threads: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0  # intra-op threads of the local backend; 0: its default
    memory_limit_gb: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # per session of the local backend; 0: the device's
    # One execution on the local backend, of a loop one iteration; what takes longer ends before its next operator.
    execution_seconds: Annotated[float, msgspec.Meta(ge=0, le=604_800)] = 0.0  # 0: no limit
    # Idle values leave a device when its memory is short or after so long (0: never): to so many bytes of host memory
    # (unset: a quarter of it; 0: they stay), or of files in a directory. See docs/memory.md.
    swap_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)] | None = None
    swap_directory: str = ""
    swap_idle_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400 * 7)] = 300.0
    prefetch: bool = True  # what a plan needs from other devices sets out when it begins, not when it is needed
    batching: bool = True  # sessions of the local backend that decode with one model share reading its weights
    batching_exact: bool = True  # … without a bit of a result depending on who else is there
    decode_loop: bool = True  # genie.generate() lets the node run the loop
    profile_dir: str = ""  # where measurements are kept; "" is $XDG_DATA_HOME/genie
    trace_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = (
        0.0  # of calls outside any trace that begin one; 0: no spans
    )
    log_level: str = "WARNING"
    log_json: bool = False
    log_intercepts: bool = False  # log every captured operator
    analyzer_debug: bool = False  # log what patterns match
    debug_checks: bool = False  # compare the client's shapes with the node's

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends by preference."""
        return tuple(name.strip() for name in self.backend.split(","))

    @property
    def transport_names(self) -> tuple[str, ...]:
        """Those that the backend ``auto`` may use, by preference."""
        return tuple(name.strip() for name in self.transports.split(","))


_TYPES: dict[str, Any] = get_type_hints(Settings, include_extras=True)
KEYS: tuple[str, ...] = tuple(Settings.__struct_fields__)
# Variables that are no setting of this process's runtime.
_OTHER_VARIABLES = frozenset({"GENIE_CONFIG"})
_FILES = ("token_file", "ca", "cert", "key", "client_ca", "tenants")  # settings that name one


class Resolved(msgspec.Struct, frozen=True):
    """Settings, and for each that is no default the place it came from."""

    settings: Settings
    origins: Mapping[str, str]

    def origin(self, key: str) -> str:
        return self.origins.get(key, "default")


def resolve(
    call: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Resolved:
    """Merge call > environment > file > defaults. Raises :class:`ConfigError` naming the key and its place.

    The file is ``$GENIE_CONFIG`` (``.toml``, or a ``cluster.yaml``), or ``genie.toml`` in ``directory``
    (the working directory), if there is one.
    """
    environ = os.environ if environ is None else environ
    directory = Path.cwd() if directory is None else directory
    layers = [
        _from_file(environ, directory),
        _from_environment(environ),
        {key: (value, f"call: {key}=") for key, value in (call or {}).items()},
    ]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        layer = {key: (_convert(key, value, place, directory), place) for key, (value, place) in layer.items()}
        if "cluster" in layer:
            # A cluster file stands for several settings, which the same layer may still overrule.
            layer = {**_of_cluster(*layer["cluster"]), **layer}
        elif "nodes" in layer:  # other nodes: what a lower layer's cluster file says of its own does not hold
            values.pop("cluster", None)
            origins.pop("cluster", None)
        for key, (value, place) in layer.items():
            values[key], origins[key] = value, place
    if values.get("nodes") and "backend" not in values:
        values["backend"], origins["backend"] = "tcp", f"nodes of {origins['nodes']}"
    return Resolved(Settings(**values), origins)


def convert(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's settings, checked and as their types. Raises :class:`ConfigError`."""
    return {key: _convert(key, value, f"call: {key}=", Path.cwd()) for key, value in call.items()}


def replace(resolved: Resolved, **changes: Any) -> Resolved:
    """With ``changes`` made by a call."""
    origins = {**resolved.origins, **{key: f"call: {key}=" for key in changes}}
    return Resolved(msgspec.structs.replace(resolved.settings, **convert(changes)), origins)


_Layer = dict[str, tuple[Any, str]]


def _of_cluster(cluster: Cluster | None, place: str) -> _Layer:
    if cluster is None:
        return {}
    addresses = tuple(dict.fromkeys(device.address for device in cluster.devices if device.address is not None))
    if addresses and cluster.backends == ("local",):
        raise ConfigError(
            "key 'cluster.backend' is 'local' (also when left out), but devices have addresses",
            where=place,
            hint="say 'backend: tcp', or remove the addresses",
        )
    if "emulated" in cluster.backends:
        addresses = ()  # of the nodes that are emulated
    security = {
        key: (said, f"{place}: cluster.security.{key}")
        for key in cluster.security.__struct_fields__
        if (said := getattr(cluster.security, key)) is not None
    }
    return {
        **security,
        "backend": (cluster.backend, f"{place}: cluster.backend"),
        "nodes": (addresses, f"{place}: cluster.devices"),
        "policy": (cluster.scheduling.policy, f"{place}: cluster.scheduling.policy"),
        "recomputation_threshold_ms": (
            cluster.scheduling.recomputation_threshold_ms,
            f"{place}: cluster.scheduling.recomputation_threshold_ms",
        ),
    }


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    layer: _Layer = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        key = variable.removeprefix(_PREFIX).lower()
        if key in KEYS and variable == _PREFIX + key.upper():
            layer[key] = (_split(text) if key == "nodes" else text, f"environment: {variable}")
        elif close := _close(key):
            # Only what looks like a slip of one of ours: the prefix is not ours alone.
            raise ConfigError(
                f"unknown setting {variable}",
                where="the environment",
                hint=f"did you mean {_PREFIX}{close.upper()}?",
            )
    return layer


def _from_file(environ: Mapping[str, str], directory: Path) -> _Layer:
    named = environ.get("GENIE_CONFIG")
    path = directory / Path(named).expanduser() if named else directory / "genie.toml"
    if not named and not path.is_file():
        return {}
    if path.suffix in (".yaml", ".yml"):
        return {"cluster": (str(path), str(path))}
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration: {error.strerror or error}",
            where=str(path),
            hint="GENIE_CONFIG names it" if named else "",
        ) from error
    if len(raw) > _LARGEST_FILE:
        raise ConfigError("the configuration is larger than 1 MiB", where=str(path))
    try:
        data = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # its own errors, of text, and of numbers with too many digits
        raise ConfigError(f"the configuration is not TOML: {error}", where=str(path)) from error
    layer: _Layer = {}
    for key, value in data.items():
        if key in ("cluster", "swap_directory", *_FILES) and isinstance(value, str) and value:
            value = str(path.parent / Path(value).expanduser())  # relative to the file that names it
        layer[key] = (value, f"{path}: {key}")
    return layer


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _convert(key: str, value: Any, place: str, directory: Path) -> Any:
    """``value`` as the setting's type; text stands for numbers and truth values as it must in the environment."""
    if key not in KEYS:
        close = _close(key)
        raise ConfigError(
            f"unknown setting {key!r}",
            where=place,
            hint=f"did you mean {close!r}?" if close else f"settings: {', '.join(KEYS)}",
        )
    if key == "cluster":
        if value is None or isinstance(value, Cluster):
            return value
        if isinstance(value, Mapping):
            return Cluster.parse({"cluster": value}, where=place)
        if isinstance(value, str | Path):
            return Cluster.load(directory / Path(value).expanduser())
        raise ConfigError(f"setting 'cluster' must be a path or a mapping, not {value!r}", where=place)
    if key == "nodes" and isinstance(value, str):
        value = _split(value)
    try:
        converted = msgspec.convert(value, _TYPES[key], strict=not place.startswith("environment"))
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter: bytes that are no text
        if get_origin(_TYPES[key]) is Literal:
            known = ", ".join(filter(None, get_args(_TYPES[key])))
            raise ConfigError(f"setting {key!r}: {value!r} is none of {known}", where=place) from error
        raise ConfigError(f"setting {key!r}: {error}, not {value!r}", where=place) from error
    check = _CHECKS.get(key)
    problem = check(converted) if check else ""
    if problem:
        raise ConfigError(f"setting {key!r}: {problem}", where=place)
    return converted.upper() if key == "log_level" else converted


def _check_level(level: str) -> str:
    return "" if level.upper() in _LEVELS else f"{level!r} is none of {', '.join(_LEVELS)}"


def _check_backend(names: str) -> str:
    return "" if all(name.strip() for name in names.split(",")) else f"{names!r} names no backend"


def _check_transports(names: str) -> str:
    listed = [name.strip() for name in names.split(",")]
    if not all(listed):
        return f"{names!r} names no transport"
    repeated = {name for name in listed if listed.count(name) > 1}
    return f"{sorted(repeated)[0]!r} is named twice" if repeated else ""


def _check_nodes(nodes: tuple[str, ...]) -> str:
    for node in nodes:
        if node.startswith("unix:"):
            continue
        host, _, port = node.rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            return f"{node!r} is no host:port"
    repeated = {node for node in nodes if nodes.count(node) > 1}
    return f"{sorted(repeated)[0]!r} is named twice" if repeated else ""


def _check_finite(number: float) -> str:
    return "" if math.isfinite(number) else f"{number!r} is not finite"


_CHECKS: dict[str, Callable[[Any], str]] = {
    "log_level": _check_level,
    "backend": _check_backend,
    "transports": _check_transports,
    "nodes": _check_nodes,
    "timeout": _check_finite,
    "connect_timeout": _check_finite,
    "lease_seconds": _check_finite,
    "heartbeat_seconds": _check_finite,
    "recovery_seconds": _check_finite,
    "recovery_silence_seconds": _check_finite,
    "checkpoint_interval": _check_finite,
    "spin_us": _check_finite,
    "execution_seconds": _check_finite,
    "recomputation_threshold_ms": _check_finite,
    "memory_limit_gb": _check_finite,
    "swap_idle_seconds": _check_finite,
    "trace_ratio": _check_finite,
    "compile_seconds": _check_finite,
    "admission_seconds": _check_finite,
}


def _close(key: str) -> str:
    return next(iter(difflib.get_close_matches(key, KEYS, n=1, cutoff=0.75)), "")
