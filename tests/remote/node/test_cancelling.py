"""When a session's work is stopped, and when it goes on: whoever asks, and whatever comes meanwhile."""

from __future__ import annotations

import pytest

from genie.remote.node.session.cancelling import Cancellation


class Both:
    """A session and its connection, as far as this looks at them."""

    def __init__(self) -> None:
        self.reason = ""
        self.gone = False

    def cancel(self, reason: str) -> None:
        self.reason = reason

    def resume(self) -> None:
        self.reason = ""

    def hung_up(self) -> bool:
        return self.gone


@pytest.fixture
def both() -> Both:
    return Both()


def cancellation(both: Both, owes: bool = False) -> Cancellation:
    return Cancellation(both, both, lambda: owes)  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [0, 7, (1 << 32) - 1, (1 << 32) - 2])
def test_what_was_asked_later_is_done(both: Both, last: int) -> None:
    its = cancellation(both)
    its.begins((last - 1) % (1 << 32))
    its.until((last + 1) % (1 << 32), "enough")
    for number in (last, last + 1):  # on their way when it was said
        its.begins(number % (1 << 32))
        assert both.reason == "enough"
    its.begins((last + 2) % (1 << 32))
    assert both.reason == ""


def test_what_is_over_stays_so(both: Both) -> None:
    its = cancellation(both)
    its.until(3, "enough")
    its.over("the end")
    its.until(3, "more")
    its.over("another end")
    its.begins(4)
    assert both.reason == "the end"


def test_who_is_gone_is_noticed_at_the_second_look(both: Both) -> None:
    its = cancellation(both)
    its.begins(1)
    both.gone = True
    assert not its.look(True)  # it may have begun a moment ago
    assert its.look(True)
    assert both.reason == "its client is gone"
    assert not its.look(True)  # it is over already


def test_who_comes_on_is_not_looked_at(both: Both) -> None:
    its = cancellation(both)
    both.gone = True
    for number in range(5):
        its.begins(number)
        assert not its.look(True)
    assert not its.look(False)  # it waits for a message, and notices by itself
    with its.turn:  # it receives
        assert not its.look(True)
    assert both.reason == ""


def test_work_that_others_wait_for_is_finished(both: Both) -> None:
    its = cancellation(both, owes=True)
    both.gone = True
    its.begins(1)
    assert not any(its.look(True) for _ in range(3))
    its.over("the node shut down")  # unless somebody says so
    assert both.reason == "the node shut down"


def test_backends_that_cannot_be_stopped_are_left_alone() -> None:
    class Plain:
        pass

    its = Cancellation(Plain(), Plain(), lambda: False)  # type: ignore[arg-type]
    its.begins(1)
    its.until(1, "x")
    its.begins(2)
    its.over("y")
    assert not its.gone()
