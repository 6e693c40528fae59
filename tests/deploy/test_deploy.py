"""What is under ``deploy/`` fits what a node is: metrics that exist, ports that are listened at, a drain that is waited
for. Tools that know the formats better check them where they are installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.conftest import MakeNode, Nursery, make_node, nursery  # noqa: F401  (fixtures)
from prometheus_client.parser import text_string_to_metric_families

from genie.remote import NodeServer
from genie.remote.node.serve import GRACE_SECONDS
from genie.remote.seen.metrics import Metrics
from genie.testing import MemoryTransport, NullBackend

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "genie-node.json"
UNIT = DEPLOY / "systemd" / "genie-node.service"
CONTAINER = DEPLOY / "Containerfile"

# What each family is exposed as.
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
_NAME = re.compile(r"\b(?:genie|process|up)(?:_[a-z_]+)?\b(?=\s*[{\[)\s/]|$)")


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def ran(*command: object, cwd: Path | None = None) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def exposed() -> dict[str, str]:
    """Name of every sample a node may have, with its family's type."""
    with NodeServer(NullBackend(), MemoryTransport(), "node:0") as node:
        text = Metrics(node).text().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for suffix in _SUFFIXES[family.type]:
            found[family.name + suffix] = family.type
    assert len(found) > 40
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def names_in(expression: str) -> set[str]:
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\b(?:by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    return set(_NAME.findall(re.sub(r"\{[^}]*\}", "{}", bare)))


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_named_exists(exposed: Mapping[str, str], where: str, expression: str) -> None:
    names = names_in(expression)
    assert names, f"{where}: no metric in {expression}"
    assert names - exposed.keys() - {"up"} == set()
    # Only what grows has a rate.
    for grown in re.findall(r"(?:rate|increase)\(([a-z_]+)", expression):
        assert exposed[grown] in ("counter", "histogram"), grown


def test_the_names_are_found() -> None:
    assert names_in('sum by (genie_x) (rate(genie_a_total{b="genie_c"}[5m])) / on (job) genie_d > 0.5') == {
        "genie_a_total",
        "genie_d",
    }
    assert names_in('up{job="genie"} == 0') == {"up"}


def test_labels_named_exist(make_node: MakeNode) -> None:  # noqa: F811
    """On a node that is served for real: each selector's labels are those of its metric."""
    node = make_node("--metrics-port", "0")
    with urllib.request.urlopen(f"http://{node.facts['metrics_address']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    scraped = {"job", "instance"}
    checked = 0
    for where, expression in expressions():
        for name, selector in re.findall(r"\b((?:genie|process)_[a-z_]+)\{([^}]*)\}", expression):
            if name in labels:  # what has not happened yet has no samples
                wanted = set(re.findall(r"(\w+)\s*=~?", selector))
                assert wanted <= labels[name] | scraped, f"{where}: {name}"
                checked += 1
    assert checked > 20


def test_alerts_are_complete() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
        assert not set(rule) - {"alert", "expr", "for", "labels", "annotations"}


def test_alerts_by_promtool(tmp_path: Path) -> None:
    promtool = tool("promtool")
    ran(promtool, "check", "rules", ALERTS)
    ran(promtool, "test", "rules", "alerts_test.yaml", cwd=ALERTS.parent)
    # It reads the dashboard's expressions, too, once its variables have values.
    drawn = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "5m").replace("$", "")}
        for number, (_, text) in enumerate(expressions())
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": drawn}]}))
    ran(promtool, "check", "rules", path)


def test_the_dashboard_hangs_together() -> None:
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "${datasource}"
    variables = {each["name"] for each in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    for _, expression in expressions():
        assert set(re.findall(r"\$(\w+)", expression)) <= variables | {"__rate_interval"}


# --- systemd -------------------------------------------------------------------------------------


def unit() -> list[tuple[str, str]]:
    lines = [line for line in UNIT.read_text().splitlines() if line and line[0] not in "#["]
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


def test_the_unit_waits_for_the_drain() -> None:
    told = dict(unit())
    assert int(told["TimeoutStopSec"]) > GRACE_SECONDS
    assert told["KillSignal"] == "SIGTERM"
    assert told["NoNewPrivileges"] == "yes"
    assert " serve " in told["ExecStart"]


def test_the_unit_by_systemd(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/genie/bin/genie", "/bin/true"))  # which must exist for it
    ran(analyze, "verify", path)
    ran(analyze, "security", "--offline=true", "--threshold=25", path)  # of 100, the less the safer


# --- Kubernetes ----------------------------------------------------------------------------------


def manifests() -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "node.yaml").read_text()))
    return {each["kind"]: each for each in found}


def test_the_pod_is_probed_drained_and_confined() -> None:
    found = manifests()
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > GRACE_SECONDS
    assert pod["enableServiceLinks"] is False
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    args = dict(each.split("=") for each in container["args"] if "=" in each)
    assert int(args["--port"]) == ports["data"]
    assert int(args["--metrics-port"]) == ports["metrics"]
    assert ports["control"] == ports["data"] + 1
    for probe in ("readinessProbe", "startupProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert "httpGet" not in container["livenessProbe"]  # a node that drains is alive
    secrets = next(each["mountPath"] for each in container["volumeMounts"] if each["name"] == "secrets")
    for option in ("--cert", "--key", "--tokens"):  # others reach it, so it asks who they are
        assert args[option].startswith(f"{secrets}/")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, selector in (
        ("Deployment", found["Deployment"]["spec"]["selector"]["matchLabels"]),
        ("Service", found["Service"]["spec"]["selector"]),
        ("PodDisruptionBudget", found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
        ("NetworkPolicy", found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]),
    ):
        assert selector.items() <= labels.items(), kind
    assert {each["targetPort"] for each in found["Service"]["spec"]["ports"]} <= ports.keys()


def test_manifests_by_their_schemas() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate here")
    version = validate.latest_version()
    for each in manifests().values():
        validate.validate(each, version, strict=True)


# --- container -----------------------------------------------------------------------------------


def test_the_container_is_small_and_not_root() -> None:
    text = CONTAINER.read_text()
    build, _, last = text.rpartition("\nFROM ")
    assert "g++" in build
    assert "g++" not in last
    assert re.search(r"^USER \d+:\d+$", last, re.MULTILINE)
    copied = re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE)
    root = DEPLOY.parent
    ignored = (root / ".dockerignore").read_text().splitlines()
    for each in copied:
        assert (root / each).exists(), each
        assert f"!{each}" in ignored, each
    uid = re.search(r"^USER (\d+):", last, re.MULTILINE)
    assert uid is not None
    assert int(uid[1]) == manifests()["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]


def test_the_container_by_hadolint() -> None:
    ran(tool("hadolint"), CONTAINER)
