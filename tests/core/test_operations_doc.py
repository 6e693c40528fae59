"""docs/operations.md and docs/cli.md say what there is: every metric, every span, every command and option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from prometheus_client.parser import text_string_to_metric_families

from genie.cli import app
from genie.config import KEYS
from genie.remote import NodeServer
from genie.remote.node.meters import BOUNDS, MOST_TENANTS, STAGES
from genie.remote.seen.metrics import Metrics
from genie.testing import MemoryTransport, NullBackend

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
CLI = (ROOT / "docs" / "cli.md").read_text()


def test_every_metric_is_told_with_its_labels() -> None:
    rows = re.findall(r"^\| (`genie_[^|]*) \|([^|]*)\|", OPERATIONS, re.MULTILINE)
    told = {name: labels for names, labels in rows for name in re.findall(r"`(genie_\w+)`", names)}
    with NodeServer(NullBackend(), MemoryTransport(), "node:0") as node:
        families = [
            family
            for family in text_string_to_metric_families(Metrics(node).text().decode())
            if family.name.startswith("genie_")
        ]
    names = {family.name + ("_total" if family.type == "counter" else ""): family for family in families}
    assert told.keys() == names.keys()
    for name, family in names.items():
        for sample in family.samples:
            labels = set(sample.labels) - {"le"}
            assert labels == {label.strip() for label in told[name].split(",") if label.strip()}, name


def test_stages_and_bounds_are_those_told() -> None:
    for stage in STAGES:
        assert re.search(rf"^\| `{stage}` \|", OPERATIONS, re.MULTILINE)
    assert f"a histogram of {len(BOUNDS)} buckets, {BOUNDS[0] * 1e6:.1f} µs to {BOUNDS[-1]:.0f} s" in OPERATIONS
    assert f"The first {MOST_TENANTS} have" in OPERATIONS


def test_every_span_is_told() -> None:
    sources = [*(ROOT / "genie-core" / "src").rglob("*.py"), *(ROOT / "genie-pytorch" / "src").rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    made = set(re.findall(r'(?:tracing\.\w+|_span)\(\s*"(genie\.[\w.]+)"', text))
    made |= set(re.findall(r'Kind\.\w+: "(genie\.node\.\w+)"', text))
    assert len(made) > 18
    told = set(re.findall(r"`(genie\.[a-z_.]+)`", OPERATIONS))
    told |= {f"genie.node{short}" for short in re.findall(r"`(\.[a-z]+)`", OPERATIONS)}
    assert made <= told
    assert {name for name in told if name.startswith("genie.node.")} <= made


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for part, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {part}")
    if not hasattr(command, "commands"):
        yield name, command


def test_every_command_and_option_is_told() -> None:
    found = dict(commands(typer.main.get_command(app), "genie"))
    assert len(found) > 12
    blocks = re.split(r"\n\n", CLI)
    for name, command in found.items():
        (block,) = [block for block in blocks if block.startswith("|") and re.search(rf"`{name}\b", block)]
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option.startswith("--"):
                    assert f"`{option}`" in block, f"{name} {option}"
    # And nothing else.
    real = {
        option for command in found.values() for each in command.params for option in (*each.opts, *each.secondary_opts)
    }
    assert set(re.findall(r"`(--[a-z-]+)`", CLI)) <= real


def test_every_setting_is_told() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert [key for key in KEYS if f"| `{key}` |" not in text] == []
