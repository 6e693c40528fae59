"""Ship or recompute: where a value is cheaper to compute again than to send, by the evaluator's word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from genie.graph import Graph
from genie.graph.operands import operands
from genie.plan import Again, Constraint, Timeline, Transfer

_DEEPEST = 4  # steps that one value may take to make again
_TRIES = 6

Option = tuple[float, tuple[Again, ...]]  # seconds saved, and what is run again for it


def choices(
    graph: Graph,
    places: Sequence[int],
    seconds: Sequence[Sequence[float]],
    moves: Sequence[Transfer],
    held: Sequence[Constraint],
    releases: Sequence[Sequence[int]],
    most: float,
) -> list[Option]:
    """For transfers of what is cheaper to make again where it goes, in at most ``most`` seconds: seconds saved, and
    the steps, in order.

    Only steps that change nothing are run twice: none that writes, draws random numbers, or shares memory that is
    written to or outlives the graph under two names; and only from operands that are there anyhow.
    """
    barred = [False] * len(graph.steps)
    allowed: dict[int, set[int]] = {}
    for each in held:
        for step in each.steps:
            if each.devices:
                allowed.setdefault(step, set(each.devices)).intersection_update(each.devices)
            else:
                barred[step] = True
    maker: dict[int, int] = {}
    for step, node in enumerate(graph.steps):
        barred[step] = barred[step] or bool(node.mutates)
        for value in node.outputs:
            if value >= 0:
                maker[value] = step
    takes = operands(graph)
    gone = {value: step for step, values in enumerate(releases) for value in values}
    there: dict[tuple[int, int], int] = {}  # (value, device) → from which step on it is there
    for entry in graph.inputs:
        for device in {move.source for move in moves if move.value == entry.value}:
            there[entry.value, device] = -1
    for step, (taken, place) in enumerate(zip(takes, places, strict=True)):
        for value in taken:
            there.setdefault((value, place), step)
        for value in graph.steps[step].outputs:
            there[value, place] = step
    for move in moves:
        there[move.value, move.target] = move.before

    def steps_for(value: int, device: int, before: int, left: int) -> dict[int, None] | None:
        """The steps that make a value on a device, operands first; ``None`` when it can't be."""
        step = maker.get(value)
        if step is None or left <= 0 or barred[step] or device not in allowed.get(step, {device}):
            return None
        if places[step] == device:  # it was here, and is released by then
            return None
        found: dict[int, None] = {}
        for operand in takes[step]:
            if there.get((operand, device), before) < before <= gone.get(operand, before):
                continue
            deeper = steps_for(operand, device, before, left - 1)
            if deeper is None:
                return None
            found.update(deeper)
        found[step] = None
        return found if len(found) <= _DEEPEST else None

    found: list[Option] = []
    for move in moves:
        steps = steps_for(move.value, move.target, move.before, _DEEPEST)
        if steps is None:
            continue
        takes_again = sum(seconds[move.target][step] for step in steps)
        saved = move.seconds - takes_again
        if saved > 0 and takes_again <= most:
            found.append((saved, tuple(Again(step, move.target, move.before) for step in steps)))
    found.sort(key=lambda each: -each[0])
    return found


def best(
    options: Sequence[Option],
    critical: Mapping[int, bool],
    judge: Callable[[tuple[Again, ...]], float],
    now: float,
    last: Callable[[int], int],
) -> tuple[Again, ...]:
    """The repeats that the evaluator likes best: all of them, those the end waits for, or some of the largest alone.

    ``critical`` says of the number of an option whether the end waits for its transfer; ``judge`` gives a set's score;
    ``last`` as in :func:`joined`.
    """
    if not options:
        return ()
    sets = [list(range(len(options))), [number for number in range(len(options)) if critical.get(number)]]
    score, chosen = now, list[int]()
    for each in sets:
        if each and (value := judge(joined(options, each, last))) < score:
            score, chosen = value, each
    for number in range(min(_TRIES, len(options))):
        other = [each for each in chosen if each != number] if number in chosen else sorted([*chosen, number])
        if (value := judge(joined(options, other, last))) < score:
            score, chosen = value, other
    return joined(options, chosen, last)


def joined(options: Sequence[Option], numbers: Sequence[int], last: Callable[[int], int]) -> tuple[Again, ...]:
    """The repeats of several options in the order of need. What two of them make is made once, where it is needed
    first, if it is still there for the second: ``last`` is the step after which what a step makes is released."""
    wanted = sorted((each.before, each.step, each.device) for number in numbers for each in options[number][1])
    found: list[Again] = []
    made: dict[tuple[int, int], int] = {}  # (step, device) → before which step it was made last
    for before, step, device in wanted:
        had = made.get((step, device))
        if had is None or had < before > last(step):
            found.append(Again(step, device, before))
            made[step, device] = before
    return tuple(found)


def released(graph: Graph, releases: Sequence[Sequence[int]]) -> Callable[[int], int]:
    """Of a step: after which step the first of what it makes is released; the graph's length if none is."""
    gone = {value: step for step, values in enumerate(releases) for value in values}
    end = len(graph.steps)

    def last(step: int) -> int:
        return min((gone.get(value, end) for value in graph.steps[step].outputs if value >= 0), default=end)

    return last


def waited_for(times: Timeline, moves: Sequence[Transfer], options: Sequence[Option]) -> dict[int, bool]:
    """Which options do without a transfer of the critical path."""
    hot = {(moves[number].target, moves[number].before) for number in times.critical_transfers}
    return {number: (its[-1].device, its[-1].before) in hot for number, (_, its) in enumerate(options)}
