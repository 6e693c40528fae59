"""Files and variables that people write: tokens, settings, clusters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from genie.config import Resolved, resolve
from genie.device import Cluster
from genie.errors import ConfigError
from genie.security import tokens
from genie_fuzz.feed import Feed
from genie_fuzz.harness import Target, check, refuses

_TOKENS = b"""{"tokens": [{"name": "alice", "sha256": "%s", "scopes": ["use", "admin"], "tenant": "t",
 "expires": "2030-01-01T00:00:00Z"}]}""" % (b"a" * 64)
_TOML = b"""backend = "tcp"\nnodes = ["host:8888"]\ntimeout = 3.5\ntoken_file = "a.token"\nlog_level = "INFO"\n"""
_CLUSTER = b"""cluster:
  devices:
    - {id: gpu0, type: GPU, memory_gb: 16, compute_tflops: 10, network_gbps: 100, address: 'host:8888'}
    - {id: gpu1, type: GPU, memory_gb: 16, compute_tflops: 10}
  links: [{source: gpu0, target: gpu1, gbps: 25, latency_ms: 0.2}]
  security: {token_file: alice.token, ca: ca.pem}
"""


@cache
def _folder() -> Path:
    # Memory, where there is some: nothing here is to be kept.
    shared = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(prefix="genie-fuzz-", dir=shared if shared.is_dir() else None)
    _HELD.append(made)
    return Path(made.name)


_HELD: list[tempfile.TemporaryDirectory[str]] = []


def one(data: bytes) -> None:
    """The first byte says what kind of file the rest is."""
    if not data:
        return
    way, rest = data[0] % 5, data[1:]
    if way == 4:
        feed = Feed(rest)
        name = feed.choice(("TIMEOUT", "NODES", "BACKEND", "LOG_LEVEL", "PORT", "MEMORY_LIMIT_GB", "TRACE_RATIO", "LOG_JSON", "X"))
        value = feed.rest().replace(b"\0", b"").decode("utf-8", "surrogateescape")
        _settings({f"GENIE_{name}": value})
        return
    path = _folder() / ("tokens.json", "genie.toml", "cluster.yaml", "token")[way]
    path.write_bytes(rest)
    match way:
        case 0:
            known = refuses((ConfigError,), lambda: tokens.load(path))
            if known is not None:
                check(len({entry.name for entry in known}) == len(known), "two tokens of one name")  # type: ignore[attr-defined, arg-type]
        case 1:
            _settings({"GENIE_CONFIG": str(path)})
        case 2:
            cluster = refuses((ConfigError,), lambda: Cluster.load(path))
            if isinstance(cluster, Cluster):
                check(all(device.memory_bytes >= 0 for device in cluster.devices), "a device with less than no memory")
        case _:
            refuses((ConfigError,), lambda: tokens.read_token(path))


def _settings(environ: dict[str, str]) -> None:
    found = refuses((ConfigError,), lambda: resolve(environ=environ, directory=_folder() / "none"))
    if isinstance(found, Resolved):
        check(found.settings.timeout > 0, f"a timeout of {found.settings.timeout}")


def seeds() -> Iterator[bytes]:
    for way, text in enumerate((_TOKENS, _TOML, _CLUSTER, b"genie_" + b"x" * 43 + b"\n")):
        yield bytes((way,)) + text
    for number, value in enumerate((b"3.5", b"a:1,b:2", b"tcp,local", b"debug", b"8888", b"0.5", b"1", b"true", b"?")):
        yield bytes((4, number)) + value
    yield b"\x02a: &a [*a]\n"
    yield b"\x02cluster: {devices: [{id: a, type: b, memory_gb: .nan, compute_tflops: 1e400}]}\n"


TARGET = Target(
    name="files",
    one=one,
    seeds=seeds,
    modules=("genie.config", "genie.device", "genie.security.tokens"),
    bytes_per_byte=1 << 11,
    bytes_at_least=4 << 20,
    seconds=2.0,
)
