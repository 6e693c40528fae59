"""Calibration of a real device, and the commands around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genie.calibration import Effort, calibrate, reach
from genie.calibration.kernels import Given, Kernel, kernels, scout
from genie.cli import main
from genie.device import Device
from genie.errors import UnsupportedOperation
from genie.graph import Ref, TensorSpec
from genie.profile import Profile, signature_of, trait_of
from genie.remote import NodeServer, RemoteBackend
from genie.schedule import RooflineCostModel
from genie.testing import MemoryTransport, NullBackend
from genie_backend_local import LocalBackend, LocalSession

TINY = Effort(seconds=0.6, kernel=3e-4, memory=8 << 20, rounds=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_kernel_runs_and_is_found_again_in_its_row(session: LocalSession, dtype: str) -> None:
    """What is measured is what was meant: the row's work is the kernel's."""
    from genie.calibration import measure

    small = [each for each in kernels(dtype) if sum(sum(given.shape) for given in each.given) < 6000]
    small = [each for each in small if each.trait().flops < 2e7 and each.trait().moved < 1 << 23]
    session.profile(share=1.0)
    rows = measure._measured(measure._Driver(session), small, 1, 5.0)
    expected = {(kernel.target, kernel.trait()) for kernel in small}
    assert {(row.target, trait_of(signature_of(row))) for row in rows} == expected
    assert len(small) > 20


def test_a_calibration_has_rooflines_that_explain_its_rows(session: LocalSession) -> None:
    measured = calibrate(session, TINY)
    assert {"gemm", "elementwise", "reduction", "view"} <= set(measured.calibration.classes)
    model = RooflineCostModel({session.device.id: measured.calibration})
    roof = model.roof(session.device)
    ratios = sorted(roof.estimate(trait_of(signature_of(row))).seconds / row.typical for row in measured.rows)
    assert 0.2 < ratios[len(ratios) // 2] < 5
    assert session.stats()["memory_bytes"] == 0  # it tidies up


def test_a_node_is_calibrated_through_its_session_alone() -> None:
    transport = MemoryTransport(stall_timeout=20.0)
    local = LocalBackend()
    with NodeServer(local, transport, "node:0", devices=("cpu",)) as node:
        backend = RemoteBackend("memory", transport, (node.address,))
        try:
            device = backend.devices()[0]
            assert device.hardware == local.devices()[-1].hardware
            session = backend.connect(device)
            measured = calibrate(session, TINY)
            link = reach(session, 0.05, most=1 << 20)
        finally:
            backend.close()
    assert len(measured.rows) > 20
    assert 0 < link.latency < 1
    assert link.up > 1e5
    assert link.down > 1e5


def test_a_backend_that_does_not_time_is_told() -> None:
    backend = NullBackend()
    with pytest.raises(UnsupportedOperation, match="does not time operators"):
        calibrate(backend.connect(backend.devices()[0]), TINY)


def test_kernels_cover_the_classes() -> None:
    kinds = {kernel.trait().kind for kernel in kernels("float32")}
    assert kinds >= {
        "gemm", "batched gemm", "attention", "convolution", "reduction", "elementwise", "gather", "layout", "view",
        "random", "other",
    }  # fmt: skip
    assert scout("bfloat16").made[0].dtype == "bfloat16"


def test_a_kernels_trait_is_its_work() -> None:
    given = (Given((4, 8), "float32"), Given((8, 2), "float32", hot=False))
    trait = Kernel("aten::mm", given, (Ref(0), Ref(1)), (TensorSpec((4, 2), "float32"),)).trait()
    assert (trait.flops, trait.moved) == (2 * 4 * 8 * 2, 4 * (32 + 16 + 8))


# --- the commands ------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENIE_PROFILE_DIR", str(tmp_path))
    return tmp_path


def command(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def stored(data: Path) -> Profile:
    profile = Profile(data)
    assert profile.load() == ()
    return profile


def test_the_commands(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genie.cli.profiles.QUICK", TINY)
    made = command(capsys, "calibrate", "--device", "cpu", "--quick")
    (device,) = made["devices"]
    assert device["device"] == "cpu"
    assert device["rows"] > 20
    assert device["link"] is None
    assert device["calibration"]["classes"]["gemm"]["samples"] >= 4
    (record,) = stored(data).records()
    assert record.calibration is not None
    (shown,) = command(capsys, "profile", "show")
    assert shown["key"] == record.key
    assert len(shown["rows"]) == len(record.rows)
    assert command(capsys, "profile", "show", "--device", "no such device") == []
    assert main(["profile", "show"]) == 0
    table = capsys.readouterr().out
    assert "aten::" in table
    assert "dtype" in table
    assert "float32" in table
    exported = command(capsys, "profile", "export", str(data / "all.json"))
    assert exported["devices"] == 1
    assert json.loads((data / "all.json").read_text())[0]["key"] == record.key
    assert command(capsys, "profile", "clear", "--device", "no such device") == {"removed": []}
    assert len(command(capsys, "profile", "clear")["removed"]) == 1
    assert command(capsys, "profile", "show") == []


def test_a_bad_file_is_named_and_can_be_cleared(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = data / "0123456789abcdef.profile"
    bad.write_bytes(b"nonsense")
    assert main(["profile", "show", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == []
    assert str(bad) in told.err.replace("\n", "")
    assert command(capsys, "profile", "clear")["removed"] == [str(bad)]


def test_an_unknown_device_is_told(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--device", "gpu77"]) == 1
    assert "there is no device 'gpu77'" in capsys.readouterr().err


def test_the_client_of_a_calibration_needs_no_framework() -> None:
    """The command imports none; the local backend does, where it runs."""
    source = "import sys, genie.cli, genie.calibration; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True, env=os.environ
    )
    assert done.stdout.strip() == "False False"


def test_hardware_is_told_by_who_has_it() -> None:
    cpu = LocalBackend().devices()[-1]
    assert "cores" in cpu.hardware
    assert Device(id="x", type="CPU", memory_gb=1, compute_tflops=1).hardware == ""
