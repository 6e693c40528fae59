"""When everything of a plan happens, by its estimates. The one evaluator: searches, policies and pictures use it.

* A device runs its steps in their order, one at a time, each as soon as its operands are there.
* A value is sent once to each device that needs it. A device sends what it has in the order it comes to have it, one
  transfer at a time, and receives one at a time: of the transfers that are first in their senders' queues, the one that
  can begin soonest does (of equal ones that of the device with the lowest number).
* Transfers and steps overlap. Inputs are where they start at time zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from genie.graph import Graph
from genie.graph.operands import operands
from genie.plan.records import Again, Decision, Transfer

_NEVER = float("inf")


class Span(NamedTuple):
    """When a step runs or a transfer is under way, in seconds from the start.

    ``waits`` says what it began right after: for a step ``device`` (number ``on`` is the step before it there; those
    that are run again are numbered on, after all steps) or
    ``transfer`` (``on`` is the transfer that brought the last operand); for a transfer ``made`` (``on`` is the step
    that makes the value), ``sender`` or ``receiver`` (``on`` is the transfer that kept the port). ``""`` is nothing:
    it begins at the start.
    """

    start: float
    finish: float
    waits: str = ""
    on: int = -1


class Timeline(NamedTuple):
    """``busy`` is each device's seconds of work, ``sent`` and ``received`` those its ports are taken.
    ``critical_steps`` and ``critical_transfers`` are the chain that the last step to finish waited for, in order of
    time."""

    steps: tuple[Span, ...]
    transfers: tuple[Span, ...]
    makespan: float
    busy: tuple[float, ...]
    sent: tuple[float, ...]
    received: tuple[float, ...]
    critical_steps: tuple[int, ...]
    critical_transfers: tuple[int, ...]
    again: tuple[Span, ...] = ()  # of the plan's steps that are run again


def timeline(
    graph: Graph,
    decisions: Sequence[Decision],
    moves: Sequence[Transfer],
    devices: int,
    again: Sequence[Again] = (),
) -> Timeline:
    """The times of a placed graph."""
    if not moves and not again and len({made.device for made in decisions}) < 2:
        return _alone(decisions, devices)
    return _Clock(graph, decisions, moves, devices, again).run()


def makespan(
    graph: Graph,
    decisions: Sequence[Decision],
    moves: Sequence[Transfer],
    devices: int,
    again: Sequence[Again] = (),
) -> float:
    """Seconds from start to end."""
    if not moves and not again and len({made.device for made in decisions}) < 2:
        total = 0.0
        for made in decisions:
            total += made.seconds
        return total
    return timeline(graph, decisions, moves, devices, again).makespan


def _alone(decisions: Sequence[Decision], devices: int) -> Timeline:
    ends = list(accumulate((made.seconds for made in decisions), initial=0.0))
    spans = [Span(ends[0], ends[1])] if decisions else []
    spans += [Span(ends[i], ends[i + 1], "device", i - 1) for i in range(1, len(decisions))]
    busy = [0.0] * devices
    if decisions:
        busy[decisions[0].device] = ends[-1]
    idle = (0.0,) * devices
    return Timeline(tuple(spans), (), ends[-1], tuple(busy), idle, idle, tuple(range(len(decisions))), ())


class _Clock:
    """The same steps of arithmetic, in the same order, as the native search's ``Clock``."""

    def __init__(
        self,
        graph: Graph,
        decisions: Sequence[Decision],
        moves: Sequence[Transfer],
        devices: int,
        again: Sequence[Again],
    ) -> None:
        self.graph = graph
        self.decisions = decisions
        self.moves = moves
        self.devices = devices
        self.outgoing: dict[tuple[int, int], list[int]] = {}  # (value, device) → transfers from there
        for number, move in enumerate(moves):
            self.outgoing.setdefault((move.value, move.source), []).append(number)
        self.operands = operands(graph)
        self.waiting_for = {(move.value, move.target) for move in moves}
        self.arrived: dict[tuple[int, int], tuple[float, int]] = {}  # → when, and by which transfer
        self.queue: list[list[int]] = [[] for _ in range(devices)]
        self.ready = [0.0] * len(moves)
        self.lists: list[list[int]] = [[] for _ in range(devices)]
        # A step that is run again has the number after all steps, and so on.
        self.again = again
        before: dict[int, list[int]] = {}
        for number, each in enumerate(again):
            before.setdefault(each.before, []).append(len(decisions) + number)
        for step, made in enumerate(decisions):
            self.lists[made.device] += before.get(step, ())
            self.lists[made.device].append(step)
        self.at = [0] * devices
        self.free = [0.0] * devices
        self.busy = [0.0] * devices
        self.steps: list[Span] = [Span(0.0, 0.0)] * (len(decisions) + len(again))
        self.sent: list[Span] = [Span(0.0, 0.0)] * len(moves)
        self.maker = {value: step for step, node in enumerate(graph.steps) for value in node.outputs if value >= 0}

    def run(self) -> Timeline:
        for number, move in enumerate(self.moves):
            # What starts somewhere is sent from there in the order it is needed; what arrives may be sent on.
            if move.value not in self.maker and (move.value, move.source) not in self.waiting_for:
                self.queue[move.source].append(number)
        for device in range(self.devices):
            self._advance(device)
        front = [0] * self.devices
        out, into = [0.0] * self.devices, [0.0] * self.devices
        out_by, into_by = [-1] * self.devices, [-1] * self.devices
        sent, received = [0.0] * self.devices, [0.0] * self.devices
        targets = [move.target for move in self.moves]
        moves, queue, ready, maker, arrived = self.moves, self.queue, self.ready, self.maker, self.arrived
        while True:
            soonest, sender = _NEVER, -1
            for device, line in enumerate(queue):
                if front[device] < len(line):
                    number = line[front[device]]
                    begin = ready[number]
                    if out[device] > begin:
                        begin = out[device]
                    if into[targets[number]] > begin:
                        begin = into[targets[number]]
                    if begin < soonest:
                        soonest, sender = begin, device
            if sender < 0:
                break
            number = queue[sender][front[sender]]
            front[sender] += 1
            move = moves[number]
            value, target = move.value, move.target
            waits, on = "made", maker.get(value, -1)
            if out[sender] > ready[number] and out[sender] >= into[target]:
                waits, on = "sender", out_by[sender]
            elif into[target] > ready[number]:
                waits, on = "receiver", into_by[target]
            elif value not in maker:
                by = arrived.get((value, sender))
                waits, on = ("transfer", by[1]) if by is not None else ("", -1)
            finish = soonest + move.seconds
            self.sent[number] = Span(soonest, finish, waits, on)
            out[sender] = into[target] = finish
            out_by[sender] = into_by[target] = number
            sent[sender] += move.seconds
            received[target] += move.seconds
            arrived[value, target] = (finish, number)
            self._there(value, target, finish)
            self._advance(target)
        last = -1
        makespan = 0.0
        for device in range(self.devices):
            if self.lists[device] and (last < 0 or self.free[device] > makespan):
                makespan = self.free[device]
                last = self.lists[device][-1]
        steps, waited = self._critical(last)
        count = len(self.decisions)
        return Timeline(
            tuple(self.steps[:count]),
            tuple(self.sent),
            makespan,
            tuple(self.busy),
            tuple(sent),
            tuple(received),
            steps,
            waited,
            tuple(self.steps[count:]),
        )

    def _there(self, value: int, device: int, when: float) -> None:
        for number in self.outgoing.get((value, device), ()):
            self.ready[number] = when
            self.queue[device].append(number)

    def _advance(self, device: int) -> None:
        steps, at, free = self.lists[device], self.at[device], self.free[device]
        count, waiting, arrived, outgoing = len(self.decisions), self.waiting_for, self.arrived, self.outgoing
        while at < len(steps):
            step = number = steps[at]
            if number >= count:
                step = self.again[number - count].step
            start = free
            waits, on = ("device", steps[at - 1]) if at else ("", -1)
            late = False
            for value in self.operands[step]:
                key = (value, device)
                if key in waiting:
                    there = arrived.get(key)
                    if there is None:
                        late = True
                        break
                    if there[0] > start:
                        start = there[0]
                        waits, on = "transfer", there[1]
            if late:
                break
            took = self.decisions[step].on(device)
            free = start + took
            self.busy[device] += took
            self.steps[number] = Span(start, free, waits, on)
            if number == step:
                for value in self.graph.steps[step].outputs:
                    if (value, device) in outgoing:
                        self._there(value, device, free)
            at += 1
        self.at[device], self.free[device] = at, free

    def _critical(self, last: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        steps: list[int] = []
        moves: list[int] = []
        kind, number = "device" if last >= 0 else "", last
        while kind:
            if kind in ("device", "made"):
                if number < 0:
                    break
                if number < len(self.decisions):
                    steps.append(number)
                span = self.steps[number]
            else:
                moves.append(number)
                span = self.sent[number]
            kind, number = span.waits, span.on
        return tuple(reversed(steps)), tuple(reversed(moves))
