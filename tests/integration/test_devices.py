"""Several devices: two nodes, one node with two; and settings that contradict each other."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

import genie
from genie.errors import ConfigError, GenieError

from . import tiny_lm
from .conftest import MakeNode, Node

FIRST, SECOND = "remote_accelerator:0", "remote_accelerator:1"


@pytest.fixture
def two(node: Node, make_node: MakeNode, user: Callable[..., None]) -> tuple[Node, Node]:
    other = make_node("--threads", "1")
    user(node, other)
    return node, other


def test_two_nodes_are_two_devices(two: tuple[Node, Node]) -> None:
    assert genie.device_count() == 2
    assert torch.remote_accelerator.device_count() == 2  # type: ignore[attr-defined]
    assert [device.address for device in genie.devices()] == [node.address for node in two]
    x = torch.arange(3.0, device=FIRST)
    y = torch.arange(3.0, device=SECOND) + 10
    assert (x.device.index, y.device.index) == (0, 1)
    assert [node.sessions() for node in two] == [1, 1] or y.tolist()  # a session exists from the first use on
    assert (x * 2).tolist() == [0.0, 2.0, 4.0]
    assert y.tolist() == [10.0, 11.0, 12.0]
    assert [node.sessions() for node in two] == [1, 1]

    with pytest.raises(RuntimeError, match="same device") as caught:
        (x + y).cpu()
    assert FIRST in str(caught.value)
    assert SECOND in str(caught.value)

    moved = x.to(SECOND)
    assert moved.device.index == 1
    assert (moved + y).tolist() == [10.0, 12.0, 14.0]
    assert y.to(FIRST).add(x).tolist() == [10.0, 12.0, 14.0]
    y.copy_(x)
    assert y.tolist() == [0.0, 1.0, 2.0]

    with torch.remote_accelerator.device(1):  # type: ignore[attr-defined]
        assert torch.ones(1, device="remote_accelerator").device.index == 1
    assert torch.ones(1, device="remote_accelerator").device.index == 2  # no index: all of them
    with pytest.raises(GenieError, match="no device 3"):
        torch.ones(1, device="remote_accelerator:3").cpu()

    # a model there and its twin here say the same
    expected = tiny_lm.generate(tiny_lm.model(), count=6)
    assert tiny_lm.generate(tiny_lm.model().to(SECOND), count=6) == expected
    torch.manual_seed(3)
    noise = torch.randn(4, device=SECOND)
    torch.manual_seed(3)
    assert torch.equal(noise.cpu(), torch.randn(4))


def test_one_node_is_lost_and_the_other_works(two: tuple[Node, Node]) -> None:
    x, y = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND) * 2
    assert x.tolist() == [1.0, 1.0]
    assert y.tolist() == [2.0, 2.0]
    two[1].stop()
    with pytest.raises(GenieError) as caught:
        (y + 1).cpu()
    assert two[1].address in str(caught.value)
    assert (x + 1).tolist() == [2.0, 2.0]


def test_one_node_with_two_devices(make_node: MakeNode, user: Callable[..., None]) -> None:
    twin = make_node("--device", "cpu", "--device", "cpu")
    user(twin)
    assert genie.device_count() == 2
    ids = [device.id for device in genie.devices()]
    assert len(set(ids)) == 2, ids
    x, y = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
    assert (x + 1).tolist() == [2.0, 2.0]
    assert (y + 2).tolist() == [3.0, 3.0]
    assert (x.to(SECOND) + y).tolist() == [2.0, 2.0]
    assert twin.sessions() == 2


def test_two_threads_on_one_device(node: Node, user: Callable[..., None]) -> None:
    user(node)
    models = [tiny_lm.model(seed).to(FIRST) for seed in range(2)]
    expected = [tiny_lm.generate(tiny_lm.model(seed), count=12) for seed in range(2)]
    found: list[list[int]] = [[], []]
    failed: list[BaseException] = []
    together = threading.Barrier(2, timeout=20)

    def work(index: int) -> None:
        try:
            together.wait()
            for _ in range(3):
                found[index] = tiny_lm.generate(models[index], count=12)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failed, failed
    assert found == expected


def test_a_tensor_made_by_one_thread_and_used_by_another(node: Node, user: Callable[..., None]) -> None:
    user(node)
    x = torch.ones(3, device=FIRST)
    for _ in range(20):
        made: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda made=made: made.append(x + 1))
        thread.start()
        thread.join(20)
        made[0].mul_(2)
        assert made[0].tolist() == [4.0] * 3


# --- settings ------------------------------------------------------------------------------------


def test_init_twice(node: Node, user: Callable[..., None]) -> None:
    user(node)
    x = torch.ones(2, device=FIRST)
    genie.init(nodes=[node.address])  # the same again: nothing happens
    for other in ({"nodes": ["127.0.0.1:1"]}, {"backend": "local"}, {"timeout": 3.0}):
        with pytest.raises(ConfigError, match=f"already running with {next(iter(other))}=") as caught:
            genie.init(**other)
        assert "genie.shutdown()" in caught.value.hint
    assert (x + 1).tolist() == [2.0, 2.0]


def test_after_a_shutdown_old_tensors_say_so_and_new_ones_work(node: Node, user: Callable[..., None]) -> None:
    user(node)
    sent = torch.ones(2, device=FIRST)
    assert sent.tolist() == [1.0, 1.0]
    pending = sent + 1
    genie.shutdown()
    node.wait_for_sessions(0)
    genie.init(nodes=[node.address])
    for lost in (sent, pending):
        with pytest.raises((GenieError, RuntimeError), match=r"session|shutdown"):
            lost.cpu()
        with pytest.raises((GenieError, RuntimeError), match=r"session|shutdown"):
            (lost + 1).cpu()
    fresh = torch.ones(2, device=FIRST)
    assert (fresh + 1).tolist() == [2.0, 2.0]
    with pytest.raises((GenieError, RuntimeError)):
        (fresh + sent).cpu()
    assert (fresh + 1).tolist() == [2.0, 2.0]
