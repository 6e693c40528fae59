"""The frontend's own interface: values in and out, what it accepts, how it is found."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import genie
from genie.graph import DTYPES
from genie_pytorch.dtypes import CODE_OF_NAME, dtype_named, name_of
from genie_pytorch.frontend import PyTorchFrontend

DEVICE = "remote_accelerator"
ALL = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]
ALL += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)], ids=str)
def test_values_go_out_and_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    frontend = PyTorchFrontend()
    host = torch.randint(0, 2, shape).to(dtype)
    for tensor in (host, host.t() if host.dim() == 2 else host):
        spec, data = frontend.to_host(tensor)
        assert (spec.shape, spec.dtype) == (tuple(tensor.shape), name_of(dtype))
        assert memoryview(data).nbytes == spec.nbytes
        back = frontend.from_host(spec, data)
        assert back.dtype == dtype
        assert torch.equal(back.to(torch.complex64), tensor.to(torch.complex64))


def test_nothing_is_copied_that_need_not_be() -> None:
    frontend = PyTorchFrontend()
    host = torch.arange(3.0)
    spec, data = frontend.to_host(host)
    host[0] = 7
    assert frontend.from_host(spec, data)[0] == 7
    spec, data = frontend.to_host(torch.ones(3, device=DEVICE) * 2)
    assert frontend.from_host(spec, bytes(data)).tolist() == [2, 2, 2]
    frontend.from_host(spec, bytes(data)).add_(1)  # of read-only bytes it makes its own


def test_every_dtype_has_one_name() -> None:
    for name in CODE_OF_NAME:
        assert name in DTYPES
        assert name_of(dtype_named(name)) == name


def test_what_it_accepts() -> None:
    frontend = PyTorchFrontend()
    assert frontend.accepts(nn.Linear(1, 1))
    assert frontend.accepts(torch.ones(1))
    assert frontend.accepts(torch.relu)
    assert not frontend.accepts([1.0])
    assert not frontend.accepts(None)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def test_genie_alone_is_enough_for_a_capture() -> None:
    code = (
        "import genie, sys\nassert 'torch' not in sys.modules\nwith genie.capture():\n import torch\n x = torch.ones(2)"
    )
    assert python(code + "\nprint(x.device, len(genie.get_graph().nodes()))") == "remote_accelerator:0 1"


def test_torch_alone_is_enough_for_the_device() -> None:
    code = "import torch\nx = torch.ones(2, device='remote_accelerator') + 1\nimport genie"
    assert python(code + "\nprint(len(genie.get_graph().nodes()), x.tolist())") == "2 [2.0, 2.0]"


def test_the_package_alone_is_enough() -> None:
    code = "import genie_pytorch, torch\nprint(genie_pytorch.LazyTensor.ones(2).device, torch.remote_accelerator)"
    assert python(code).startswith("remote_accelerator:0 <module 'genie_pytorch.device'")


def test_a_plain_program_is_left_alone() -> None:
    """Nothing that PyTorch does by itself changes because this package is installed."""
    code = "import torch, sys\nfrom torch.nn.modules import module\nassert not module._has_any_global_hook()\n"
    code += "assert torch.ones(2).device.type == 'cpu'\nprint('torch._dynamo' in sys.modules)"
    assert python(code) == "False"


def test_captured_operators_are_logged_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch\n(torch.ones(2, device='remote_accelerator') + 1).cpu()"
    for wanted in ("1", "0"):
        monkeypatch.setenv("GENIE_LOG_INTERCEPTS", wanted)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "captured" in line]
        assert ["aten::ones" in line or "aten::add.Tensor" in line for line in said] == [True, True] * int(wanted)


def test_plugins_name_it() -> None:
    from genie.plugins import registry

    assert "pytorch" in registry.names("frontend")
    assert genie.settings() is not None
