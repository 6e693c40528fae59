"""Liveness, accounting, and memory that several look at."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from local.both import Both, Program, bits, tensor_of

from genie.errors import NodeError, OutOfMemory
from genie.graph import Const, Many, TensorSpec
from genie_backend_local import LocalBackend, LocalSession
from genie_backend_local.native import load

SELF = Const("device", "self")
KB = torch.zeros(256)  # 1 KiB


def live(session: LocalSession) -> int:
    return session.stats()["memory_bytes"]


def peak(session: LocalSession) -> int:
    return session.stats()["peak_memory_bytes"]


@pytest.mark.parametrize(("donated", "most"), [(False, 3), (True, 2)])
def test_a_chain_needs_two_values_at_a_time(both: Both, donated: bool, most: int) -> None:
    program = Program()
    x = program.input(KB, donated=donated)
    for _ in range(10):
        x = program.call("aten::neg", x)
    both.execute(program.graph(x), [both.put(KB)])
    assert peak(both.session) == most * 1024
    assert live(both.session) == (1 if donated else 2) * 1024


def test_views_share_and_the_last_one_frees(both: Both) -> None:
    program = Program()
    x = program.input(KB)
    parts = program.calls("aten::split.Tensor", 4, program.call("aten::neg", x), 64, 0)
    handle = both.put(KB)
    first, *others = both.execute(program.graph(*parts), [handle])
    assert live(both.session) == 2 * 1024  # the base is kept by its parts
    both.session.free([handle, *others])
    assert live(both.session) == 1024
    both.session.free([first, 12345])  # what is not there is freed already
    assert live(both.session) == 0
    assert both.session.stats()["values"] == 0


def test_resized_and_replaced_storages_are_counted(both: Both) -> None:
    program = Program()
    x, y, source = program.input(KB), program.input(KB), program.input(torch.zeros(1024))
    program.write("aten::resize_", x, Many((512,)), to=[x])
    program.write("aten::set_.source_Tensor", y, source, to=[y])
    handles = [both.put(tensor) for tensor in program.given]
    both.execute(program.graph(), handles)
    assert live(both.session) == (2 + 4) * 1024
    both.session.free(handles[2:])
    assert live(both.session) == (2 + 4) * 1024
    both.session.free(handles)
    assert live(both.session) == 0


def test_unused_results_and_unused_donations_go_at_once(both: Both) -> None:
    program = Program()
    x = program.input(KB)
    program.input(KB, donated=True)
    program.call("aten::neg", x)
    y = program.call("aten::exp", x)
    both.execute(program.graph(y), [both.put(KB), both.put(KB)])
    assert live(both.session) == 2 * 1024


def test_failures_leave_nothing_behind(both: Both) -> None:
    program = Program()
    x = program.input(KB, donated=True)
    y = program.call("aten::neg", x)
    bad = program.call("aten::view", y, Many((7,)))
    more = program.call("aten::cat", Many((y, bad)), 0)
    both.session.free(both.execute(program.graph(more), [both.put(KB)]))
    assert live(both.session) == 0
    assert both.session.stats()["values"] == 0


@pytest.mark.parametrize("size", [4, 4096])  # copied, and shared until written
def test_what_was_fetched_does_not_change_any_more(both: Both, size: int) -> None:
    program = Program()
    start = torch.arange(float(size))
    x = program.input(start)
    view = program.call("aten::view", x, Many((2, -1)))
    program.write("aten::add_.Scalar", view, 1, 1, to=[view])
    graph = program.graph()
    handle = both.put(program.given[0])
    fetched = []
    for _ in range(3):
        fetched.append(both.session.fetch(handle).data)
        both.execute(graph, [handle])
    both.check(handle)
    for k, data in enumerate(fetched):
        assert bytes(data) == bits(start + k)
    assert fetched[0].readonly


def test_a_fetched_value_outlives_its_handle_and_session(both: Both) -> None:
    handle = both.put(torch.arange(1000.0))
    data = both.session.fetch(handle).data
    both.session.free([handle])
    both.session.close()
    gc.collect()
    assert bytes(data) == bits(torch.arange(1000.0))


def test_a_fetch_of_a_contiguous_value_copies_nothing(session: LocalSession) -> None:
    session.upload(1, TensorSpec((1 << 20,), "uint8"), bytes(1 << 20))
    address = [np.frombuffer(session.fetch(1).data, dtype=np.uint8).ctypes.data for _ in range(2)]
    assert address[0] == address[1]


def test_uploads_are_taken_when_the_call_returns(session: LocalSession) -> None:
    data = bytearray(b"abcd")
    session.upload(1, TensorSpec((4,), "uint8"), data, shared=True)
    data[:] = b"wxyz"
    assert bytes(session.fetch(1).data) == b"abcd"


def test_bytes_received_into_place(session: LocalSession) -> None:
    allocation = session.allocate(TensorSpec((2, 2), "int16"))
    assert allocation.data.nbytes == 8
    assert not allocation.data.readonly
    assert live(session) == 0
    allocation.data[:] = bytes(range(8))
    allocation.commit(5)
    assert bytes(session.fetch(5).data) == bytes(range(8))
    assert session.describe(5) == TensorSpec((2, 2), "int16")
    assert live(session) == 8
    with pytest.raises(NodeError, match="taken"):
        session.allocate(TensorSpec((1,), "uint8")).commit(5)


def test_an_allocation_is_limited() -> None:
    backend = LocalBackend(memory_limit_gb=1e-6)
    with pytest.raises(OutOfMemory):
        backend.connect(backend.devices()[-1]).allocate(TensorSpec((1 << 50,), "uint8"))
    backend.close()


# --- memory kept for uploads ----------------------------------------------------------------------

MB = 1 << 20


def upload(session: LocalSession, handle: int, size: int, fill: int = 1) -> int:
    """Receives in place, as a node does; where."""
    allocation = session.allocate(TensorSpec((size,), "uint8"))
    view = np.frombuffer(allocation.data, dtype=np.uint8)
    view[:] = fill
    allocation.commit(handle)
    return view.ctypes.data


@pytest.fixture
def kept(backend: LocalBackend) -> Iterator[Callable[[], int]]:
    """Bytes kept, none at first."""
    session = backend.connect(backend.devices()[-1])
    load().forget_blocks(0.0)
    yield lambda: session.stats()["kept_bytes"]
    session.close()


def test_large_uploads_reuse_freed_memory(session: LocalSession, kept: Callable[[], int]) -> None:
    address = upload(session, 1, 4 * MB)
    session.free([1])
    assert (live(session), kept()) == (0, 4 * MB)
    assert upload(session, 2, 4 * MB - 5, fill=2) == address
    assert kept() == 0
    assert bytes(session.fetch(2).data) == b"\2" * (4 * MB - 5)
    session.free([2])
    upload(session, 3, 2 * MB)  # half of it would be wasted
    assert kept() == 4 * MB
    session.free([3])
    assert kept() == 6 * MB


def test_memory_somebody_looks_at_is_not_reused(session: LocalSession, kept: Callable[[], int]) -> None:
    address = upload(session, 1, 2 * MB, fill=7)
    fetched = session.fetch(1).data
    session.free([1])
    assert kept() == 0
    assert upload(session, 2, 2 * MB, fill=9) != address
    assert bytes(fetched) == b"\7" * (2 * MB)
    del fetched
    assert kept() == 2 * MB


def test_a_dropped_allocation_is_kept_too(session: LocalSession, kept: Callable[[], int]) -> None:
    allocation = session.allocate(TensorSpec((2 * MB,), "uint8"))
    assert kept() == 0
    del allocation
    assert kept() == 2 * MB


def test_small_values_are_not_kept(session: LocalSession, kept: Callable[[], int]) -> None:
    upload(session, 1, MB // 2)
    session.free([1])
    assert kept() == 0


def test_a_quarter_of_the_limit_is_kept_the_newest_first(kept: Callable[[], int]) -> None:
    backend = LocalBackend(memory_limit_gb=20 * MB / (1 << 30))
    session = backend.connect(backend.devices()[-1])
    addresses = [upload(session, handle, 2 * MB) for handle in (1, 2, 3)]
    for handle in (1, 2, 3):
        session.free([handle])
    assert kept() == 4 * MB  # of at most 5
    assert [upload(session, handle, 2 * MB) for handle in (4, 5)] == [addresses[2], addresses[1]]
    session.free([4, 5])
    upload(session, 6, 12 * MB)  # what is kept does not count as used
    session.free([6])
    assert kept() == 4 * MB
    backend.close()


def test_idle_memory_goes_back(backend: LocalBackend, session: LocalSession, kept: Callable[[], int]) -> None:
    upload(session, 1, 2 * MB)
    session.free([1])
    backend.trim()
    assert kept() == 2 * MB  # used a moment ago
    load().forget_blocks(0.0)
    assert kept() == 0


def test_nothing_is_kept_without_sessions() -> None:
    program = (
        "from genie.graph import TensorSpec\n"
        "from genie_backend_local import LocalBackend\n"
        "backend = LocalBackend()\n"
        "one, two = (backend.connect(backend.devices()[-1]) for _ in range(2))\n"
        "one.upload(1, TensorSpec((1 << 21,), 'uint8'), bytes(1 << 21))\n"
        "one.close()\n"
        "assert two.stats()['kept_bytes'] == 1 << 21\n"
        "two.close()\n"
        "three = backend.connect(backend.devices()[-1])\n"
        "assert three.stats()['kept_bytes'] == 0\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_sessions_share_memory_until_one_writes(backend: LocalBackend) -> None:
    one, two = (Both(backend.connect(backend.devices()[-1])) for _ in range(2))
    weights = torch.arange(8.0).reshape(2, 4)
    mine = one.put(weights)
    program = Program()
    turned = program.call("aten::t", program.input(weights))
    (view,) = one.execute(program.graph(turned), [mine])
    shared = one.session.share(view)
    assert (shared.spec, shared.nbytes) == (TensorSpec((4, 2), "float32", (1, 4)), 32)
    two.session.adopt(1, shared)
    two.session.adopt(2, shared)
    two._next = 2
    for handle in (1, 2):
        two.reference.values[handle] = weights.t().clone(memory_format=torch.preserve_format)
    two.check(1, 2)
    write = Program()
    x = write.input(weights.t())
    write.write("aten::mul_.Scalar", x, 2.0, to=[x])
    two.execute(write.graph(), [1])
    two.check(1, 2)
    one.check(mine, view)
    one.execute(write.graph(), [view])
    one.check(mine, view)
    two.check(1, 2)
    one.session.close()
    two.check(1, 2)
    with pytest.raises(NodeError, match="taken"):
        two.session.adopt(1, shared)


def test_batch_norm_s_silent_writes_do_not_reach_others(backend: LocalBackend) -> None:
    one, two = (Both(backend.connect(backend.devices()[-1])) for _ in range(2))
    mean = one.put(torch.zeros(3))
    two.session.adopt(100, one.session.share(mean))
    program = Program()
    x, running, variance = program.input(torch.rand(4, 3)), program.input(torch.zeros(3)), program.input(torch.ones(3))
    out = program.calls("aten::native_batch_norm", 3, x, None, None, running, variance, True, 0.5, 1e-5)
    handles = [two.put(program.given[0]), 100, two.put(program.given[2])]
    two.execute_native(program.graph(*out), handles)
    assert tensor_of(two.session.fetch(100)).abs().max() > 0
    one.check(mean)


def test_conjugates_come_home_resolved(both: Both) -> None:
    x = torch.tensor([1 + 2j, 3 - 4j])
    program = Program()
    lazy = program.call("aten::_conj", program.input(x))
    imaginary = program.call("aten::_neg_view", lazy)
    both.run(program, lazy, imaginary)


def test_zeros_without_memory_come_home(both: Both) -> None:
    program = Program()
    zeros = program.call("aten::_efficientzerotensor", Many((3, 2)), Const("dtype", "float32"), None, SELF, False)
    more = program.call("aten::add.Tensor", zeros, program.input(torch.ones(2)), 1)
    both.run(program, zeros, more)


def test_an_unaligned_out_is_filled(both: Both) -> None:
    program = Program()
    turned = program.call("aten::t", program.input(torch.arange(6.0).reshape(2, 3)))
    (handle,) = both.execute(program.graph(turned), [both.put(program.given[0])])
    out = memoryview(bytearray(25))[1:]
    both.session.fetch(handle, out)
    assert bytes(out) == bits(torch.arange(6.0).reshape(2, 3).t())


def test_warnings_stay_off_standard_error(both: Both, capfd: pytest.CaptureFixture[str]) -> None:
    program = Program()
    x, out = program.input(torch.zeros(3)), program.input(torch.zeros(2))
    program.write("aten::neg.out", x, out, to=[out])
    both.execute_native(program.graph(), [both.put(tensor) for tensor in program.given])
    assert capfd.readouterr().err == ""
    assert both.session.fetch(2).spec.shape == (3,)
