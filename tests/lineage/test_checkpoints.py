"""Checkpoints of groups, over nodes that can tell their state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lineage.mortals import Mortals
from local.long_work import long_program

from genie.bindings import Prediction, parameters
from genie.checkpoints import DiskCheckpoints
from genie.errors import Cancelled, CheckpointError, ConnectionLost, LocalProtocolError
from genie.interfaces import Recalling
from genie.loops import Loop
from genie.testing import Caller, single
from genie.testing.plans import spec
from genie_backend_local import LocalBackend

Make = Callable[..., Mortals]
Connect = Callable[..., list[Caller]]

NEG = single("aten::neg", [spec(2)], spec(2))
ALWAYS = 1e-9
_SIDE, _MANY = 400, 3000  # of matrices, and products: minutes, if nobody stops them


@pytest.fixture
def nodes(mortals: Make, monkeypatch: pytest.MonkeyPatch) -> Mortals:
    monkeypatch.setattr("genie.lineage.checkpointing._SHARE", 0)
    return mortals(2, local=LocalBackend)


def _counted(caller: Caller, name: str) -> int:
    return int(caller.session.stats()[name])


def test_little_is_repeated_after_a_checkpoint(nodes: Mortals, connect: Connect) -> None:
    (caller,) = connect(nodes, checkpoint_interval=ALWAYS)
    value = caller.put([1.0, 2.0])
    for _ in range(50):
        after = caller.run(NEG, [value])
        caller.session.free([value])
        value = after
        caller.get(value)
    nodes.die(0)
    again = caller.run(NEG, [value])
    assert caller.get(again) == [-1.0, -2.0]
    assert _counted(caller, "recovery_calls") <= 3
    nodes.rise(0)
    nodes.die(1)  # what was checkpointed there, of a session that began with a checkpoint
    assert caller.get(caller.run(NEG, [again])) == [1.0, 2.0]


def test_work_that_is_taken_back_stops_and_a_checkpoint_makes_up_for_it(nodes: Mortals, connect: Connect) -> None:
    (caller,) = connect(nodes, checkpoint_interval=60.0)
    value, kept = caller.put([1.0] * _SIDE**2, _SIDE, _SIDE), caller.put([1.0, 2.0])
    square = spec(_SIDE, _SIDE)
    power = single("aten::linalg_matrix_power", [square], square, 3)
    for _ in range(_MANY):
        value = caller.run(power, [value])
    assert isinstance(caller.session, Recalling)
    caller.session.cancel_work()
    with pytest.raises(Cancelled):
        caller.get(value)
    assert caller.get(kept) == [1.0, 2.0]
    assert _counted(caller, "checkpoints") == 1
    nodes.again()
    assert caller.get(caller.run(NEG, [kept])) == [-1.0, -2.0]


def test_a_full_log_becomes_a_checkpoint(nodes: Mortals, connect: Connect) -> None:
    (caller,) = connect(nodes, log_bytes=100_000)
    values = [caller.put([float(number)] * 1000) for number in range(100)]
    assert caller.get(values[99]) == [99.0] * 1000
    assert _counted(caller, "checkpoints") >= 2
    assert _counted(caller, "recovery_log_bytes") < 110_000
    nodes.again()
    assert [caller.get(value)[0] for value in values] == list(range(100))


def test_a_full_disk_becomes_a_checkpoint(nodes: Mortals, connect: Connect) -> None:
    (caller,) = connect(nodes, disk_bytes=1_500_000)
    for number in range(12):
        value = caller.put([float(number)] * 50_000)
        if number != 11:
            caller.session.free([value])
    assert _counted(caller, "checkpoints") >= 1
    nodes.again()
    assert caller.get(value) == [11.0] * 50_000


def test_values_under_way_are_waited_for(nodes: Mortals, connect: Connect) -> None:
    one, two = connect(nodes, 2, checkpoint_interval=ALWAYS)
    inlet = two.session.inlet("one")  # type: ignore[attr-defined]
    outlet = one.session.outlet(inlet)  # type: ignore[attr-defined]
    source = one.put([3.0, 4.0])
    for position in range(4):
        one.session.send(outlet, source)  # type: ignore[attr-defined]
        before = _counted(one, "checkpoints")
        one.get(source)
        assert _counted(one, "checkpoints") == before
        arrived = two.handles()
        two.session.receive(inlet, position, arrived)  # type: ignore[attr-defined]
        assert two.get(arrived) == [3.0, 4.0]
        assert _counted(one, "checkpoints") == before + 1
        nodes.again(position % 2)


def test_a_loop_is_waited_for(nodes: Mortals, connect: Connect) -> None:
    (caller,) = connect(nodes, checkpoint_interval=ALWAYS)
    value, plan = caller.put([1.0, 2.0]), caller.load(NEG)
    caller.get(value)
    words = parameters(NEG)
    bindings = Prediction(1, words).encode([caller.handles(), value, *words])
    iterations = caller.session.loop(plan, bindings, Loop(carries=((0, 0),), emit=(0,)), 9)  # type: ignore[attr-defined]
    assert len([next(iterations) for _ in range(4)]) == 4
    before = _counted(caller, "checkpoints")
    caller.get(value)
    assert _counted(caller, "checkpoints") == before
    nodes.again()
    assert len(list(iterations)) == 5
    caller.get(value)
    assert _counted(caller, "checkpoints") == before + 1


def test_a_failed_checkpoint_leaves_the_log(nodes: Mortals, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    (caller,) = connect(nodes, checkpoint_interval=ALWAYS)

    def full(*_: object) -> None:
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(DiskCheckpoints, "save", full)
    value = caller.run(NEG, [caller.put([1.0, 2.0])])
    assert caller.get(value) == [-1.0, -2.0]
    assert _counted(caller, "checkpoints") == 0
    nodes.again()
    assert caller.get(value) == [-1.0, -2.0]


def test_a_damaged_checkpoint_is_told(nodes: Mortals, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    (caller,) = connect(nodes, checkpoint_interval=ALWAYS)
    value = caller.put([1.0, 2.0])
    caller.get(value)

    def damaged(*_: object) -> None:
        raise CheckpointError("a checkpoint is damaged")

    monkeypatch.setattr(DiskCheckpoints, "load", damaged)
    nodes.again()
    with pytest.raises(ConnectionLost, match="its last checkpoint is of no use: a checkpoint is damaged"):
        caller.get(value)


def test_calls_between_giving_up_and_the_next_checkpoint(
    nodes: Mortals, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What executions say relies on those before, logged or not."""
    (caller,) = connect(nodes, disk_bytes=100_000, checkpoint_interval=3600)
    value = caller.run(NEG, [caller.put([1.0, 2.0])])

    def full(*_: object) -> None:
        raise CheckpointError("full")

    with monkeypatch.context() as patched:
        patched.setattr(DiskCheckpoints, "save", full)
        caller.session.free([caller.put([0.0] * 40_000)])  # more than may be kept: nothing is logged from here on
    for _ in range(3):
        value = caller.run(NEG, [value])
    with pytest.raises(LocalProtocolError):
        caller.session.execute(99, b"\0")
    assert caller.get(value) == [1.0, 2.0]
    assert _counted(caller, "checkpoints") == 1
    value = caller.run(NEG, [value])
    nodes.again()
    assert caller.get(value) == [-1.0, -2.0]
    assert caller.get(caller.run(NEG, [value])) == [1.0, 2.0]


def test_a_checkpoint_makes_up_for_work_that_was_cancelled(nodes: Mortals, connect: Connect) -> None:
    """It has what became of it."""
    (caller,) = connect(nodes, checkpoint_interval=3600)
    _, graph = long_program(2000)
    inputs = [caller.put([1.0] * 512 * 512, 512, 512), caller.put([0.0] * 3)]
    last = caller.run(graph, inputs) + 1
    assert isinstance(caller.session, Recalling)
    caller.session.cancel_work()
    for cancelled in (last, inputs[1]):
        with pytest.raises(Cancelled):
            caller.get(cancelled)
    caller.get(inputs[0])
    assert _counted(caller, "checkpoints") == 1
    nodes.again()
    with pytest.raises(Cancelled):
        caller.get(last)
    assert caller.get(inputs[0])[0] == 1.0
    assert _counted(caller, "recoveries") == 1
