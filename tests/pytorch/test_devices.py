"""Several devices: each index is a session of its own, and nothing crosses unasked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import genie
from genie.device import Device
from genie.errors import ConfigError, SchedulingError
from genie.plugins import registry
from genie_backend_local import LocalBackend, LocalSession
from genie_pytorch import LazyTensor

FIRST, SECOND = "remote_accelerator:0", "remote_accelerator:1"


class Twins:
    """This machine's CPU, twice."""

    name = "twins"

    def __init__(self) -> None:
        self._local = LocalBackend()

    def devices(self) -> tuple[Device, ...]:
        cpu = self._local.devices()[0]
        return tuple(_named(cpu, f"twin{number}") for number in range(2))

    def connect(self, device: Device) -> LocalSession:
        return self._local.connect(self._local.devices()[0])

    def close(self) -> None:
        self._local.close()


def _named(device: Device, name: str) -> Device:
    return Device(id=name, type=device.type, memory_gb=device.memory_gb, compute_tflops=device.compute_tflops)


@pytest.fixture(autouse=True)
def twins(local_backend: None) -> Iterator[None]:
    genie.shutdown()
    genie.register_backend("twins", lambda settings: Twins())
    genie.set_backend("twins")
    yield
    genie.shutdown()
    registry.unregister("backend", "twins")


def test_indices_are_the_clusters_devices() -> None:
    assert torch.remote_accelerator.device_count() == 2  # type: ignore[attr-defined]
    a, b = torch.ones(2, device=FIRST), torch.full((2,), 2.0, device=SECOND)
    assert (a.device.index, b.device.index) == (0, 1)
    assert (a + 1).tolist() == [2, 2]
    assert (b + 1).tolist() == [3, 3]
    assert a.to(SECOND).device.index == 1
    assert (a.to(SECOND) + b).tolist() == [3, 3]
    b.copy_(a)
    assert b.tolist() == [1, 1]


def test_mixing_devices_is_pytorchs_error() -> None:
    with pytest.raises(RuntimeError, match="at least two devices, remote_accelerator:0 and remote_accelerator:1"):
        torch.ones(2, device=FIRST) + torch.ones(2, device=SECOND)


def test_the_current_device() -> None:
    accelerator = torch.remote_accelerator  # type: ignore[attr-defined]
    with accelerator.device(1):
        assert torch.ones(1, device="remote_accelerator").device.index == 1
        assert LazyTensor.zeros(1).device.index == 1
        with genie.capture():
            assert torch.ones(1).device.index == 1
            assert (torch.ones(3, device="cpu") + 1).device.index == 1
    assert torch.ones(1, device="remote_accelerator").device.index == 2  # nothing said: all of them


def test_each_device_has_its_generator() -> None:
    torch.manual_seed(4)
    native = torch.randn(3)
    torch.manual_seed(4)
    assert torch.equal(torch.randn(3, device=FIRST).cpu(), native)
    assert torch.equal(torch.randn(3, device=SECOND).cpu(), native)


def test_a_region_over_two_devices_is_one_graph() -> None:
    with genie.capture():
        x = torch.ones(2, device=FIRST) + 1
        y = torch.ones(2, device=SECOND).exp()
        z = x + torch.ones(2, device="cpu")
    assert z.device.index == 0
    operations = [node.operation for node in genie.get_graph().nodes()]
    assert operations == ["aten::ones", "aten::add", "aten::add", "aten::ones", "aten::exp"]
    assert y.tolist() == pytest.approx([2.718281746] * 2)


def test_host_operands_follow_the_device_operand() -> None:
    host = torch.ones(3)
    with genie.capture():
        assert (torch.ones(3, device=SECOND) * host).device.index == 1
        assert (torch.ones(3, device=FIRST) * host).device.index == 0


def test_gradients_across_devices() -> None:
    x = torch.ones(2, device=FIRST, requires_grad=True)
    y = (x * 3).to(SECOND).pow(2).sum()
    y.backward()
    assert x.grad.device.index == 0
    assert x.grad.tolist() == [18, 18]


@torch.no_grad()
def test_run_on_a_chosen_device() -> None:
    model = torch.nn.Linear(3, 2)
    x = torch.ones(1, 3)
    second = genie.devices()[1]
    for _ in range(2):
        y = genie.run(model, x, devices=[second])
        assert torch.equal(y, model(x))
    assert genie.engine(1).session.stats()["executions"] >= 2


def test_an_index_that_there_is_not_is_refused_with_those_there_are() -> None:
    accelerator = torch.remote_accelerator  # type: ignore[attr-defined]
    for use in (lambda: torch.ones(2, device="remote_accelerator:3").tolist(), lambda: accelerator.set_device(3)):
        with pytest.raises(
            ConfigError, match=r"there is no device 3: the backend 'twins' has 2 \(twin0, twin1\)"
        ) as caught:
            use()
        assert caught.value.hint == "0 is twin0, 1 is twin1; 2, or no number, is all of them"
    assert torch.ones(1, device="remote_accelerator").device.index == 2


class Noisy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        return self.drop(x)  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_mark_that_parts_random_numbers_says_which_module_and_line() -> None:
    first, second = genie.devices()
    model = genie.mark(Noisy(), device=second)
    with pytest.raises(SchedulingError, match=f"random numbers are drawn on {first.id}") as caught:
        genie.run(model, torch.ones(1, 3))
    line = Noisy.forward.__code__.co_firstlineno + 2
    assert caught.value.where.endswith(f"(aten::native_dropout) in 'drop' at {__file__}:{line}")
    assert "leave it unmarked, or mark it for that device" in caught.value.hint
    genie.mark(model.drop, device=first)
    genie.run(model, torch.ones(1, 3))
    assert genie.run(model.eval(), torch.ones(1, 3)).shape == (1, 3)


class InPlace(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.ReLU(True), torch.nn.ReLU(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x + 1)
        return self.b(x)  # type: ignore[no-any-return]


def test_marks_that_part_written_memory_say_which_modules_and_lines() -> None:
    model = InPlace()
    genie.mark(model.a, device="twin0")
    genie.mark(model.b, device="twin1")
    x = torch.ones(3, device="remote_accelerator")
    with pytest.raises(SchedulingError, match="written in place") as caught:
        model(x).cpu()
    line = InPlace.forward.__code__.co_firstlineno
    for number, path in ((1, "a"), (2, "b")):
        assert f"(aten::relu_) in '{path}' at {__file__}:{line + number}" in caught.value.where


def test_a_mark_for_a_device_that_there_is_not_says_where() -> None:
    model = genie.mark(torch.nn.Linear(3, 3), device="twin7")
    with pytest.raises(SchedulingError, match="there is no device 'twin7'") as caught:
        genie.run(model, torch.ones(1, 3))
    assert __file__ in caught.value.where
    assert caught.value.hint == "devices: twin0, twin1"
