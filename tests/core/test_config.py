"""Settings: precedence, and errors that name the key and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genie.config import KEYS, Settings, replace, resolve
from genie.errors import ConfigError

CLUSTER = """
cluster:
  backend: tcp
  devices:
    - {id: gpu0, address: "10.0.0.10:8888", type: GPU, memory_gb: 16, compute_tflops: 10, network_gbps: 100}
    - {id: gpu1, address: "10.0.0.10:8888", index: 1, type: GPU, memory_gb: 16, compute_tflops: 10}
    - {id: gpu2, address: "10.0.0.11:8888", type: GPU, memory_gb: 16, compute_tflops: 10}
  scheduling: {policy: min_cost}
"""


def settings(directory: Path, call: dict[str, Any] | None = None, **environ: str) -> Settings:
    return resolve(call, environ=environ, directory=directory).settings


def test_defaults(tmp_path: Path) -> None:
    assert settings(tmp_path) == Settings()


def test_precedence_is_call_environment_file(tmp_path: Path) -> None:
    (tmp_path / "genie.toml").write_text("timeout = 1\nspin_us = 1\nthreads = 1\n")
    resolved = resolve({"timeout": 3}, environ={"GENIE_TIMEOUT": "2", "GENIE_SPIN_US": "2"}, directory=tmp_path)
    its = resolved.settings
    assert (its.timeout, its.spin_us, its.threads) == (3, 2, 1)
    assert resolved.origin("timeout") == "call: timeout="
    assert resolved.origin("spin_us") == "environment: GENIE_SPIN_US"
    assert resolved.origin("threads") == f"{tmp_path / 'genie.toml'}: threads"
    assert resolved.origin("policy") == "default"


@pytest.mark.parametrize(
    ("key", "known"), [("priority", "realtime, interactive, batch"), ("checksums", "auto, on, off")]
)
def test_a_word_that_is_none_of_those_there_are(tmp_path: Path, key: str, known: str) -> None:
    with pytest.raises(ConfigError, match=f"setting '{key}': 'urgent' is none of {known}\n") as caught:
        settings(tmp_path, **{f"GENIE_{key.upper()}": "urgent"})
    assert caught.value.where == f"environment: GENIE_{key.upper()}"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("False", False)])
def test_truth_values_of_the_environment(tmp_path: Path, text: str, value: bool) -> None:
    assert settings(tmp_path, GENIE_LOG_INTERCEPTS=text).log_intercepts is value


def test_nodes_from_the_environment_choose_tcp(tmp_path: Path) -> None:
    its = settings(tmp_path, GENIE_NODES="a:1, [::1]:2,")
    assert (its.nodes, its.backend) == (("a:1", "[::1]:2"), "tcp")
    assert settings(tmp_path, GENIE_NODES="a:1", GENIE_BACKEND="dpdk,tcp").backends == ("dpdk", "tcp")


def test_a_cluster_file_gives_nodes_backend_and_policy(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    its = settings(tmp_path, {"cluster": "cluster.yaml"})
    assert its.nodes == ("10.0.0.10:8888", "10.0.0.11:8888")
    assert (its.backend, its.policy) == ("tcp", "min_cost")
    assert its.cluster is not None
    assert [device.id for device in its.cluster.devices] == ["gpu0", "gpu1", "gpu2"]


def test_a_cluster_file_is_overruled_by_its_own_layer_and_those_above(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    its = settings(tmp_path, {"policy": "min_latency"}, GENIE_CLUSTER="cluster.yaml", GENIE_BACKEND="local")
    assert (its.policy, its.backend) == ("min_latency", "local")
    other = settings(tmp_path, {"nodes": ["z:1"]}, GENIE_CLUSTER="cluster.yaml")
    assert (other.nodes, other.cluster) == (("z:1",), None)


def test_genie_config_may_name_either_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CLUSTER)
    assert settings(tmp_path, GENIE_CONFIG=str(tmp_path / "c.yaml")).policy == "min_cost"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "g.toml").write_text('cluster = "../c.yaml"\ntimeout = 5\n')
    its = settings(tmp_path, GENIE_CONFIG="sub/g.toml")
    assert (its.policy, its.timeout) == ("min_cost", 5)


def test_addresses_without_a_remote_backend_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER.replace("  backend: tcp\n", ""))
    with pytest.raises(ConfigError, match=r"cluster\.backend"):
        settings(tmp_path, {"cluster": "cluster.yaml"})


BAD: list[tuple[dict[str, Any], dict[str, str], str, list[str]]] = [
    ({"timeot": 3}, {}, "", ["timeot", "call: timeot=", "did you mean 'timeout'"]),
    ({"zzz": 3}, {}, "", ["zzz", "settings: backend"]),
    ({"timeout": -1}, {}, "", ["timeout", "call: timeout=", "-1"]),
    ({"timeout": "3"}, {}, "", ["timeout", "str"]),
    ({"timeout": float("nan")}, {}, "", ["timeout"]),
    ({"memory_limit_gb": float("inf")}, {}, "", ["memory_limit_gb"]),
    ({"nodes": ["nonsense"]}, {}, "", ["nodes", "'nonsense' is no host:port"]),
    ({"nodes": ["a:99999"]}, {}, "", ["nodes", "a:99999"]),
    ({"nodes": ["a:1", "a:1"]}, {}, "", ["nodes", "named twice"]),
    ({"backend": "tcp,,x"}, {}, "", ["backend"]),
    ({"log_level": "LOUD"}, {}, "", ["log_level", "LOUD", "DEBUG"]),
    ({"cluster": 3}, {}, "", ["cluster", "a path or a mapping"]),
    ({"cluster": "nowhere.yaml"}, {}, "", ["nowhere.yaml"]),
    ({}, {"GENIE_TIMEOUT": "soon"}, "", ["timeout", "environment: GENIE_TIMEOUT", "soon"]),
    ({}, {"GENIE_TIMOUT": "3"}, "", ["GENIE_TIMOUT", "did you mean GENIE_TIMEOUT"]),
    ({}, {"GENIE_LOG_INTERCEPTS": "maybe"}, "", ["log_intercepts", "GENIE_LOG_INTERCEPTS"]),
    ({}, {"GENIE_CONFIG": "nowhere.toml"}, "", ["nowhere.toml", "GENIE_CONFIG"]),
    ({}, {}, "timeout = 'x'", ["timeout", "genie.toml: timeout"]),
    ({}, {}, "timeot = 3", ["timeot", "genie.toml", "did you mean 'timeout'"]),
    ({}, {}, "timeout = ", ["genie.toml", "not TOML"]),
    ({}, {}, "[cluster]\ndevices = 3", ["cluster", "devices", "genie.toml"]),
]


@pytest.mark.parametrize(("call", "environ", "file", "named"), BAD, ids=[str(bad[3][:2]) for bad in BAD])
def test_errors_name_the_key_and_its_place(
    tmp_path: Path, call: dict[str, Any], environ: dict[str, str], file: str, named: list[str]
) -> None:
    if file:
        (tmp_path / "genie.toml").write_text(file)
    with pytest.raises(ConfigError) as caught:
        resolve(call, environ=environ, directory=tmp_path)
    for text in named:
        assert text in str(caught.value)


def test_strangers_with_our_prefix_are_left_alone(tmp_path: Path) -> None:
    assert settings(tmp_path, GENIE_LAMP="3", GENIE_HOME_DIRECTORY="/x") == Settings()


def test_every_setting_has_a_variable(tmp_path: Path) -> None:
    text = {
        "nodes": "a:1",
        "cluster": "c.yaml",
        "log_level": "info",
        "backend": "tcp",
        "checksums": "on",
        "priority": "batch",
        "checkpoint_to": "node",
    }
    (tmp_path / "c.yaml").write_text(CLUSTER)
    for key in KEYS:
        resolved = resolve(environ={f"GENIE_{key.upper()}": text.get(key, "1")}, directory=tmp_path)
        assert resolved.origin(key) in (f"environment: GENIE_{key.upper()}",)


def test_replace_says_that_a_call_did_it(tmp_path: Path) -> None:
    resolved = replace(resolve(environ={}, directory=tmp_path), log_level="debug")
    assert (resolved.settings.log_level, resolved.origin("log_level")) == ("DEBUG", "call: log_level=")
    with pytest.raises(ConfigError, match="loglevel"):
        replace(resolved, loglevel="debug")


def test_security_of_a_cluster_and_its_paths(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    file = tmp_path / "lab" / "cluster.yaml"
    file.write_text("cluster: {security: {token_file: t, ca: /etc/ca.pem, cert: c.pem, key: k.pem, plain_data: true}}")
    found = resolve({"cluster": str(file), "ca": "mine.pem"}, environ={}, directory=tmp_path)
    assert found.settings.token_file == str(tmp_path / "lab" / "t")
    assert (found.settings.cert, found.settings.key) == (
        str(tmp_path / "lab" / "c.pem"),
        str(tmp_path / "lab" / "k.pem"),
    )
    assert found.settings.ca == "mine.pem"  # the call's own word
    assert "cluster.security.token_file" in found.origin("token_file")
    assert found.settings.plain_data
    (tmp_path / "genie.toml").write_text('ca = "ca.pem"')
    assert resolve({}, environ={}, directory=tmp_path).settings.ca == str(tmp_path / "ca.pem")
