"""The plugin, the build's key, and what is around a call: the caller's PyTorch state does not reach into plans."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from local.both import Both, Program
from torch.utils._python_dispatch import TorchDispatchMode

from genie.bindings import parameters
from genie.config import Settings
from genie.device import Device
from genie.errors import BackendUnavailable, TorchMismatch
from genie_backend_local import LocalBackend, native, plugin


class Forbids(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise AssertionError(f"{func} reached the caller's mode")


STATES: list[Callable[[], AbstractContextManager[object]]] = [
    lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    torch.inference_mode,
    torch.enable_grad,
    Forbids,
    lambda: torch.device("meta"),
    lambda: torch.autograd.profiler.profile(),
    nullcontext,
]


@pytest.mark.parametrize("state", STATES)
def test_the_caller_s_state_stays_outside(both: Both, state: Callable[[], AbstractContextManager[object]]) -> None:
    program = Program()
    x, w = program.input(torch.rand(4, 8)), program.input(torch.rand(8, 8))
    y = program.call("aten::linear", x, w, None)
    z = program.call("aten::scaled_dot_product_attention", y, y, y)
    handles = [both.put(tensor) for tensor in program.given]
    graph = program.graph(y, z)
    with state():
        made = both.execute_native(graph, handles)
    both.reference.execute(graph, [made[0], *handles, *parameters(graph)])
    both.check(*made)


def test_sessions_run_at_the_same_time(backend: LocalBackend) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            both = Both(backend.connect(backend.devices()[-1]))
            for step in range(30):
                program = Program()
                x = program.input(torch.full((8, 8), float(number)))
                y = program.call("aten::mm", x, x)
                both.run(program, program.call("aten::add.Scalar", y, step, 1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def test_the_gil_is_free_during_work(both: Both) -> None:
    program = Program()
    x = program.input(torch.rand(700, 700))
    y = x
    for _ in range(12):
        y = program.call("aten::mm", y, x)
    graph = program.graph(y)
    handle = both.put(program.given[0])
    both.load(graph)
    worker = threading.Thread(target=both.execute_native, args=(graph, [handle]))
    worker.start()
    turns = 0
    while worker.is_alive():
        turns += 1
    worker.join(timeout=60)
    assert turns > 100


def test_one_session_from_several_threads(both: Both) -> None:
    program = Program()
    graph = program.graph(program.call("aten::neg", program.input(torch.ones(2))))
    handle = both.put(program.given[0])
    made: list[int] = []
    for _ in range(3):
        worker = threading.Thread(target=lambda: made.extend(both.execute(graph, [handle])))
        worker.start()
        worker.join(timeout=30)
    both.check(*made)


def test_the_plugin_offers_the_backend() -> None:
    (factory,) = plugin.genie_backends().values()
    backend = factory(Settings(memory_limit_gb=1.0))
    assert isinstance(backend, LocalBackend)
    assert backend.name == "local"
    backend.close()


def test_the_plugin_is_found_without_importing_torch() -> None:
    code = "import sys, genie_backend_local.plugin as p; p.genie_backends(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_device_is_unavailable(backend: LocalBackend) -> None:
    with pytest.raises(BackendUnavailable, match="it has .*cpu"):
        backend.connect(Device(id="cuda:99", type="GPU", memory_gb=1, compute_tflops=1))


def test_threads_are_set_for_the_process() -> None:
    before = torch.get_num_threads()
    try:
        LocalBackend(threads=1).close()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_another_torch_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(
        TorchMismatch, match=r"was built with torch [0-9_a-z]+; torch 9\.9\.9\+x is installed"
    ) as caught:
        native.load("9.9.9+x")
    assert "pip install" in str(caught.value)
    with pytest.raises(TorchMismatch, match="has not been built"):
        native.load(directory=tmp_path)


def test_a_list_that_grew_is_a_failure_of_its_step(both: Both) -> None:
    program = Program()
    parts = program.calls("aten::split.Tensor", 2, program.input(torch.arange(4.0)), 2, 0)
    graph = program.graph(*parts)
    handle = both.put(program.given[0])
    both.check(*both.execute(graph, [handle]))
    plan = both.load(graph)
    first = both.handles(2)
    both.session.execute(plan, both._predictions[plan].encode([first, handle, 1, 0]))
    with pytest.raises(RuntimeError, match="made 4 values, the plan numbers 2"):
        both.session.fetch(first)
