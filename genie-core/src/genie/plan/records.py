"""What a plan is made of: decisions, transfers, links; and the stages that follow from them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from genie.graph import Graph


class Decision(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was decided for one node. ``device`` and ``rule`` index the plan's tables.

    ``source`` says what made the estimate: ``roofline``, ``interpolated``, ``profiled``, or a cost model's name.
    ``error`` is the relative error expected of it (0.2 is 20 %; 0 when none is known), ``bound`` what it is bound
    by: ``compute``, ``memory``, ``overhead``, or nothing known. ``elsewhere`` holds the estimates for all of the plan's
    devices in seconds, in their order; empty when there is one.
    """

    device: int
    seconds: float
    source: str
    rule: int = 0
    elsewhere: tuple[float, ...] = ()
    error: float = 0.0
    bound: str = ""

    def on(self, device: int) -> float:
        """Seconds on a device; those where it was decided to run, when the plan knows of no other."""
        return self.elsewhere[device] if self.elsewhere else self.seconds


class Transfer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A value sent from one device to another, once, before step ``before``."""

    value: int
    source: int
    target: int
    before: int
    bytes: int
    seconds: float


class Again(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``step`` is run once more, on ``device``, before step ``before``: what it makes is computed there, not sent.

    Its operands are not released yet, or made again there for the same step. What it makes that was released before is
    forgotten after step ``before``.
    """

    step: int
    device: int
    before: int


class Link(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The way from one of the plan's devices to another: seconds = ``latency`` + bytes / ``bytes_per_second``."""

    source: int
    target: int
    latency: float
    bytes_per_second: float


class Constraint(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that must hold, in words: ``steps`` run on one of ``devices``, or, where there are none, all on one
    device."""

    text: str
    steps: tuple[int, ...]
    devices: tuple[int, ...] = ()


class EngineChoice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What runs the graph. ``name`` is the engine that compiles the artifact ``kind`` of it; empty: its steps are run.

    ``seconds`` is what the compiled program is estimated to take, ``steps`` what the steps do, ``making`` what
    compiling takes, which is counted over ``calls``. A ``required`` artifact has nothing in its place.
    """

    name: str
    kind: str
    seconds: float = 0.0
    steps: float = 0.0
    making: float = 0.0
    calls: int = 1
    required: bool = False


class Stage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Steps that one device runs in one go, in order: nothing arrives but before the first of them, and nothing is
    sent but after the last."""

    device: int
    steps: tuple[int, ...]


def repeats(again: Sequence[Again]) -> dict[int, list[Again]]:
    """Those before each step."""
    found: dict[int, list[Again]] = {}
    for each in again:
        found.setdefault(each.before, []).append(each)
    return found


def stages(
    graph: Graph, decisions: Sequence[Decision], transfers: Sequence[Transfer], again: Sequence[Again] = ()
) -> tuple[Stage, ...]:
    """The stages of a placed graph, each after those it takes values from. Steps that are run again are listed where
    they are, too."""
    places = [made.device for made in decisions]
    if not transfers and not again:
        by_device: dict[int, list[int]] = {}
        for step, place in enumerate(places):
            by_device.setdefault(place, []).append(step)
        return tuple(Stage(place, tuple(steps)) for place, steps in by_device.items())
    arrives = {(move.before, move.target) for move in transfers}
    departs = {move.value for move in transfers}
    found: list[tuple[int, list[int]]] = []
    running: dict[int, list[int]] = {}
    repeated = repeats(again)
    for step, (node, place) in enumerate(zip(graph.steps, places, strict=True)):
        if place not in running or (step, place) in arrives:
            running[place] = []
            found.append((place, running[place]))
        running[place] += [each.step for each in repeated.get(step, ())]
        running[place].append(step)
        if not departs.isdisjoint(node.outputs):
            del running[place]
    return tuple(Stage(place, tuple(steps)) for place, steps in found)
