"""Files, plugins and installations that are broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from .conftest import Node, StartProgram, command, environment

PROGRAM = """
    import torch, genie_pytorch
    print("sum", (torch.ones(2, device="remote_accelerator") + 1).sum().item(), flush=True)
"""


def works(program: StartProgram, node: Node, **settings: str) -> None:
    running = program(PROGRAM, node, **settings)
    assert running.said("sum") == "sum 4.0\n"
    assert running.ended() == (0, "", "")


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of a model's step, captured for real."""
    path = tmp_path_factory.mktemp("plan") / "step.plan"
    source = f"""
import torch, genie, genie_pytorch, tiny_lm
from genie import codec
lm = tiny_lm.model()
with torch.no_grad(), genie.capture():
    lm(tiny_lm.PROMPT)[0].argmax(-1).cpu()
graph = genie.annotate(genie.get_graph())
device = genie.Device(id="gpu0", type="GPU", memory_gb=1, compute_tflops=1)
codec.save(genie.Scheduler([device]).schedule(graph), {str(path)!r})
"""
    done = subprocess.run([sys.executable, "-c", source], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return path


def test_a_whole_file_is_printed(plan_file: Path) -> None:
    done = command("inspect", str(plan_file), "--text")
    assert done.returncode == 0, done.stderr
    assert "aten::scaled_dot_product_attention" in done.stdout
    assert "blocks.1" in done.stdout


def test_a_spoiled_file_is_refused(plan_file: Path, tmp_path: Path) -> None:
    """In one process, since there are many ways: the command itself is called, as its entry point does."""
    source = """
import sys
from pathlib import Path
from genie.cli import main
whole = Path(sys.argv[1]).read_bytes()
ways = [whole[:n] for n in (0, 3, 10, len(whole) // 2, len(whole) - 1)]
ways += [whole + b"x"]
step = max(1, len(whole) // 60)
for at in range(0, len(whole), step):
    ways.append(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1:])
path = Path(sys.argv[2])
for way in ways:
    path.write_bytes(way)
    assert main(["inspect", str(path)]) == 1, way[:20]
    assert main(["explain", str(path), "0"]) == 1
print(len(ways))
"""
    path = tmp_path / "spoiled.plan"
    done = subprocess.run(
        [sys.executable, "-c", source, str(plan_file), str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ways = int(done.stdout)
    complaints = [line for line in done.stderr.splitlines() if line.startswith(("CodecError: ", "VersionMismatch: "))]
    assert len(complaints) == 2 * ways
    assert done.stderr.count(str(path)) >= 2 * ways
    assert "Traceback" not in done.stderr


# --- plugins -------------------------------------------------------------------------------------


@pytest.fixture
def broken_plugin(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    info = site / "acme_chip-3.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-chip\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[genie]\nchip = acme_chip\n")
    (site / "acme_chip.py").write_text("import a_driver_that_is_not_installed\n")
    return site


def test_a_plugin_that_fails_to_import(broken_plugin: Path, program: StartProgram, node: Node) -> None:
    path = {"PYTHONPATH": os.pathsep.join([environment()["PYTHONPATH"], str(broken_plugin)])}
    done = command("plugins", "list", "--json", **path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    (row,) = [row for row in rows if row["distribution"] == "acme-chip"]
    assert "a_driver_that_is_not_installed" in row["error"]
    assert row["version"] == "3.1"
    by_name = {(row["kind"], row["name"]): row["error"] for row in rows}
    assert by_name["backend", "local"] == by_name["backend", "tcp"] == by_name["frontend", "pytorch"] == ""

    done = command("serve", "--backend", "chip", "--port", "0", **path)
    assert done.returncode == 1
    assert done.stderr.startswith("Plugin")
    assert "a_driver_that_is_not_installed" in done.stderr
    assert "acme-chip" in done.stderr
    assert "Traceback" not in done.stderr
    works(program, node, **path)


# --- torch ---------------------------------------------------------------------------------------


def built_with(package: str, torch_version: str, target: Path) -> dict[str, str]:
    """Settings under which ``package`` is as an installation built with another torch would have it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    copied = target / package
    copied.mkdir(parents=True)
    for file in Path(spec.submodule_search_locations[0]).iterdir():
        if file.suffix == ".py":
            (copied / file.name).write_bytes(file.read_bytes())
        elif "_torch_" in file.name:
            name, _, ending = file.name.partition(".")
            stem = name[: name.index("_torch_") + len("_torch_")]
            (copied / f"{stem}{re.sub(r'[^0-9a-z]', '_', torch_version)}.{ending}").symlink_to(file)
    return {"PYTHONPATH": os.pathsep.join([str(target), environment()["PYTHONPATH"]])}


def test_a_frontend_built_with_another_torch(tmp_path: Path, program: StartProgram, node: Node) -> None:
    settings = built_with("genie_pytorch", "2.11.0+cu128", tmp_path / "other")
    script = "import torch, genie_pytorch; torch.ones(1, device='remote_accelerator')"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(**settings), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "TorchMismatch: " in done.stderr
    assert "2_11_0_cu128" in done.stderr
    assert torch.__version__ in done.stderr
    assert "pip install" in done.stderr
    works(program, node)


def test_a_backend_built_with_another_torch(tmp_path: Path) -> None:
    settings = built_with("genie_backend_local", "2.11.0+cu128", tmp_path / "other")
    done = command("serve", "--port", "0", **settings)
    assert done.returncode == 1
    assert "TorchMismatch" in done.stderr
    assert "2_11_0_cu128" in done.stderr
    assert torch.__version__ in done.stderr
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr
