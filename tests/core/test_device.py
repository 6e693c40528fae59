from __future__ import annotations

import subprocess
import sys

import pytest

from genie.device import Cluster, Device, LinkSpec
from genie.errors import BackendUnavailable, ConfigError
from genie.remote import RemoteBackend
from genie.testing import MemoryTransport

YAML = """
cluster:
  devices:
    - {id: gpu0, address: "10.0.0.10:8888", type: GPU, memory_gb: 16, compute_tflops: 10, network_gbps: 100}
  backend: tcp            # local | tcp | dpdk | "dpdk,tcp"
  scheduling: {policy: min_cost, recomputation_threshold_ms: 2.5}
  fault_tolerance: {enabled: false, checkpoint_interval: 7}   # operations
  security: {token_file: secret/token, ca: /etc/ca.pem}
"""
GOOD = {"id": "gpu0", "type": "GPU", "memory_gb": 16, "compute_tflops": 10}


def test_a_device_is_a_value():
    device = Device(id="gpu0", type="GPU", memory_gb=16, compute_tflops=10, network_gbps=100, address=None)
    assert device == Device("gpu0", "GPU", 16, 10, 100)
    assert device.memory_bytes == 16 * 2**30
    assert device.kind == "gpu"
    with pytest.raises(AttributeError):
        device.id = "other"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", ""),
        ("id", 3),
        ("type", "a\nb"),
        ("memory_gb", 0),
        ("memory_gb", "16"),
        ("memory_gb", True),
        ("compute_tflops", float("nan")),
        ("network_gbps", float("inf")),
        ("network_gbps", -1),
        ("address", "host:0"),
        ("address", "host:99999999999"),
        ("address", "two words:1"),
        ("index", -1),
        ("memory_bandwidth_gb_s", 0),
    ],
)
def test_a_device_names_the_wrong_key(key, value):
    with pytest.raises(ConfigError, match=key if key != "address" else "address|port"):
        Device(**{**GOOD, key: value})


def test_a_cluster_file_says_everything(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(YAML)
    cluster = Cluster.load(path)
    assert cluster.devices == (Device("gpu0", "GPU", 16, 10, 100, "10.0.0.10:8888"),)
    assert cluster.backends == ("tcp",)
    assert (cluster.scheduling.policy, cluster.scheduling.recomputation_threshold_ms) == ("min_cost", 2.5)
    assert (cluster.fault_tolerance.enabled, cluster.fault_tolerance.checkpoint_interval) == (False, 7)
    assert cluster.security.token_file == str(tmp_path / "secret" / "token")
    assert cluster.security.ca == "/etc/ca.pem"


def test_defaults_and_preference_lists():
    cluster = Cluster.parse({"cluster": {"backend": "dpdk, tcp"}})
    assert cluster.backends == ("dpdk", "tcp")
    assert cluster.devices == ()
    assert cluster.scheduling.policy == "min_latency"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"bakend": "tcp"}, "bakend"),
        ({"backend": "tcp,,"}, "backend"),
        ({"backend": 3}, "cluster.backend"),
        ({"scheduling": {"polcy": "x"}}, "polcy"),
        ({"scheduling": {"recomputation_threshold_ms": -1}}, "recomputation_threshold_ms"),
        ({"fault_tolerance": {"checkpoint_interval": 0}}, "checkpoint_interval"),
        ({"fault_tolerance": {"enabled": "maybe"}}, "cluster.fault_tolerance.enabled"),
        ({"security": {"cert": "c.pem"}}, "key"),
        ({"devices": [{**GOOD, "memory": 3}]}, r"devices\[0\].*'memory'"),
        ({"devices": [GOOD, {**GOOD, "id": "b", "memory_gb": "much"}]}, r"devices\[1\].memory_gb"),
        ({"devices": [{**GOOD, "memory_gb": -4}]}, r"devices\[0\].*memory_gb"),
        ({"devices": [{"id": "gpu0"}]}, r"devices\[0\].*type"),
        ({"devices": [GOOD, GOOD]}, "gpu0.*twice"),
        ({"devices": [{**GOOD, "address": "a:1"}, {**GOOD, "id": "b", "address": "a:1"}]}, "gpu0.*b.*a:1"),
        ({"devices": "gpu0"}, "cluster.devices"),
        ({"devices": [{**GOOD, "memory_gb": -4}]}, r"devices\[0\]' \(device 'gpu0'\)"),
        ({"devices": [{**GOOD, "memory": 3}]}, r"devices\[0\] \('gpu0'\)"),
        ({"emulation": {"time": "slow"}}, "cluster.emulation.time"),
        ({"emulation": {"tme": "measured"}}, "tme"),
        ({"links": {}}, "cluster.links"),
        ({"links": [{"source": "client", "target": "gpu0"}]}, r"links\[0\].*gbps"),
        ({"links": [{"source": "client", "target": "gpu0", "gbps": 1, "latency": 3}]}, r"links\[0\]'.*'latency'"),
        ({"links": [{"source": "client", "target": "gpu0", "gbps": 0}]}, r"links\[0\]'.*'gpu0'.*gbps must be positive"),
        ({"links": [{"source": "client", "target": "gpu0", "gbps": "fast"}]}, r"links\[0\].gbps"),
        ({"links": [{"source": "client", "target": "gpu0", "gbps": 1, "latency_ms": -1}]}, "latency_ms must be"),
        ({"links": [{"source": "client", "target": "gpu0", "gbps": 1, "latency_ms": float("nan")}]}, "latency_ms"),
        ({"links": [{"source": "client", "target": "gpu0", "gbps": 1, "oneway": "no"}]}, r"links\[0\].oneway"),
        ({"links": [{"source": "client", "target": "client", "gbps": 1}]}, "'client' to itself"),
    ],
)
def test_a_wrong_cluster_names_the_key(body, named):
    with pytest.raises(ConfigError, match=named) as caught:
        Cluster.parse({"cluster": body}, where="c.yaml")
    assert caught.value.where == "c.yaml"


def linked(*links: dict[str, object], **more: object) -> dict[str, object]:
    return {"cluster": {"devices": [GOOD, {**GOOD, "id": "gpu1"}], "links": list(links), **more}}


def test_links_lead_both_ways_unless_they_say_otherwise():
    cluster = Cluster.parse(
        linked(
            {"source": "gpu0", "target": "gpu1", "gbps": 25, "latency_ms": 0.2},
            {"source": "client", "target": "gpu0", "gbps": 1, "oneway": True},
            {"source": "gpu0", "target": "client", "gbps": 2, "oneway": True},
        )
    )
    link = cluster.links[0]
    assert link == LinkSpec("gpu0", "gpu1", gbps=25, latency_ms=0.2)
    assert (link.latency, link.bytes_per_second) == (0.2e-3, 25e9 / 8)
    assert [each.ways for each in cluster.links] == [
        (("gpu0", "gpu1"), ("gpu1", "gpu0")),
        (("client", "gpu0"),),
        (("gpu0", "client"),),
    ]


@pytest.mark.parametrize(
    ("links", "named", "hint"),
    [
        ([("gpu0", "gpu7")], r"links\[0\].target.*'gpu7'", "client, gpu0, gpu1"),
        ([("gpu0", "gpu1"), ("gpu0", "gpu1")], r"links\[1\].*'gpu0' to 'gpu1'.*links\[0\]", "oneway: true"),
        ([("gpu0", "gpu1"), ("gpu1", "gpu0")], r"links\[1\].*'gpu1' to 'gpu0'.*links\[0\]", "oneway: true"),
    ],
)
def test_a_link_that_leads_nowhere_or_is_there_twice(links, named, hint):
    with pytest.raises(ConfigError, match=named) as caught:
        Cluster.parse(linked(*({"source": a, "target": b, "gbps": 1} for a, b in links)), where="c.yaml")
    assert caught.value.where == "c.yaml"
    assert hint in caught.value.hint


def test_a_device_that_is_called_client_cannot_have_links():
    body = {"devices": [{**GOOD, "id": "client"}], "links": [{"source": "client", "target": "x", "gbps": 1}]}
    with pytest.raises(ConfigError, match="'client' is what links call this side"):
        Cluster.parse({"cluster": body})


def test_a_slip_in_a_key_is_recognised():
    with pytest.raises(ConfigError, match="'gbs'") as caught:
        Cluster.parse(linked({"source": "gpu0", "target": "gpu1", "gbs": 25}))
    assert "did you mean 'gbps'?" in caught.value.hint
    assert "latency_ms" in caught.value.hint


@pytest.mark.parametrize("data", [None, [], {}, {"cluster": None}, {"cluster": {}, "clutser": {}}])
def test_the_top_of_the_file_is_checked(data):
    with pytest.raises(ConfigError, match="clu"):
        Cluster.parse(data)


@pytest.mark.parametrize(
    "text",
    [
        "cluster: [",
        "a: !!python/object/apply:os.system [true]",
        "\x00",
        "[" * 5000,
        "cluster: !!bool maybe",
        "cluster: !!timestamp soon",
        "cluster: !!int ''",
    ],
)
def test_what_is_no_yaml_is_refused(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"YAML|cluster") as caught:
        Cluster.load(path)
    assert caught.value.where == str(path)


def test_a_missing_or_huge_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        Cluster.load(tmp_path / "none.yaml")
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="larger"):
        Cluster.load(huge)


def test_values_need_no_framework():
    code = (
        "import sys; import genie.device, genie.codec, genie.annotate, genie.schedule;"
        "assert not {'torch', 'jax', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_node_nobody_answers_at_is_named_with_its_key_and_device():
    known = (Device("gpu0", "GPU", 16, 10, address="node:1"), Device("gpu1", "GPU", 16, 10, address="node:1", index=1))
    backend = RemoteBackend("memory", MemoryTransport(), ("node:1",), known=known, connect_timeout=0.1)
    with pytest.raises(BackendUnavailable) as caught:
        backend.devices()
    assert caught.value.where == "key 'cluster.devices': the address node:1 of 'gpu0', 'gpu1'"
