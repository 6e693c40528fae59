"""Values that leave their device and come back: bit-equal, counted, and never while they are used."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local.both import Both, Program, bits, data_of, spec_of, tensor_of
from local.leaving import MIB, Small

from genie.errors import ConfigError, OutOfMemory
from genie.graph import Many
from genie_backend_local import LocalBackend, LocalSession
from genie_backend_local.native import load
from genie_backend_local.session import SharedValue

KB64 = torch.arange(1 << 14, dtype=torch.float32)  # 64 KiB
EVERYTHING = 1 << 40


@pytest.fixture
def small(backend: LocalBackend) -> Small:
    return Small.of(backend.devices()[-1], MIB, swap=64 * MIB)


@pytest.fixture
def both(small: Small) -> Both:
    return Both(small.session())


def away(session: LocalSession) -> int:
    return session.stats()["away_bytes"]


def live(session: LocalSession) -> int:
    return session.stats()["memory_bytes"]


def put(session: LocalSession, handle: int, tensor: torch.Tensor) -> None:
    session.upload(handle, spec_of(tensor), data_of(tensor))


def content_of(session: LocalSession, handle: int, tensor: torch.Tensor) -> SharedValue:
    """The tensor as a weight: shared by content, and backed by the host's copy of it."""
    put(session, handle, tensor)
    value = session.share_content(handle)
    value.back(data_of(tensor))
    return value


def test_more_values_than_memory(both: Both, small: Small) -> None:
    handles = [both.put(KB64 + k) for k in range(40)]  # 2.5 times what there is
    assert small.stats("live") <= MIB
    assert away(both.session) >= 24 * KB64.nbytes
    assert away(both.session) + live(both.session) == 40 * KB64.nbytes
    both.check(*handles)
    both.check(*reversed(handles))
    both.session.free(handles)
    assert (live(both.session), away(both.session), small.stats("live"), small.stats("swap_used")) == (0, 0, 0, 0)


def test_a_tenant_has_its_part_of_the_swap(backend: LocalBackend) -> None:
    """With a quarter of the memory a quarter of the swap; who has no quota has the rest."""
    small = Small.of(backend.devices()[-1], MIB, swap=4 * MIB)
    account = load().Account("alice", MIB // 4)
    native = load().Session("cpu", "small:0", 0, small.budget, account=account, label="a")
    alice, other = Both(LocalSession(small.device, native)), Both(small.session())
    handles = [alice.put(KB64 + k) for k in range(18)]  # four are on the device, the others away
    assert account.swapped == 14 * KB64.nbytes
    alice.check(*handles)
    handles += [alice.put(KB64 + k) for k in (18, 19)]
    assert account.swapped == MIB
    with pytest.raises(OutOfMemory):
        alice.put(KB64)
    others = [other.put(KB64 - k) for k in range(48)]
    assert small.stats("swap_used") > 2 * MIB
    other.check(*others)
    assert account.swapped == MIB
    account.set_limit(0)  # no limit any more
    handles += [alice.put(KB64 + k) for k in range(20, 30)]
    alice.check(*handles)
    alice.session.free(handles)
    assert account.swapped == 0
    other.check(*others)


def test_a_swap_in_files(backend: LocalBackend, tmp_path: Path) -> None:
    small = Small.of(backend.devices()[-1], MIB, swap=2 * MIB, directory=str(tmp_path))
    both = Both(small.session())
    handles = [both.put(KB64 + k) for k in range(40)]
    both.check(*handles)
    assert small.stats("swapped_in_bytes") > 0
    assert list(tmp_path.iterdir()) == []  # they have no names: nothing is left of a node that dies
    with pytest.raises(OutOfMemory, match=r"swap: 2\.\d MB of 2\.1 MB"):
        for _ in range(20):
            both.put(KB64)


def test_a_directory_that_cannot_hold_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be swapped to"):
        LocalBackend(swap_directory=str(tmp_path / "missing"))


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    """The values stay, and who wants more is refused."""
    code = f"""
import resource, torch
from local.both import Both
from local.leaving import MIB, Small
from genie.errors import OutOfMemory
from genie_backend_local import LocalBackend
small = Small.of(LocalBackend().devices()[-1], MIB, swap=64 * MIB, directory={str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, resource.RLIM_INFINITY))
both = Both(small.session())
handles = [both.put(torch.full((1 << 14,), float(k))) for k in range(16)]
try:
    both.put(torch.zeros(1 << 14))
except OutOfMemory as error:
    assert "swap: 0 bytes of" in str(error)
    both.check(*handles)
    print("refused")
"""
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_the_cpu_itself_with_a_directory(tmp_path: Path) -> None:
    backend = LocalBackend(memory_limit_gb=4 * KB64.nbytes / (1 << 30), swap_directory=str(tmp_path))
    both = Both(backend.connect(backend.devices()[-1]))
    handles = [both.put(KB64 + k) for k in range(10)]
    assert away(both.session) == 6 * KB64.nbytes
    both.check(*handles)
    told = backend.memory()["cpu"]
    assert told["swap_used"] == 6 * KB64.nbytes
    backend.close()
    assert backend.memory()["cpu"]["swap_used"] == backend.memory()["cpu"]["live"] == 0


def test_the_cpu_itself_without_one() -> None:
    backend = LocalBackend(memory_limit_gb=4 * KB64.nbytes / (1 << 30), swap_bytes=64 * MIB)
    session = backend.connect(backend.devices()[-1])
    for handle in range(1, 5):
        put(session, handle, KB64)
    with pytest.raises(OutOfMemory, match=r"262144 of the session's 262144 are in use: this session has 262\.1 KB"):
        put(session, 5, KB64)
    backend.close()


def test_views_come_back_as_views(both: Both, small: Small) -> None:
    program = Program()
    x = program.input(KB64)
    turned = program.call("aten::t", program.call("aten::view", x, Many((128, 128))))
    tail = program.call("aten::slice.Tensor", x, 0, 5, 90, 3)
    base = both.put(KB64)
    handles = both.execute(program.graph(x, turned, tail), [base])
    assert small.budget.reclaim(EVERYTHING) == KB64.nbytes  # one memory, however many look at it
    assert live(both.session) == 0
    described = both.session.describe(handles[1])
    assert (described.shape, described.stride) == ((128, 128), (1, 128))
    assert away(both.session) == KB64.nbytes  # to describe it, it need not be here

    write = Program()
    into, by = write.input(KB64), write.input(torch.ones(()))
    write.write("aten::add_.Tensor", into, by, 1, to=[into])
    both.execute(write.graph(), [handles[2], both.put(torch.full((), 7.0))])
    assert away(both.session) == 0
    both.check(base, *handles)  # all of them see what was written


def test_what_an_execution_uses_stays(backend: LocalBackend) -> None:
    """Its operands and results together just fit; what leaves to make room is never among them."""
    small = Small.of(backend.devices()[-1], 4 * KB64.nbytes, swap=64 * MIB)
    both = Both(small.session())
    idle = [both.put(KB64 * k) for k in range(4)]
    program = Program()
    x, y = program.input(KB64), program.input(KB64)
    total = program.call("aten::add.Tensor", x, y, 1)
    doubled = program.call("aten::add.Tensor", total, total, 1)
    for a, b in [(0, 1), (2, 3), (3, 0), (1, 2)]:
        made = both.execute(program.graph(total, doubled), [idle[a], idle[b]])
        both.check(*made)
        both.session.free(made)
    both.check(*idle)


def test_a_session_that_holds_too_much_is_told_who_has_it(backend: LocalBackend) -> None:
    small = Small.of(backend.devices()[-1], MIB)  # no swap
    mine, friend, stranger = small.session("m-1", "us"), small.session("m-2", "us"), small.session("m-3", "them")
    put(mine, 1, KB64)
    put(friend, 1, KB64.repeat(3))
    put(stranger, 1, KB64.repeat(6))
    with pytest.raises(OutOfMemory) as caught:
        put(mine, 2, KB64.repeat(7))
    text = str(caught.value)
    assert "needs 458752 bytes, 655360 of the device's 1048576 are in use" in text
    assert "this session has 65.5 KB (65.5 KB input)" in text
    assert "session m-2 has 196.6 KB (196.6 KB input)" in text
    assert "other tenants 393.2 KB" in text
    assert "m-3" not in text
    assert text.index("m-2") < text.index("this session")  # the largest first


def test_the_sessions_own_limit_moves_only_its_own(backend: LocalBackend) -> None:
    small = Small.of(backend.devices()[-1], 8 * MIB, swap=64 * MIB)
    limited, other = small.session(limit=3 * KB64.nbytes), small.session()
    put(other, 1, KB64)
    for handle in range(1, 7):
        put(limited, handle, KB64 * handle)
    assert (live(limited), away(limited), away(other)) == (3 * KB64.nbytes, 3 * KB64.nbytes, 0)
    for handle in range(1, 7):
        assert bits(tensor_of(limited.fetch(handle))) == bits(KB64 * handle)


# --- weights --------------------------------------------------------------------------------------


def test_a_weight_is_dropped_rather_than_swapped(small: Small) -> None:
    one, two = small.session(), small.session()
    value = content_of(one, 1, KB64)
    two.adopt(5, value)
    put(one, 2, KB64 + 1)
    assert small.stats("contents") == KB64.nbytes  # once, though two have it
    assert small.stats("live") == 2 * KB64.nbytes
    assert (one.stats()["weight_bytes"], two.stats()["weight_bytes"]) == (KB64.nbytes, KB64.nbytes)
    assert small.budget.reclaim(1) == KB64.nbytes
    assert (small.stats("evicted"), small.stats("swapped_out")) == (1, 0)  # it costs less to bring back
    assert value.off_device
    assert (away(one), away(two)) == (KB64.nbytes, KB64.nbytes)
    assert bits(tensor_of(two.fetch(5))) == bits(KB64)
    assert (away(one), away(two)) == (KB64.nbytes, 0)  # the other has it when it looks, and nothing is moved again
    assert bits(tensor_of(one.fetch(1))) == bits(KB64)
    assert (small.stats("restored"), small.stats("contents")) == (1, KB64.nbytes)


def test_a_weight_nobody_has_is_there_for_the_next_client(small: Small) -> None:
    one = small.session()
    value = content_of(one, 1, KB64)
    one.close()
    assert not value.held
    assert small.stats("live") == KB64.nbytes
    two = small.session()
    two.adopt(1, value)
    assert bits(tensor_of(two.fetch(1))) == bits(KB64)
    two.free([1])
    assert small.budget.reclaim(1) == KB64.nbytes
    assert small.stats("live") == 0
    two.adopt(2, value)
    assert bits(tensor_of(two.fetch(2))) == bits(KB64)
    two.close()
    del value
    gc.collect()
    assert (small.stats("live"), small.stats("contents")) == (0, 0)


def test_a_weight_that_was_written_to_is_its_sessions_own(small: Small) -> None:
    both, other = Both(small.session()), small.session()
    handle = both.put(KB64)
    value = both.session.share_content(handle)
    value.back(data_of(KB64))
    other.adopt(1, value)
    program = Program()
    x = program.input(KB64)
    program.write("aten::neg_", x, to=[x])
    both.execute(program.graph(), [handle])
    assert both.session.stats()["state_bytes"] == KB64.nbytes
    assert small.stats("live") == 2 * KB64.nbytes
    assert small.budget.reclaim(EVERYTHING) == 2 * KB64.nbytes
    assert (small.stats("evicted"), small.stats("swapped_out")) == (1, 1)
    both.check(handle)
    assert bits(tensor_of(other.fetch(1))) == bits(KB64)


def test_the_last_owner_writes_in_place_and_forgets_the_source(small: Small) -> None:
    both = Both(small.session())
    handle = both.put(KB64)
    value = both.session.share_content(handle)
    value.back(data_of(KB64))
    del value  # nobody else can have it any more: no copy is made
    gc.collect()
    program = Program()
    x = program.input(KB64)
    program.write("aten::neg_", x, to=[x])
    both.execute(program.graph(), [handle])
    assert small.stats("live") == KB64.nbytes
    small.budget.reclaim(EVERYTHING)
    assert small.stats("evicted") == 0
    both.check(handle)


def test_a_source_that_is_needed_stays(small: Small) -> None:
    session = small.session()
    value = content_of(session, 1, KB64)
    assert value.forsake()  # it is on the device
    value.back(data_of(KB64))
    small.budget.reclaim(EVERYTHING)
    assert not value.forsake()
    assert bits(tensor_of(session.fetch(1))) == bits(KB64)
    assert value.forsake()
    small.budget.reclaim(EVERYTHING)
    assert small.stats("swapped_out") == 1  # without a source that is where it goes
    assert bits(tensor_of(session.fetch(1))) == bits(KB64)


def test_memory_somebody_looks_at_stays(small: Small) -> None:
    session = small.session()
    put(session, 1, KB64)
    seen = session.fetch(1).data
    assert small.budget.reclaim(EVERYTHING) == 0
    assert bytes(seen) == bits(KB64)
    allocation = session.allocate(spec_of(KB64))
    allocation.data[:] = bits(KB64)
    allocation.commit(2)
    assert small.budget.reclaim(EVERYTHING) == 0
    del allocation, seen
    gc.collect()
    assert small.budget.reclaim(EVERYTHING) == 2 * KB64.nbytes


# --- what leaves, and when it comes back ----------------------------------------------------------


def test_what_was_used_since_something_left_leaves_last(small: Small) -> None:
    both = Both(small.session())
    large, *others = both.put(KB64.repeat(4)), *(both.put(KB64 * k) for k in range(3))
    assert small.budget.reclaim(1) == 4 * KB64.nbytes  # a large one costs less per byte: each move has its price
    program = Program()
    x = program.input(KB64)
    both.session.free(both.execute(program.graph(program.call("aten::neg", x)), [others[1]]))
    assert small.budget.reclaim(2 * KB64.nbytes) == 2 * KB64.nbytes
    before = small.stats("swapped_in")
    both.session.fetch(others[1])
    assert small.stats("swapped_in") == before  # it is here
    both.check(large, *others)
    assert small.stats("swapped_in") == before + 3


def test_idle_values_leave_without_need(small: Small) -> None:
    session = small.session()
    put(session, 1, KB64)
    value = content_of(session, 2, KB64)
    assert small.budget.put_idle_out(3600.0) == 0
    assert small.budget.put_idle_out(1e-9) in (0, KB64.nbytes)  # a millisecond may not have passed
    while away(session) == 0:
        small.budget.put_idle_out(1e-3)
    assert away(session) == KB64.nbytes  # not the weight: it is no dearer to drop it when that is needed
    assert not value.off_device


def test_prefetch_brings_what_was_used_last(small: Small) -> None:
    both = Both(small.session())
    first, second = both.put(KB64), both.put(KB64 + 1)
    program = Program()
    x = program.input(KB64)
    graph = program.graph(program.call("aten::neg", x))
    both.session.free(both.execute(graph, [first]))
    both.session.free(both.execute(graph, [second]))
    small.budget.reclaim(EVERYTHING)
    assert both.session.off_device_bytes == 2 * KB64.nbytes
    both.session.prefetch()
    assert both.session.off_device_bytes == KB64.nbytes
    before = small.stats("swapped_in")
    both.check(second)
    assert small.stats("swapped_in") == before


def test_a_value_that_has_no_room_to_come_back_is_an_error_and_not_lost(small: Small) -> None:
    session, other = small.session(), small.session()
    put(session, 1, KB64.repeat(12))
    put(other, 1, KB64.repeat(12))
    assert session.off_device_bytes == 12 * KB64.nbytes
    held = other.fetch(1).data  # cannot leave now
    with pytest.raises(OutOfMemory, match="a value that comes back needs"):
        session.fetch(1)
    session.prefetch()  # does what can be done
    del held
    gc.collect()
    assert bits(tensor_of(session.fetch(1))) == bits(KB64.repeat(12))


# --- random programs ------------------------------------------------------------------------------


class Play:
    """Random work on one native session beside the reference, while values leave at random moments."""

    def __init__(self, small: Small, dice: random.Random) -> None:
        self.small = small
        self.dice = dice
        self.both = Both(small.session())
        self.second = small.session()
        self.handles: list[int] = []
        self.adopted: dict[int, bytes] = {}

    def pick(self) -> int:
        return self.dice.choice(self.handles)

    def upload(self) -> None:
        size = self.dice.choice([8, 1024, 4096])
        self.handles.append(self.both.put(torch.randn(size)))

    def derive(self) -> None:
        program = Program()
        x = program.input(torch.empty(0))
        flat = program.call("aten::reshape", x, Many((-1,)))
        one = {
            0: lambda: program.call("aten::neg", flat),
            1: lambda: program.call("aten::slice.Tensor", flat, 0, 1, self.dice.randrange(3, 2000), 2),
            2: lambda: program.call("aten::t", program.call("aten::view", flat, Many((2, -1)))),
            3: lambda: x,
            4: lambda: program.call("aten::detach", x),
        }[self.dice.randrange(5)]()
        more = program.call("aten::mul.Tensor", one, one)
        self.handles += self.both.execute(program.graph(one, more), [self.pick()])

    def write(self) -> None:
        program = Program()
        x, by = program.input(torch.empty(0)), program.input(torch.empty(0))
        half = program.call("aten::slice.Tensor", program.call("aten::reshape", x, Many((-1,))), 0, 0, 100, 1)
        program.write("aten::add_.Tensor", half, by, 1, to=[half])
        program.write("aten::mul_.Tensor", x, by, to=[x])
        self.both.execute(program.graph(), [self.pick(), self.scale])

    def donate(self) -> None:
        program = Program()
        x = program.input(torch.empty(0), donated=True)
        made = program.call("aten::add.Tensor", x, x, 1)
        handle = self.pick()
        self.handles.remove(handle)
        self.handles += self.both.execute(program.graph(made), [handle])

    def free(self) -> None:
        handle = self.pick()
        self.handles.remove(handle)
        self.both.session.free([handle])
        del self.both.reference.values[handle]

    def look(self) -> None:
        self.both.check(self.pick())

    def lend(self) -> None:
        """Another session adopts a value as it is now; what is written later is not its business."""
        handle = self.pick()
        tensor = self.both.reference.values[handle]
        if isinstance(tensor, torch.Tensor):  # else a failure: a shape that did not fit
            number = len(self.adopted) + 1
            self.second.adopt(number, self.both.session.share(handle))
            self.adopted[number] = bits(tensor)

    def returned(self) -> None:
        if self.adopted:
            number = self.dice.choice(list(self.adopted))
            assert bits(tensor_of(self.second.fetch(number))) == self.adopted[number]

    def leave(self) -> None:
        self.small.budget.reclaim(self.dice.choice([1, 5000, 40_000, EVERYTHING]))

    def prefetch(self) -> None:
        self.dice.choice([self.both.session, self.second]).prefetch()

    def run(self, moves: int) -> None:
        self.scale = self.both.put(torch.full((), 0.5))
        for _ in range(3):
            self.upload()
        choices: list[Callable[[], None]] = [
            self.upload,
            self.derive,
            self.derive,
            self.write,
            self.write,
            self.donate,
            self.free,
            self.look,
            self.lend,
            self.returned,
            self.leave,
            self.leave,
            self.leave,
            self.prefetch,
        ]
        for _ in range(moves):
            if len(self.handles) < 2:
                self.upload()
            self.dice.choice(choices)()
            self.counts()
        self.both.check(*self.handles)
        for number, expected in self.adopted.items():
            assert bits(tensor_of(self.second.fetch(number))) == expected
        self.both.session.free([*self.handles, self.scale])
        self.second.close()
        assert (self.small.stats("live"), self.small.stats("swap_used")) == (0, 0)

    def counts(self) -> None:
        for session in (self.both.session, self.second):
            told = session.stats()
            kinds = ("weight_bytes", "state_bytes", "input_bytes", "intermediate_bytes")
            assert sum(told[kind] for kind in kinds) == told["memory_bytes"]
            assert told["intermediate_bytes"] == 0
            assert told["away_bytes"] >= 0
        assert 0 <= self.small.stats("live") <= live(self.both.session) + live(self.second)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_random_programs_do_not_notice(backend: LocalBackend, seed: int) -> None:
    torch.manual_seed(seed)
    Play(Small.of(backend.devices()[-1], 64 * MIB, swap=64 * MIB), random.Random(seed)).run(60)


@pytest.fixture
def reclaimer(small: Small) -> Iterator[list[int]]:
    """A thread that has everything leave that can, all the time."""
    stop, freed = threading.Event(), [0]

    def work() -> None:
        while not stop.wait(1e-4):
            freed[0] += small.budget.reclaim(EVERYTHING)

    thread = threading.Thread(target=work)
    thread.start()
    yield freed
    stop.set()
    thread.join()


def test_sessions_at_work_while_values_leave(small: Small, reclaimer: list[int]) -> None:
    shared = torch.randn(128, 128)
    owner = small.session()
    value = content_of(owner, 1, shared)

    def work(number: int) -> None:
        both = Both(small.session())
        weight = both.handles()
        both.session.adopt(weight, value)
        both.reference.values[weight] = shared.clone()
        state = both.put(torch.full((128, 128), float(number)))
        program = Program()
        s, w = program.input(shared, donated=True), program.input(shared)
        graph = program.graph(program.call("aten::tanh", program.call("aten::mm", s, w)))
        for _ in range(60):
            (state,) = both.execute(graph, [state, weight])
            both.check(state)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3), timeout=120.0))
    assert reclaimer[0] > 0


def test_many_want_the_same_memory_at_once(small: Small) -> None:
    """What leaves for one may be taken by another before the first holds it: nobody is told that there is none."""

    def work(number: int) -> None:
        session = small.session()
        values = [KB64 + 100 * number + k for k in range(12)]
        for first in range(1, 241, 12):
            for k, value in enumerate(values):
                put(session, first + k, value)
            for k, value in enumerate(values):
                assert bits(tensor_of(session.fetch(first + k))) == bits(value)
            session.free([*range(first, first + 12)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4), timeout=120.0))
