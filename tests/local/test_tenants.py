"""Sessions of tenants: one account of memory, and turns on the device by weight."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from genie.errors import OutOfMemory
from genie.graph import Graph, Input, Ref
from genie.tenancy.seats import Seat, Tenanting
from genie.testing import Caller
from genie.testing.plans import node, single, spec
from genie_backend_local import LocalBackend

KIB = 1 << 10
FLOATS = 256 * KIB  # of 1 MiB
DEADLINE = 60.0
SIDE = 384


@pytest.fixture
def backend() -> Iterator[LocalBackend]:
    backend = LocalBackend()
    yield backend
    backend.close()


def sit(backend: LocalBackend, tenant: str, memory: int = 0, **seat: object) -> Caller:
    named = Seat(tenant=tenant, memory_bytes=memory, **{"label": f"of {tenant}", **seat})  # type: ignore[arg-type]
    return Caller(backend.connect_as(backend.devices()[-1], named))


def mib(caller: Caller) -> int:
    return caller.put([1.0] * FLOATS)


def charged(backend: LocalBackend, tenant: str) -> int:
    return backend.usage()[tenant].memory_bytes >> 20


def test_the_backend_keeps_tenants(backend: LocalBackend) -> None:
    assert isinstance(backend, Tenanting)


def test_a_quota_is_for_all_sessions_together_and_says_who_holds_what(backend: LocalBackend) -> None:
    first = sit(backend, "alice", 4 << 20, label="s-1")
    second = sit(backend, "alice", 4 << 20, label="s-2")
    other = sit(backend, "bob", 4 << 20)
    mib(first), mib(first)
    kept = mib(second)
    mib(second)
    with pytest.raises(OutOfMemory) as caught:
        mib(second)
    message = str(caught.value)
    assert "needs 1048576 bytes, 4194304 of the tenant alice's quota of 4194304 are in use" in message
    assert ": session s-2 holds 2097152, s-1 holds 2097152" in message
    assert other.get(mib(other))[:1] == [1.0]
    assert second.get(kept)[:1] == [1.0]
    second.session.free([kept])
    mib(first)
    assert charged(backend, "alice") == 4
    first.session.close()
    assert charged(backend, "alice") == 1
    second.session.close()
    assert charged(backend, "alice") == 0


def test_a_step_that_finds_no_memory_poisons_what_it_makes(backend: LocalBackend) -> None:
    caller = sit(backend, "alice", 3 << 20)
    x, y = mib(caller), mib(caller)
    graph = single("aten::add.Tensor", [spec(FLOATS), spec(FLOATS)], spec(FLOATS))
    fits = caller.run(graph, [x, y])
    lost = caller.run(graph, [x, y])
    with pytest.raises(OutOfMemory, match="alice's quota"):
        caller.get(lost)
    assert caller.get(fits)[:1] == [2.0]


def test_a_value_above_the_quota_itself(backend: LocalBackend) -> None:
    with pytest.raises(OutOfMemory, match="it is more than the quota itself"):
        mib(sit(backend, "alice", 1 << 19))


def test_what_sessions_of_a_tenant_share_counts_once_for_it(backend: LocalBackend) -> None:
    first, second, other = sit(backend, "alice", 2 << 20), sit(backend, "alice", 2 << 20), sit(backend, "bob")
    value = first.session.share(mib(first))  # type: ignore[attr-defined]
    for caller in (second, second, other):
        caller.session.adopt(caller.handles(), value)  # type: ignore[attr-defined]
    assert (charged(backend, "alice"), charged(backend, "bob")) == (1, 1)
    mib(second)
    more = second.handles()
    second.session.adopt(more, value)  # type: ignore[attr-defined]  # the quota is used up, and this is no more
    assert charged(backend, "alice") == 2
    first.session.close()
    assert charged(backend, "alice") == 2  # the second has it still
    second.session.close()
    assert (charged(backend, "alice"), charged(backend, "bob")) == (0, 1)


def test_who_writes_into_what_it_shares_pays_for_its_copy(backend: LocalBackend) -> None:
    first, second = sit(backend, "alice", 3 << 20), sit(backend, "alice", 3 << 20)
    value = first.session.share(mib(first))  # type: ignore[attr-defined]
    mine = second.handles()
    second.session.adopt(mine, value)  # type: ignore[attr-defined]
    assert charged(backend, "alice") == 1
    zero = Graph(
        values=(spec(FLOATS), spec(FLOATS)),
        inputs=(Input(0),),
        steps=(node(0, "aten::zero_", [Ref(0)], [1], mutates=[0], aliases=[(1, 0)]),),
        outputs=(),
    )
    second.run(zero, [mine])
    assert set(second.get(mine)) == {0.0}
    assert charged(backend, "alice") == 2
    second.session.close()
    assert charged(backend, "alice") == 1


def test_a_quota_may_change(backend: LocalBackend) -> None:
    caller = sit(backend, "alice", 1 << 20)
    mib(caller)
    with pytest.raises(OutOfMemory):
        mib(caller)
    backend.adjust("alice", memory_bytes=2 << 20, weight=1.0)
    mib(caller)
    backend.adjust("nobody", memory_bytes=1, weight=1.0)


def work(callers: list[Caller], enough: threading.Event, times: int) -> None:
    """Until the first has run so often, all at once, each turn long beside what comes between two."""
    errors: list[BaseException] = []
    ready = threading.Barrier(len(callers), timeout=DEADLINE)

    def run(caller: Caller, most: int) -> None:
        try:
            caller.session.profile(1e-9)  # type: ignore[attr-defined]
            x = caller.put([0.5] * SIDE * SIDE, SIDE, SIDE)
            graph = single("aten::mm", [spec(SIDE, SIDE), spec(SIDE, SIDE)], spec(SIDE, SIDE))
            ready.wait()
            for _ in range(most):
                caller.session.free([caller.run(graph, [x, x])])
                if enough.is_set():
                    return
            enough.set()
        except BaseException as error:
            enough.set()
            errors.append(error)

    threads = [threading.Thread(target=run, args=(caller, times)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert not errors


@pytest.mark.parametrize("batching", [False, True])
def test_the_heavier_tenant_has_more_of_a_device_and_the_lighter_some(batching: bool) -> None:
    backend = LocalBackend(batching=batching)
    callers = [sit(backend, name, weight=weight) for name, weight in (("heavy", 8.0), ("light", 1.0)) for _ in range(4)]
    work(callers, threading.Event(), 60)
    used = {name: usage.seconds for name, usage in backend.usage().items()}
    assert used["heavy"] > 2 * used["light"] > 0
    backend.close()


def test_a_higher_class_goes_first_and_a_lower_one_does_not_starve(backend: LocalBackend) -> None:
    levels = {"first": ("realtime", 16.0), "last": ("batch", 1.0)}
    callers = [
        sit(backend, name, level=level, level_weight=weight) for name, (level, weight) in levels.items() for _ in "1234"
    ]
    work(callers, threading.Event(), 60)
    used = {name: usage.seconds for name, usage in backend.usage().items()}
    assert used["first"] > 2 * used["last"] > 0


def test_turns_change_no_result(backend: LocalBackend) -> None:
    """Sessions that compute together, of two tenants, beside one that is nobody's."""
    plain = Caller(backend.connect(backend.devices()[-1]))
    graph = single("aten::mm", [spec(8, 8), spec(8, 8)], spec(8, 8))
    numbers = [float(number % 7) - 3 for number in range(64)]

    def squared(caller: Caller) -> list[float]:
        x = caller.put(numbers, 8, 8)
        return caller.get(caller.run(graph, [x, x]))

    wanted = squared(plain)
    results: list[list[float]] = []
    callers = [sit(backend, name) for name in ("alice", "bob", "alice")]
    threads = [
        threading.Thread(target=lambda c=caller: results.extend(squared(c) for _ in range(20))) for caller in callers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert results == [wanted] * 60
