"""What follows from a placement: what is sent, and how much memory each device needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from genie.graph import Graph
from genie.graph.operands import operands
from genie.graph.sizes import sizes
from genie.plan.lives import room
from genie.plan.records import Again, Link, Transfer, repeats


class Links:
    """The ways between devices by their numbers; a device reaches itself at no cost."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._by_pair = {(link.source, link.target): link for link in links}

    def seconds(self, source: int, target: int, bytes: int) -> float:
        if source == target:
            return 0.0
        link = self._by_pair[source, target]
        return link.latency + bytes / link.bytes_per_second

    def __contains__(self, pair: tuple[int, int]) -> bool:
        return pair[0] == pair[1] or pair in self._by_pair


def transfers(
    graph: Graph,
    places: Sequence[int],
    links: Links,
    homes: Mapping[int, int],
    size: Sequence[int] | None = None,
    again: Sequence[Again] = (),
) -> tuple[Transfer, ...]:
    """Each value once to each device that uses it and does not have it, in the order of need.

    An input starts at its home, or where it is used first.
    """
    size = sizes(graph) if size is None else size
    repeated = repeats(again)
    taken_by = operands(graph)
    holders: dict[int, list[int]] = {value: [home] for value, home in homes.items()}
    moves: list[Transfer] = []
    for step, (node, taken, place) in enumerate(zip(graph.steps, taken_by, places, strict=True)):
        if step in repeated:
            made: list[int] = []
            needed: dict[int, None] = {}
            for each in repeated[step]:
                needed.update(dict.fromkeys(value for value in taken_by[each.step] if value not in made))
                made += graph.steps[each.step].outputs
            needed.update(dict.fromkeys(value for value in taken if value not in made))
            for value in made:
                if value >= 0:
                    holders[value].append(place)
            taken = tuple(needed)
        for value in taken:
            at = holders.setdefault(value, [place])
            if place not in at:
                cost = links.seconds(at[0], place, size[value])
                moves.append(Transfer(value, at[0], place, step, size[value], cost))
                at.append(place)
        for value in node.outputs:
            if value >= 0:
                holders[value] = [place]
    return tuple(moves)


def peaks(
    graph: Graph,
    places: Sequence[int],
    devices: int,
    releases: Sequence[Sequence[int]],
    homes: Mapping[int, int],
    size: Sequence[int] | None = None,
    again: Sequence[Again] = (),
) -> tuple[int, ...]:
    """The most bytes each device holds at once, inputs and arrivals included.

    Steps are taken in their order, and a value is forgotten everywhere at once, so this is an upper bound where devices
    forget what they do not need any more. Values that share memory on a device count once there.
    """
    size = sizes(graph) if size is None else size
    held = [0] * devices
    bytes_of: list[int] = []
    sharers: list[int] = []
    holding: dict[int, dict[int, int]] = {}  # value → device → allocation

    def hold(value: int, device: int, allocation: int = -1) -> None:
        if allocation < 0:
            allocation = len(bytes_of)
            bytes_of.append(size[value])
            sharers.append(0)
            held[device] += size[value]
        sharers[allocation] += 1
        holding.setdefault(value, {})[device] = allocation

    first_use: dict[int, int] = {}
    for taken, place in zip(operands(graph), places, strict=True):
        for value in taken:
            first_use.setdefault(value, place)
    usual = places[0] if places else 0
    needs = room(graph)
    repeated = repeats(again)
    taken_by = operands(graph)
    for entry in graph.inputs:
        hold(entry.value, homes.get(entry.value, first_use.get(entry.value, usual)))
    most = list(held)

    def run(step: int, place: int) -> None:
        node = graph.steps[step]
        for value in taken_by[step]:
            if place not in holding[value]:
                hold(value, place)
        parent: dict[int, int] = {}
        if node.aliases:
            for output, operand in node.aliases:
                parent.setdefault(output, operand)
        for value in node.outputs:
            if value >= 0:
                hold(value, place, holding[parent[value]][place] if value in parent else -1)

    forgotten: set[int] = set()
    for step, (place, gone) in enumerate(zip(places, releases, strict=True)):
        passing: dict[int, None] = {}
        for each in repeated.get(step, ()):
            run(each.step, each.device)
            passing.update(dict.fromkeys(value for value in graph.steps[each.step].outputs if value in forgotten))
        run(step, place)
        now = held[place] + needs[step] if step in needs else held[place]
        if now > most[place]:
            most[place] = now
        if again:
            forgotten.update(gone)
        for value in (*gone, *passing):
            for device, allocation in holding.pop(value).items():
                sharers[allocation] -= 1
                if not sharers[allocation]:
                    held[device] -= bytes_of[allocation]
    return tuple(most)
