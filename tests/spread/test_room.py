"""Copies on a device go when memory is short, the least recently used first; what does not fit even so is explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from genie.device import Device
from genie.errors import OutOfMemory
from genie.graph import Graph, Input, Node, Ref, TensorSpec
from genie.interfaces import Session
from genie.loops import Loop
from genie.remote import NodeServer, RemoteBackend
from genie.schedule import Scheduler
from genie.spread import SpreadSession
from genie.spread.ledger import Ledger
from genie.testing import MemoryTransport, NullBackend
from genie.testing.plans import pack, unpack

KIB = 1 << 10
X = TensorSpec((64, 64), "float32")  # 16 KiB
NUMBERS = [float(number % 7) for number in range(64 * 64)]


class Told:
    name = "told"

    def __init__(self, place: Mapping[int, str]) -> None:
        self._place = place

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        return self._place


class Two:
    """A spread session over two nodes of so much memory each."""

    def __init__(self, members: Sequence[Session]) -> None:
        self.members = members
        self.spread = SpreadSession(Device(id="auto", type="null", memory_gb=1, compute_tflops=1), members)
        self._next = 1000

    def plan(self, graph: Graph, *places: int) -> int:
        # The plans here are about what the session does with a device that the scheduler held for large enough.
        devices = [Device(id=each.device.id, type="null", memory_gb=1, compute_tflops=1) for each in self.members]
        scheduler = Scheduler(devices)
        ids = [devices[place].id for place in places]
        scheduler.set_placement_strategy(Told({node.id: each for node, each in zip(graph.steps, ids, strict=True)}))
        return self.spread.load(scheduler.schedule(graph))

    def put(self, handle: int, sign: float = 1.0) -> None:
        self.spread.upload(handle, X, pack([sign * number for number in NUMBERS]), shared=True)

    def run(self, plan: int, *handles: int, outputs: int = 1) -> int:
        first = self._next
        self._next += outputs
        self.spread.execute_words(plan, [first, *handles])
        return first

    def look(self, handle: int) -> list[float]:
        return unpack(self.spread.fetch(handle).data)

    def moved(self) -> int:
        return self.spread.stats()["values_moved"]

    def used(self, member: int) -> int:
        return int(self.members[member].stats()["memory_bytes"])


@pytest.fixture
def two() -> Iterator[Start]:
    transport = MemoryTransport(stall_timeout=10.0)
    nodes: list[NodeServer] = []
    backends: list[RemoteBackend] = []

    def start(*kib: int) -> Two:
        for number, memory in enumerate(kib):
            nodes.append(NodeServer(NullBackend(memory_bytes=memory * KIB), transport, f"node{number}:0"))
            nodes[-1].start()
        backends.append(RemoteBackend("memory", transport, tuple(node.address for node in nodes), timeout=10.0))
        return Two([backends[-1].connect(device) for device in backends[-1].devices()])

    yield start
    for backend in backends:
        backend.close()
    for node in nodes:
        node.close()


Start = Callable[..., Two]


def negated(donated: bool = False) -> Graph:
    return Graph((X, X), (Input(0, donated=donated),), (Node(0, "aten::neg", "", (Ref(0),), (1,)),), (1,))


def test_copies_go_when_an_execution_needs_their_room(two: Start) -> None:
    """Six values of 16 KiB live on the first node and are used on the second, which has room for four besides what is
    made of one of them."""
    both = two(256, 96)
    here, there = both.plan(negated(), 0), both.plan(negated(), 1)
    handles = range(1, 7)
    for handle in handles:
        both.put(handle, sign=handle)
        both.spread.free([both.run(here, handle)])
    for _ in range(3):
        for handle in handles:
            result = both.run(there, handle)
            assert both.look(result) == [-handle * number for number in NUMBERS]
            both.spread.free([result])
    assert both.spread.stats()["copies_dropped"] > 0
    assert both.used(1) <= 96 * KIB


def test_the_least_recently_used_goes_first(two: Start) -> None:
    both = two(256, 80)
    here, there = both.plan(negated(), 0), both.plan(negated(), 1)
    for handle in (1, 2, 3, 4):
        both.put(handle)
        both.spread.free([both.run(here, handle)])

    def use(handle: int) -> int:
        """How many values moved."""
        before = both.moved()
        both.spread.free([both.run(there, handle)])
        both.spread.synchronize()
        return both.moved() - before

    assert [use(handle) for handle in (1, 2, 3)] == [1, 1, 1]
    assert use(1) == 0  # now 2 is the oldest
    assert use(4) == 1
    assert [use(handle) for handle in (4, 3, 1)] == [0, 0, 0]
    assert both.spread.stats()["copies_dropped"] == 1
    assert use(2) == 1


def test_copies_go_between_the_parts_of_one_plan(two: Start) -> None:
    """A plan that goes to and fro, and uses more copies on the second node than fit there at once."""
    count = 6
    values = [X] * (1 + count)
    steps, last = [], 0
    for number in range(count):
        steps.append(Node(2 * number, "aten::add", "Tensor", (Ref(last), Ref(1 + number), 1), (len(values),)))
        steps.append(Node(2 * number + 1, "aten::neg", "", (Ref(len(values)),), (len(values) + 1,)))
        last = len(values) + 1
        values += [X, X]
    graph = Graph(tuple(values), tuple(Input(value) for value in range(1 + count)), tuple(steps), (last,))
    both = two(256, 80)
    home, zigzag = both.plan(negated(), 0), both.plan(graph, *[1, 0] * count)
    for handle in range(1, count + 2):
        both.put(handle, sign=handle)
        both.spread.free([both.run(home, handle)])
    expected = [1.0 * number for number in NUMBERS]
    for handle in range(2, count + 2):
        expected = [-(number + handle * each) for number, each in zip(expected, NUMBERS, strict=True)]
    for first in (4000, 5000):
        both.spread.execute_words(zigzag, [first, *range(1, count + 2), *[1] * count])
        assert both.look(first) == expected
        both.spread.free([first])
    assert both.spread.stats()["copies_dropped"] > 0


def test_what_is_held_does_not_count_copies(two: Start) -> None:
    both = two(128, 128)
    here, there = both.plan(negated(), 0), both.plan(negated(), 1)
    both.put(1)
    both.spread.free([both.run(here, 1)])
    both.spread.free([both.run(there, 1)])
    both.spread.synchronize()
    assert both.used(1) == 16 * KIB
    held = both.spread.residency(negated(), [999]).held
    assert list(held.values()) == [16 * KIB, 0]


def test_what_does_not_fit_is_explained_and_what_comes_next_has_the_room(two: Start) -> None:
    both = two(96, 96)
    here, there = both.plan(negated(), 0), both.plan(negated(), 1)
    for handle in (1, 2):
        both.put(handle)
        both.spread.free([both.run(here, handle)])
    copied = both.run(there, 1)  # a copy, and a result
    kept = [copied, *(both.run(there, copied) for _ in range(4))]
    assert both.look(kept[-1]) == NUMBERS
    lost = both.run(there, 2)
    with pytest.raises(OutOfMemory) as caught:
        both.look(lost)
    told = str(caught.value)
    assert both.members[1].device.id in told and "16384 bytes needed" in told
    assert "0.0 KiB of weights, 0.0 KiB of copies" in told and "80.0 KiB of other values" in told
    assert "no_grad" in caught.value.hint and "memory_gb" in caught.value.hint
    assert both.look(copied) == [-number for number in NUMBERS]
    both.spread.free([*kept, lost])
    assert both.look(both.run(there, 2)) == [-number for number in NUMBERS]


def test_a_donated_value_is_not_brought_again(two: Start) -> None:
    """It is used up where it lives by an early part; a later one has its copy, which stays until then."""
    steps = (
        Node(0, "aten::neg", "", (Ref(0),), (2,)),  # there: the copy of the first
        Node(1, "aten::add", "Tensor", (Ref(0), Ref(2), 1), (3,)),  # here: used up
        Node(2, "aten::add", "Tensor", (Ref(1), Ref(3), 1), (4,)),  # there: with a copy of the second
        Node(3, "aten::neg", "", (Ref(4),), (5,)),  # here
        Node(4, "aten::add", "Tensor", (Ref(5), Ref(0), 1), (6,)),  # there, again with the first
    )
    graph = Graph((X,) * 7, (Input(0, donated=True), Input(1)), steps, (6,))
    both = two(128, 66)
    here, plan = both.plan(negated(), 0), both.plan(graph, 1, 0, 1, 0, 1)
    for handle in (1, 2):
        both.put(handle, sign=handle)
        both.spread.free([both.run(here, handle)])
    both.spread.execute_words(plan, [4000, 1, 2, 1, 1, 1])
    assert both.look(4000) == [-1.0 * number for number in NUMBERS]
    both.spread.free([4000, 2])
    both.spread.synchronize()
    assert both.used(0) == both.used(1) == 0


def test_copies_that_a_loop_uses_stay_while_it_goes_on(two: Start) -> None:
    both = two(256, 80)
    steps = (Node(0, "aten::add", "Tensor", (Ref(0), Ref(1), 1), (2,)),)
    graph = Graph((X, X, X), (Input(0, donated=True), Input(1)), steps, (2,))
    here, there, step = both.plan(negated(), 0), both.plan(negated(), 1), both.plan(graph, 1)
    for handle in (1, 2, 3, 4):
        both.put(handle, sign=handle)
        both.spread.free([both.run(here, handle)])
    state = both.run(there, 1)
    times = 200  # nodes are asked for a few dozen at a time
    loop = Loop(carries=((0, 0),), emit=(0,))
    repeated = both.spread.loop_words(step, [4000, state, 2, 1], loop, times)
    assert repeated is not None
    sums = [unpack(next(repeated)[0])]
    for handle in (3, 4, 3):  # what would push out the copy of 2
        both.spread.free([both.run(there, handle)])
    sums += [unpack(emitted) for (emitted,) in repeated]
    assert sums == [[(2.0 * count - 1) * number for number in NUMBERS] for count in range(1, times + 1)]


def test_a_ledger_adds_up() -> None:
    ledger = Ledger([1600, 1600])
    ledger.add(1, 0, 100, weight=True)
    ledger.add(2, 0, 50)
    for there, size in ((11, 10), (12, 20), (13, 30)):
        ledger.add_copy(1, there, there - 10, size)
    ledger.used_copy(1, 11)
    assert ledger.oldest(1, 25) == [(2, 12), (3, 13)]
    assert ledger.oldest(1, 25, keep=(2,)) == [(3, 13)]
    assert ledger.short(1, 1440) == 0 and ledger.short(1, 1441) == 1  # a 16th is left
    ledger.move(1, 1)
    assert tuple(ledger.held(1)) == (100, 60, 0) and tuple(ledger.held(0)) == (0, 0, 50)
    ledger.remove(1)
    ledger.remove_copy(1, 12)
    ledger.remove_copy(1, 12)
    assert tuple(ledger.held(1)) == (0, 40, 0) and ledger.values() == [50, 0]
