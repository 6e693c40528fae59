"""Programs of PyTorch on emulated devices: unmodified, with real kernels behind them."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import genie
import genie_pytorch  # noqa: F401  (makes the device)
from genie import emulate
from genie.device import Cluster, Device, LinkSpec
from genie.errors import OutOfMemory, RemoteOpError

from . import tiny_lm

MIB = 1 / 1024  # of a GiB
FIRST, SECOND = "remote_accelerator:0", "remote_accelerator:1"
LINKS = (LinkSpec("gpu0", "gpu1", gbps=25, latency_ms=0.2), LinkSpec("client", "gpu0", gbps=10, latency_ms=1))


def cluster(*mib: float, links: Sequence[LinkSpec] = LINKS) -> Cluster:
    devices = tuple(Device(f"gpu{number}", "GPU", size * MIB, 10, 25) for number, size in enumerate(mib))
    return Cluster(devices=devices, links=tuple(links), backend="emulated")


class Halves:
    """The first half of a graph on the first device, the rest on the last."""

    name = "halves"

    def place(self, graph: genie.Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        nodes = graph.nodes()
        return {node.id: devices[-(number >= len(nodes) // 2)].id for number, node in enumerate(nodes)}


@pytest.fixture
def connect(fresh_runtime: None) -> Iterator[Callable[..., None]]:
    genie.register_placement_strategy("halves", lambda settings: Halves())

    def start(*mib: float, **settings: Any) -> None:
        genie.shutdown()
        genie.init(cluster=cluster(*mib), timeout=30.0, **settings)

    yield start
    genie.shutdown()
    from genie.plugins import registry

    registry.unregister("placement_strategy", "halves")


def layers(count: int, width: int = 256) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(count) for layer in (nn.Linear(width, width), nn.GELU()))).eval()


def test_a_program_on_the_second_device(connect: Callable[..., None]) -> None:
    connect(64, 64)
    model, x = layers(2), torch.randn(4, 256)
    expected = model(x)
    result = model.to(SECOND)(x.to(SECOND))
    torch.testing.assert_close(result.cpu(), expected)
    busy = emulate.report().busy
    assert busy["gpu1"] > 0 == busy["gpu0"]


def test_only_the_second_device_is_out_of_memory(connect: Callable[..., None]) -> None:
    connect(64, 2)
    large = torch.zeros(384, 1024)  # 1.5 MiB
    here = [large.to(FIRST) for _ in range(3)]
    there = large.to(SECOND)
    assert sum(float(each.sum()) for each in here) == 0
    with pytest.raises(OutOfMemory, match="needs 1572864 bytes, 1572864 of the device's 2097152 are in use") as caught:
        large.to(SECOND).sum().item()
    assert "gpu1" in str(caught.value)
    assert float(there.sum()) == 0  # the session lives on
    assert float((here[0] + here[1]).sum()) == 0


def test_what_an_operator_makes_counts(connect: Callable[..., None]) -> None:
    """What estimates do not foresee, the device refuses."""
    connect(64, 2)
    x = torch.ones(100_000, device=SECOND)
    count = torch.tensor(8, device=SECOND)
    with pytest.raises(OutOfMemory, match=r"needs \d+ bytes, \d+ of the device's 2097152 are in use") as caught:
        x.repeat_interleave(count).sum().item()
    assert "gpu1" in str(caught.value)


def test_a_failing_operator_on_the_second_device_names_the_users_line(connect: Callable[..., None]) -> None:
    connect(64, 64)
    ids = torch.tensor([1, 99], device=SECOND)
    table = torch.zeros(10, 4, device=SECOND)
    failing = traceback.extract_stack()[-1].lineno or 0
    looked_up = table[ids]  # this line is failing + 1
    with pytest.raises(RemoteOpError, match="out of range|out of bounds") as caught:
        looked_up.cpu()
    assert f"test_emulated.py:{failing + 1}" in str(caught.value)
    assert "gpu1" in str(caught.value)


def test_a_model_that_neither_device_holds_alone(connect: Callable[..., None]) -> None:
    connect(4, 4, placement="halves")
    model, x = layers(24), torch.randn(8, 256)  # 6 MiB of weights
    with torch.no_grad():
        expected = model(x)
        run = genie.compile(model)
        torch.testing.assert_close(run(x), expected)
        emulate.reset()
        torch.testing.assert_close(run(x), expected)
    report = emulate.report()
    assert report.busy["gpu0"] > 0 < report.busy["gpu1"]
    assert report.traffic["gpu0", "gpu1"].bytes == 8 * 256 * 4
    (moved,) = (span for span in report.trace if span.where == "gpu0 → gpu1")
    assert moved.what == "float32[8, 256]"
    assert moved.finish - moved.start == pytest.approx(0.2e-3 + 8192 / (25e9 / 8))
    stats = genie.get_stats()
    assert stats["values_carried"] == 0 < stats["values_moved"]


def test_a_failing_operator_behind_a_transfer_names_the_users_line(connect: Callable[..., None]) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            doubled = (x + x) * 2
            return doubled[at] + 1

    connect(64, 64, placement="halves")
    run = genie.compile(Odd())
    torch.testing.assert_close(run(torch.ones(4), torch.tensor([1])), torch.tensor([5.0]))
    with pytest.raises(RemoteOpError, match="out of range|out of bounds") as caught:
        run(torch.ones(4), torch.tensor([7]))
    assert "gpu1" in str(caught.value)
    assert "test_emulated.py" in str(caught.value)
    torch.testing.assert_close(run(torch.ones(4), torch.tensor([2])), torch.tensor([5.0]))


def test_training_is_that_of_the_cpu(connect: Callable[..., None]) -> None:
    connect(256, 256, debug_checks=True)
    model, twin, x = layers(2), layers(2), torch.randn(4, 256)
    twin.to(SECOND)
    for each, data in ((model, x), (twin, x.to(SECOND))):
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-3)
        for _ in range(3):
            loss = each(data).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(theirs.cpu(), mine)


def test_generation_is_that_of_the_cpu(connect: Callable[..., None]) -> None:
    connect(256, 256, debug_checks=True)
    expected = tiny_lm.generate(tiny_lm.model())
    assert tiny_lm.generate(tiny_lm.model().to(SECOND)) == expected
    assert emulate.report().busy["gpu0"] == 0


def test_generation_over_two_devices_is_that_of_the_cpu(connect: Callable[..., None]) -> None:
    """Every other block is on the other device, its caches with it."""
    connect(64, 64, debug_checks=True)
    lm = tiny_lm.model()
    expected = tiny_lm.generate(lm)
    lm.to("remote_accelerator")
    for number, block in enumerate(lm.blocks):
        genie.mark(block, device=f"gpu{number}")
    assert tiny_lm.generate(lm) == expected
    report = emulate.report()
    assert report.busy["gpu0"] > 0 < report.busy["gpu1"]
    assert report.traffic["gpu0", "gpu1"].values >= 16


def test_virtual_times_of_a_program_repeat(connect: Callable[..., None]) -> None:
    seconds = []
    for _ in range(2):
        connect(64, 64)
        model, x = layers(3), torch.randn(4, 256)
        with torch.no_grad():
            for device in (FIRST, SECOND):
                moved = layers(3).to(device)
                for _ in range(3):
                    moved(x.to(device)).sum().item()
        del model, moved
        seconds.append(emulate.report().seconds)
    assert seconds[0] == seconds[1] > 0


def test_a_slower_link_makes_a_slower_program(connect: Callable[..., None]) -> None:
    seconds = {}
    for gbps in (1, 25):
        genie.shutdown()
        links = [LinkSpec("client", "gpu0", gbps=gbps, latency_ms=0)]
        genie.init(cluster=cluster(64, links=links))
        x = torch.ones(1 << 18)
        x.to(FIRST).cpu()
        seconds[gbps] = emulate.report().seconds
    assert seconds[1] / seconds[25] == pytest.approx(25)


def test_two_threads_on_two_devices(connect: Callable[..., None]) -> None:
    connect(64, 64)
    results: dict[str, float] = {}

    def work(device: str) -> None:
        x = torch.ones(64, 64, device=device)
        for _ in range(50):
            x = x @ torch.eye(64, device=device)
        results[device] = float(x.sum())

    threads = [threading.Thread(target=work, args=(device,)) for device in (FIRST, SECOND)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {FIRST: 4096.0, SECOND: 4096.0}
    assert all(busy > 0 for busy in emulate.report().busy.values())
