"""What a placement costs: memory, transfers and time, from estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from genie.device import Device
from genie.flops import sizes
from genie.graph import Graph
from genie.plan import Decision, Transfer, liveness


class Memory(NamedTuple):
    """Bytes a graph needs on one device: its inputs (weights included), the most that lives at once, and where."""

    inputs: int
    peak: int
    node: int  # id of the node at the peak, -1 when the inputs alone are the most


def memory(graph: Graph, releases: Sequence[Sequence[int]] | None = None) -> Memory:
    """The graph's need on one device, by liveness; values that share memory count once."""
    size = sizes(graph)
    releases = liveness(graph) if releases is None else releases
    root = list(range(len(size)))  # of each value, the first that shares its memory
    sharers = [1] * len(size)
    held = sum([size[entry.value] for entry in graph.inputs])
    inputs = peak = held
    at = -1
    for node, gone in zip(graph.steps, releases, strict=True):
        for output, operand in node.aliases:
            if root[output] == output:
                root[output] = root[operand]
                sharers[root[operand]] += 1
        for value in node.outputs:
            if value >= 0 and root[value] == value:
                held += size[value]
        if held > peak:
            peak, at = held, node.id
        for value in gone:
            first = root[value]
            sharers[first] -= 1
            if not sharers[first]:
                held -= size[first]
    return Memory(inputs, peak, at)


def transfers(
    graph: Graph,
    places: Sequence[int],
    devices: Sequence[Device],
    estimate: Callable[[Device, Device, int], float],
) -> tuple[Transfer, ...]:
    """Each value once to each device that uses it and did not make it; an input starts where it is first used."""
    size = sizes(graph)
    holders: dict[int, list[int]] = {}
    moves: list[Transfer] = []
    for step, (node, place) in enumerate(zip(graph.steps, places, strict=True)):
        for value in node.operands():
            at = holders.setdefault(value, [place])
            if place not in at:
                cost = float(estimate(devices[at[0]], devices[place], size[value]))
                moves.append(Transfer(value, at[0], place, step, size[value], cost))
                at.append(place)
        for value in node.outputs:
            if value >= 0:
                holders[value] = [place]
    return tuple(moves)


def split_peaks(
    graph: Graph, places: Sequence[int], devices: int, releases: Sequence[Sequence[int]], moves: Sequence[Transfer]
) -> list[int]:
    """Bytes per device; a view counts besides what it views, so this is an upper bound."""
    size = sizes(graph)
    inputs = {entry.value for entry in graph.inputs}
    homes: dict[int, set[int]] = {}
    held = [0] * devices
    for node, place in zip(graph.steps, places, strict=True):
        for value in node.operands():
            if value in inputs and value not in homes:
                homes[value] = {place}
                held[place] += size[value]
    peaks = list(held)
    arriving = _by_step(moves)
    for step, (node, place) in enumerate(zip(graph.steps, places, strict=True)):
        for move in arriving.get(step, ()):
            homes[move.value].add(place)
            held[place] += size[move.value]
        for value in node.outputs:
            if value >= 0:
                homes[value] = {place}
                held[place] += size[value]
        peaks = list(map(max, peaks, held))
        for value in releases[step]:
            for home in homes.pop(value, ()):
                held[home] -= size[value]
    return peaks


def makespan(graph: Graph, decisions: Sequence[Decision], moves: Sequence[Transfer]) -> float:
    """Seconds from start to end: devices work side by side, each on one node at a time, in order of steps."""
    if not moves and len({made.device for made in decisions}) < 2:
        return sum([made.seconds for made in decisions], 0.0)
    ready: dict[tuple[int, int], float] = {}  # (value, device) → when it is there
    free: dict[int, float] = {}
    arriving = _by_step(moves)
    for step, (node, made) in enumerate(zip(graph.steps, decisions, strict=True)):
        for move in arriving.get(step, ()):
            ready[move.value, move.target] = ready.get((move.value, move.source), 0.0) + move.seconds
        needs = [ready.get((value, made.device), 0.0) for value in node.operands()]
        done = max([free.get(made.device, 0.0), *needs]) + made.seconds
        free[made.device] = done
        for value in node.outputs:
            ready[value, made.device] = done
    return max(free.values(), default=0.0)


def gib(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB"


def _by_step(moves: Sequence[Transfer]) -> dict[int, list[Transfer]]:
    found: dict[int, list[Transfer]] = {}
    for move in moves:
        found.setdefault(move.before, []).append(move)
    return found
