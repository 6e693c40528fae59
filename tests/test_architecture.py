"""The rules of docs/architecture.md, kept. Each rule is shown to fail on a tree that breaks it."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from imports import Module, cycles, read

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = ("torch", "jax", "jaxlib", "tensorflow", "numpy", "transformers")
STAGES = ("genie.annotate", "genie.schedule", "genie.execute")
CORE_CONTENT = ("genie.graph", "genie.plan", "genie.codec", "genie.device", "genie.errors")
LARGEST_MODULE = 600

Modules = Mapping[str, Module]
Rule = Callable[[Modules], Iterator[str]]


def below(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def at(module: Module, line: int) -> str:
    return f"{module.name}:{line}"


def core_knows_no_framework_and_no_plugin(modules: Modules) -> Iterator[str]:
    plugins = {module.package for module in modules.values()} - {"genie"}
    for module in modules.values():
        if module.package == "genie":
            for each, prefix in module.reaches(*FRAMEWORKS, *plugins):
                yield f"{at(module, each.line)} imports {prefix}"


def content_imports_only(name: str, *allowed: str) -> Rule:
    def rule(modules: Modules) -> Iterator[str]:
        for module in modules.values():
            if below(module.name, name):
                for each, _ in module.reaches("genie"):
                    if not below(each.target, name, *allowed):
                        yield f"{at(module, each.line)} imports {each.target}"

    return rule


def wire_does_no_io(modules: Modules) -> Iterator[str]:
    io = ("socket", "asyncio", "threading", "select", "selectors", "ssl", "concurrent", "multiprocessing", "subprocess")
    for module in modules.values():
        if below(module.name, "genie.wire"):
            for each, prefix in module.reaches(*io, "genie.remote", "genie.plugins", "genie.runtime"):
                yield f"{at(module, each.line)} imports {prefix}"


def stages_know_no_other_stage(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        own = next((stage for stage in STAGES if below(module.name, stage)), None)
        if own:
            for each, prefix in module.reaches(*STAGES, "genie.api", "genie.runtime"):
                if prefix != own:
                    yield f"{at(module, each.line)} imports {prefix}"


def schedule_sees_data_only(modules: Modules) -> Iterator[str]:
    allowed = (*CORE_CONTENT, "genie.schedule", "genie.flops", "genie.interfaces", "genie.telemetry")
    for module in modules.values():
        if below(module.name, "genie.schedule"):
            for each, _ in module.reaches("genie"):
                if not below(each.target, *allowed) or each.name in ("Backend", "Session", "Transport", "Connection"):
                    yield f"{at(module, each.line)} imports {each.target} {each.name}".rstrip()


def plugins_know_no_other_plugin(modules: Modules) -> Iterator[str]:
    packages = {module.package for module in modules.values()} - {"genie"}
    for module in modules.values():
        if module.package != "genie":
            for each, prefix in module.reaches(*(packages - {module.package})):
                yield f"{at(module, each.line)} imports {prefix}"


def frontends_leave_planning_alone(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        if module.package in ("genie_pytorch", "genie_jax"):
            for each, prefix in module.reaches("genie.plan", "genie.schedule", "genie.execute", "genie.remote"):
                yield f"{at(module, each.line)} imports {prefix}"


def patterns_know_no_framework(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        if module.package.startswith("genie_patterns"):
            for each, prefix in module.reaches(*FRAMEWORKS):
                yield f"{at(module, each.line)} imports {prefix}"


def nobody_imports_anothers_privates(modules: Modules) -> Iterator[str]:
    packages = {module.package for module in modules.values()}
    for module in modules.values():
        for each in module.imports:
            package, *rest = each.target.split(".")
            private = [part for part in (*rest, each.name) if part.startswith("_") and not part.endswith("__")]
            if package in packages and package != module.package and private:
                yield f"{at(module, each.line)} imports {each.target} {each.name}".rstrip()


def there_are_no_cycles(modules: Modules) -> Iterator[str]:
    for cycle in cycles(modules):
        yield " ↔ ".join(cycle)


def modules_are_small(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        if module.lines > LARGEST_MODULE:
            yield f"{module.name} has {module.lines} lines"


def nothing_is_unpickled_or_evaluated(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        for each, prefix in module.reaches("pickle", "marshal", "shelve", "dill", "cloudpickle"):
            yield f"{at(module, each.line)} imports {prefix}"
        for name, line in module.calls:
            if name in ("eval", "exec"):
                yield f"{at(module, line)} calls {name}"


RULES: list[tuple[str, Rule, dict[str, str]]] = [
    # name, rule, and a tree that breaks it
    ("core → framework", core_knows_no_framework_and_no_plugin, {"genie.api": "def f():\n import torch.nn"}),
    (
        "core → plugin",
        core_knows_no_framework_and_no_plugin,
        {"genie.api": "from genie_x.y import z", "genie_x.y": "z = 1"},
    ),
    (
        "graph → errors",
        content_imports_only("genie.graph", "genie.errors"),
        {"genie.graph.rules": "from genie import plan", "genie.plan": ""},
    ),
    (
        "plan → graph, device, errors",
        content_imports_only("genie.plan", "genie.graph", "genie.device", "genie.errors"),
        {"genie.plan": "from genie.codec import encode", "genie.codec": "def encode(): ..."},
    ),
    (
        "inspect → graph, plan, errors",
        content_imports_only("genie.inspect", "genie.graph", "genie.plan", "genie.errors"),
        {"genie.inspect.page": "import genie.config", "genie.config": ""},
    ),
    (
        "match → graph",
        content_imports_only("genie.match", "genie.graph"),
        {"genie.match.pattern": "import genie.plan", "genie.plan": ""},
    ),
    (
        "codec → graph, plan, device, errors",
        content_imports_only("genie.codec", *CORE_CONTENT),
        {"genie.codec": "import genie.config", "genie.config": ""},
    ),
    ("wire → i/o", wire_does_no_io, {"genie.wire.frames": "import socket"}),
    (
        "stage → stage",
        stages_know_no_other_stage,
        {"genie.annotate": "from genie.schedule.cost import x", "genie.schedule.cost": "x = 1"},
    ),
    ("schedule → runtime", schedule_sees_data_only, {"genie.schedule": "from genie.plugins import registry"}),
    ("schedule → backends", schedule_sees_data_only, {"genie.schedule": "from genie.interfaces import Backend"}),
    ("plugin → plugin", plugins_know_no_other_plugin, {"genie_x": "import genie_y", "genie_y": ""}),
    (
        "frontend → planning",
        frontends_leave_planning_alone,
        {"genie_pytorch.a": "from genie.plan import ExecutionPlan"},
    ),
    ("pattern → framework", patterns_know_no_framework, {"genie_patterns_x": "import torch"}),
    (
        "another's private module",
        nobody_imports_anothers_privates,
        {"genie_x": "from genie._inner import y", "genie._inner": "y = 1"},
    ),
    (
        "another's private name",
        nobody_imports_anothers_privates,
        {"genie_x": "from genie.graph import _y", "genie.graph": "_y = 1"},
    ),
    (
        "cycle",
        there_are_no_cycles,
        {"genie.a": "from genie.b import y\nx = 1", "genie.b": "def f():\n from genie.a import x\ny = 1"},
    ),
    ("size", modules_are_small, {"genie.a": "x = 1\n" * (LARGEST_MODULE + 1)}),
    ("pickle", nothing_is_unpickled_or_evaluated, {"genie.a": "def f():\n from pickle import loads"}),
    ("eval", nothing_is_unpickled_or_evaluated, {"genie.a": "eval('1')"}),
]
NAMES = [name for name, _, _ in RULES]


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    found = read(ROOT)
    assert {"genie.api", "genie.graph.model", "genie.schedule.scheduler"} <= found.keys()
    return found


@pytest.mark.parametrize(("name", "rule", "broken"), RULES, ids=NAMES)
def test_the_rule_holds(modules: dict[str, Module], name: str, rule: Rule, broken: dict[str, str]) -> None:
    assert list(rule(modules)) == []


@pytest.mark.parametrize(("name", "rule", "broken"), RULES, ids=NAMES)
def test_the_rule_can_fail(tmp_path: Path, name: str, rule: Rule, broken: dict[str, str]) -> None:
    for module, source in broken.items():
        package = tmp_path / "genie-broken" / "src"
        path = package.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert list(rule(read(tmp_path)))


def test_imports_for_types_only_are_no_imports(tmp_path: Path) -> None:
    path = tmp_path / "genie-x" / "src" / "genie" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import torch\nelse:\n import json\n")
    assert [each.target for each in read(tmp_path)["genie.a"].imports] == ["typing", "json"]


def test_native_sources_are_small() -> None:
    sources = [path for path in ROOT.glob("genie-*/csrc/**/*") if path.suffix in (".cpp", ".h", ".cu")]
    large = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert {name: lines for name, lines in large.items() if lines > LARGEST_MODULE} == {}


@pytest.mark.parametrize("package", sorted(path.parent.name for path in ROOT.glob("genie-*/pyproject.toml")))
def test_every_package_is_typed_and_a_plugin(package: str) -> None:
    metadata = tomllib.loads((ROOT / package / "pyproject.toml").read_text())
    project = metadata["project"]
    assert project["name"] == package
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == ">=3.11"
    assert project["entry-points"]["genie"]
    module = "genie" if package == "genie-core" else package.replace("-", "_")
    assert (ROOT / package / "src" / module / "py.typed").is_file()


def test_the_minimum_python_is_what_runs_here() -> None:
    assert sys.version_info >= (3, 11)
