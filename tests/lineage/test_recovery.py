"""Groups of sessions whose nodes die: what goes on, what does not, and what is said then."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lineage.mortals import Mortals, recovered, terms
from structlog.testing import capture_logs

from genie.bindings import Prediction, parameters
from genie.errors import (
    BackendUnavailable,
    ConfigError,
    ConnectionLost,
    GenieError,
    LocalProtocolError,
    RemoteOpError,
    SessionClosed,
)
from genie.graph import TensorSpec
from genie.host import HostValue
from genie.interfaces import Connection, Fetched, Recalling
from genie.lineage import elsewhere, group, guarded
from genie.loops import Loop
from genie.remote import RemoteSession
from genie.remote.channels.outlets import Outlet
from genie.testing import Caller, NullBackend, NullSession, single
from genie.testing.plans import pack, spec

Make = Callable[..., Mortals]
Connect = Callable[..., list[Caller]]

NEG = single("aten::neg", [spec(2)], spec(2))


def _counted(caller: Caller, name: str) -> int:
    return int(caller.session.stats()[name])


def test_values_are_made_again_on_the_same_address(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    value = caller.run(NEG, [caller.put([1.0, -2.0])])
    nodes.again()
    assert caller.get(value) == [-1.0, 2.0]
    assert caller.get(caller.run(NEG, [value])) == [1.0, -2.0]
    assert _counted(caller, "recoveries") == 1


def test_values_are_made_again_on_another_node(mortals: Make, connect: Connect) -> None:
    nodes = mortals(2)
    (caller,) = connect(nodes)
    device = caller.session.device
    value = caller.run(NEG, [caller.put([1.0, -2.0])])
    nodes.die(0)
    assert caller.get(value) == [-1.0, 2.0]
    assert nodes.sessions(1) == 1
    assert caller.session.device == device
    nodes.rise(0)
    nodes.die(1)
    assert caller.get(value) == [-1.0, 2.0]
    assert _counted(caller, "recoveries") == 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_survivor_starts_again_with_the_others(mortals: Make, connect: Connect, victim: int) -> None:
    nodes = mortals(2)
    one, two = connect(nodes, 2)
    inlet = two.session.inlet("one")
    outlet = one.session.outlet(inlet)
    source = one.put([3.0, 4.0])
    one.session.send(outlet, source)
    arrived = two.handles()
    two.session.receive(inlet, 0, arrived)
    value = two.run(NEG, [arrived])
    nodes.die(victim)
    assert two.get(value) == [-3.0, -4.0]
    assert nodes.sessions(1 - victim) == 2  # both, and none of before
    one.session.send(outlet, source)
    again = two.handles()
    two.session.receive(inlet, 1, again)
    assert two.get(again) == [3.0, 4.0]
    assert _counted(one, "recoveries") == 1


def test_large_uploads_come_from_disk(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    numbers = [float(number % 97) for number in range(40_000)]
    values = [caller.put(numbers, shared=shared) for shared in (False, True)]
    assert _counted(caller, "recovery_disk_bytes") == 2 * 160_000
    assert _counted(caller, "recovery_log_bytes") < 10_000
    nodes.again()
    assert [caller.get(value) for value in values] == [numbers, numbers]


def test_what_was_freed_stays_freed(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    kept, gone = caller.put([1.0] * 1000), caller.put([2.0] * 1000)
    caller.session.free([gone])
    held = _counted(caller, "memory_bytes")
    nodes.again()
    assert caller.get(kept) == [1.0] * 1000
    assert _counted(caller, "memory_bytes") <= held
    with pytest.raises(GenieError, match="unknown"):
        caller.get(gone)


def test_errors_of_operators_are_repeated_too(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    failed = caller.run(
        single("aten::add.Tensor", [spec(2), spec(3)], spec(2)), [caller.put([1.0] * 2), caller.put([1.0] * 3)]
    )
    with pytest.raises(RemoteOpError) as before:
        caller.get(failed)
    nodes.again()
    with pytest.raises(RemoteOpError) as after:
        caller.get(failed)
    assert after.value.message == before.value.message


def test_what_is_expected_comes_as_it_was(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    value = caller.put([1.0, 2.0])
    caller.session.expect(value, 8)
    nodes.again()
    assert caller.get(value) == [1.0, 2.0]


def _iterations(caller: Caller) -> tuple[Iterator[Any], int]:
    value, plan = caller.put([1.0, 2.0]), caller.load(NEG)
    words = parameters(NEG)
    first = caller.handles()
    bindings = Prediction(1, words).encode([first, value, *words])
    return caller.session.loop(plan, bindings, Loop(carries=((0, 0),), emit=(0,)), 100), first


def test_a_loop_goes_on_where_it_was(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    iterations, last = _iterations(caller)
    told = []
    for emitted in iterations:
        told.append(bytes(emitted[0]))
        if len(told) in (7, 50):
            nodes.again()
    assert told == [pack(numbers, "float32") for numbers in ([-1.0, -2.0], [1.0, 2.0])] * 50
    nodes.again()
    assert caller.get(last) == [1.0, 2.0]


def test_a_loop_that_was_left_is_left_again(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    iterations, _ = _iterations(caller)
    next(iterations)
    del iterations
    gc.collect()
    value = caller.put([5.0])
    nodes.again()
    assert caller.get(value) == [5.0]


def test_death_during_recovery(mortals: Make, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second node dies when it has taken over half of the work."""
    nodes = mortals(3)
    (caller,) = connect(nodes)
    values = [caller.run(NEG, [caller.put([float(number), 0.0])]) for number in range(10)]
    for value in values:
        caller.get(value)
    fetch, left = NullSession.fetch, [5]

    def dying(self: NullSession, handle: int, out: memoryview | None = None) -> Fetched:
        left[0] -= 1
        if left[0] == 0:
            nodes.die(1)
        return fetch(self, handle, out)

    nodes.die(0)
    monkeypatch.setattr(NullSession, "fetch", dying)
    assert [caller.get(value)[0] for value in values] == [-float(number) for number in range(10)]
    assert nodes.sessions(2) == 1


def test_no_node_is_left(mortals: Make, connect: Connect) -> None:
    nodes = mortals(2)
    (caller,) = connect(nodes, attempts=3)
    value = caller.put([1.0])
    nodes.die(0)
    nodes.die(1)
    for _ in range(2):
        with pytest.raises(ConnectionLost, match="no node could take its place: .*no node answers") as caught:
            caller.get(value)
        assert "mortal:1" in str(caught.value)
        assert "mortal:2" in str(caught.value)
    assert caller.session.closed  # type: ignore[attr-defined]


@pytest.mark.parametrize(("quiet", "tells"), [(0.0, True), (600.0, False)])
def test_a_wait_for_a_node_is_told_once_it_is_long(
    mortals: Make, connect: Connect, monkeypatch: pytest.MonkeyPatch, quiet: float, tells: bool
) -> None:
    monkeypatch.setattr(group, "_QUIET_SECONDS", quiet)
    nodes = mortals(1)
    (caller,) = connect(nodes, attempts=3)
    value = caller.put([1.0])
    nodes.die(0)
    with capture_logs() as logs, pytest.raises(ConnectionLost):
        caller.get(value)
    reasons = [line["reason"] for line in logs if line["event"] == "not recovered yet"]
    assert bool(reasons) is tells
    assert all("mortal:1" in reason and "no node answers" in reason for reason in reasons)


def test_other_numbers_are_not_passed_on(mortals: Make, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    value = caller.put([1.0, 2.0])
    assert caller.get(value) == [1.0, 2.0]
    fetch = NullSession.fetch

    def other(self: NullSession, handle: int, out: memoryview | None = None) -> Fetched:
        told = fetch(self, handle, out)
        return HostValue(told.spec, memoryview(pack([1.5, 2.0], "float32")))

    monkeypatch.setattr(NullSession, "fetch", other)
    nodes.again()
    with pytest.raises(ConnectionLost, match="gave other values"):
        caller.get(value)


def test_a_log_that_grew_too_large_is_given_up(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes, log_bytes=100_000)
    values = [caller.put([float(number)] * 1000) for number in range(40)]
    assert _counted(caller, "recovery_log_bytes") < 100_000
    assert caller.get(values[7]) == [7.0] * 1000
    nodes.again()
    with pytest.raises(ConnectionLost, match="recovery_log_bytes"):
        caller.get(values[7])


def test_uploads_that_do_not_fit_on_disk_are_given_up(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes, disk_bytes=100_000)
    value = caller.put([1.0] * 40_000)
    assert caller.get(value) == [1.0] * 40_000
    nodes.again()
    with pytest.raises(ConnectionLost, match="recovery_disk_bytes"):
        caller.get(value)


def test_after_an_interrupt_nothing_is_guessed(
    mortals: Make, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    value = caller.put([1.0, 2.0])
    with monkeypatch.context() as patched:
        patched.setattr(RemoteSession, "seed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            caller.session.seed(0, 1)
    assert caller.get(value) == [1.0, 2.0]
    nodes.again()
    with pytest.raises(ConnectionLost, match="interrupted"):
        caller.get(value)


def test_after_work_was_taken_back_nothing_is_guessed(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    value = caller.put([1.0, 2.0])
    assert isinstance(caller.session, Recalling)
    caller.session.cancel_work()
    assert caller.get(caller.run(NEG, [value])) == [-1.0, -2.0]
    nodes.again()
    with pytest.raises(ConnectionLost, match="was cancelled"):
        caller.get(value)
    with pytest.raises(ConnectionLost, match="was cancelled"):
        caller.session.cancel_work()


def test_taking_back_from_a_node_that_is_gone_leaves_it_to_be_repeated(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    value = caller.run(NEG, [caller.put([1.0, 2.0])])
    nodes.again()
    assert isinstance(caller.session, Recalling)
    caller.session.cancel_work()
    assert caller.get(value) == [-1.0, -2.0]


def test_an_interrupted_recovery_is_begun_anew(
    mortals: Make, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    value = caller.put([1.0, 2.0])
    caller.session.synchronize()
    with monkeypatch.context() as patched:
        patched.setattr(RemoteSession, "upload", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        nodes.again()
        with pytest.raises(KeyboardInterrupt):
            caller.get(value)
    assert caller.get(value) == [1.0, 2.0]


@pytest.mark.parametrize("back", [False, True])
def test_a_node_that_is_gone_before_it_was_used(mortals: Make, tmp_path: Path, back: bool) -> None:
    nodes = mortals(2)
    backend, its = nodes.backend(), terms(tmp_path / "kept")
    devices = backend.devices()
    nodes.die(0)
    with pytest.raises(BackendUnavailable) as gone:
        backend.connect(devices[0])
    if back:
        nodes.rise(0)
    sessions = guarded(elsewhere(devices, backend, its, gone.value), backend, its, devices)
    assert [session.device for session in sessions] == list(devices)
    assert nodes.sessions(1) == (1 if back else 2)
    for session in map(Caller, sessions):
        assert session.get(session.run(NEG, [session.put([1.0, -2.0])])) == [-1.0, 2.0]
    backend.close()


def test_no_node_is_there_to_begin_with(mortals: Make, tmp_path: Path) -> None:
    nodes = mortals(2)
    backend = nodes.backend()
    devices = backend.devices()
    nodes.die(0)
    nodes.die(1)
    with pytest.raises(BackendUnavailable, match=r"could take the place of mortal:1/null:0: mortal:1.*mortal:2"):
        elsewhere(devices[:1], backend, terms(tmp_path, attempts=3), BackendUnavailable("down"))
    with pytest.raises(BackendUnavailable, match="down"):  # sessions of this process: not to be found elsewhere
        elsewhere(devices, NullBackend(), terms(tmp_path), BackendUnavailable("down"))


def test_after_work_was_cancelled(mortals: Make, connect: Connect) -> None:
    """What was done of it is not known here: nothing is repeated."""
    nodes = mortals()
    (caller,) = connect(nodes, checkpoint_interval=0.0)
    value = caller.run(NEG, [caller.put([1.0, -2.0])])
    assert isinstance(caller.session, Recalling)
    caller.session.cancel_work()
    caller.session.cancel_work()
    assert _counted(caller, "recovery_log_entries") == 0
    caller.session.synchronize()
    nodes.again()
    with pytest.raises(ConnectionLost, match="work was cancelled"):
        caller.get(value)


def test_cancelling_does_not_hide_that_a_node_is_gone(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    value = caller.put([1.0])
    caller.session.synchronize()
    nodes.die(0)
    assert isinstance(caller.session, Recalling)
    with pytest.raises(BackendUnavailable):
        caller.session.cancel_work()
    nodes.rise(0)
    assert caller.get(value) == [1.0]  # nothing was cancelled, so all can be repeated
    caller.session.close()
    caller.session.cancel_work()  # of nothing


def test_a_node_that_cannot_reach_another_is_recovered_from(
    mortals: Make, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = mortals(2)
    one, two = connect(nodes, 2)
    reach, attempts = Outlet._connect, []

    def first_not(outlet: Outlet) -> Connection:
        attempts.append(outlet)
        if len(attempts) == 1:
            raise BackendUnavailable("cut off")
        return reach(outlet)

    monkeypatch.setattr(Outlet, "_connect", first_not)
    inlet = two.session.inlet("one")
    one.session.send(one.session.outlet(inlet), one.put([3.0, 4.0]))
    arrived = two.handles()
    two.session.receive(inlet, 0, arrived)
    one.session.synchronize()  # which says so
    assert two.get(arrived) == [3.0, 4.0]
    assert _counted(one, "recoveries") == 1


def test_a_closed_session_is_not_recovered(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    value = caller.put([1.0])
    caller.session.close()
    with pytest.raises(SessionClosed):
        caller.get(value)


def test_a_refused_call_is_not_repeated(mortals: Make, connect: Connect) -> None:
    nodes = mortals()
    (caller,) = connect(nodes)
    with pytest.raises(LocalProtocolError):
        caller.session.execute(3, b"\0")
    with pytest.raises(LocalProtocolError):
        caller.session.upload(1, TensorSpec((4,), "float32"), b"too short")
    value = caller.put([1.0])
    nodes.again()
    assert caller.get(value) == [1.0]


def test_a_directory_that_cannot_be_written_is_told_at_once(mortals: Make, tmp_path: Path) -> None:
    nodes = mortals()
    backend = nodes.backend()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="recovery_dir") as caught:
        recovered(backend, backend.devices(), terms(tmp_path / "file" / "kept"))
    assert str(tmp_path) in str(caught.value)
    backend.close()
