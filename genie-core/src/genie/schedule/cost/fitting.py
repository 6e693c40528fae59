"""Fitting a roofline to measured samples: robust least squares of relative errors.

Huber's weights (1964) keep single odd samples from pulling. Four parameters, all positive: their logarithms are fitted
by Levenberg's damped Gauss–Newton (1944), from several starts, since the roofline has a kink.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import exp, isfinite, log
from typing import NamedTuple, TypeAlias

from genie.schedule.cost.roofline import Fitted, Roofline

_HUBER = 0.1  # residuals beyond count linearly
_STEPS = 40
_STARTS = 3
_FIRM = 1e-3  # how much a parameter that no sample tells of is held to its start
_BOUND = 60.0  # logarithms stay within
_NOTHING = 1e-12

_Point: TypeAlias = list[float]


class Sample(NamedTuple):
    """So much work took so many seconds."""

    flops: float
    moved: float  # bytes
    seconds: float


def fit(samples: Sequence[Sample], peak: float, bandwidth: float, start: Roofline, *, firm: float = _FIRM) -> Fitted:
    """The roofline of samples of one class, as shares of ``peak`` (FLOP/s) and ``bandwidth`` (bytes/s).

    ``start`` is where to begin, and what a parameter stays at that no sample tells of. ``firm`` weighs that: so many
    times the squared logarithm of a parameter over its start, beside the squared relative errors of the samples. Raises
    :class:`ValueError` without a sample of positive finite seconds.
    """
    known = [each for each in samples if isfinite(each.seconds) and each.seconds > 0]
    if not known:
        raise ValueError("a roofline needs at least one sample")
    prior = _prior(known, peak, bandwidth, start) if firm <= _FIRM else _point(peak, bandwidth, start)
    best = min(
        (_descend(known, point, prior, firm) for point in _starts(known, prior, firm)), key=lambda found: found[1]
    )[0]
    overhead, knee, per_flop, per_byte = map(exp, best)
    fitted = Roofline(
        compute=1 / (per_flop * peak),
        memory=1 / (per_byte * bandwidth),
        overhead=overhead,
        knee=knee,
    )
    error = sum(abs(exp(_log_seconds(best, each)) - each.seconds) / each.seconds for each in known) / len(known)
    return Fitted(fitted, error, len(known))


def _log_seconds(point: Sequence[float], sample: Sample) -> float:
    overhead, knee, per_flop, per_byte = point
    busy = sample.moved * exp(per_byte)
    if sample.flops:
        busy = max(busy, (sample.flops + exp(knee)) * exp(per_flop))
    return log(exp(overhead) + busy)


def _prior(samples: Sequence[Sample], peak: float, bandwidth: float, start: Roofline) -> _Point:
    """Where the samples say little: ``start``, made no slower than what was seen."""
    per_flop = 1 / (peak * start.compute)
    per_byte = 1 / (bandwidth * start.memory)
    flops = [each.seconds / each.flops for each in samples if each.flops]
    moved = [each.seconds / each.moved for each in samples if each.moved]
    return [
        log(max(min(each.seconds for each in samples) * 0.8, _NOTHING)),
        log(max(start.knee, 1.0)),
        log(min([per_flop, *flops])),
        log(min([per_byte, *moved])),
    ]


def _point(peak: float, bandwidth: float, start: Roofline) -> _Point:
    return [
        log(max(start.overhead, _NOTHING)),
        log(max(start.knee, 1.0)),
        -log(peak * start.compute),
        -log(bandwidth * start.memory),
    ]


def _starts(samples: Sequence[Sample], prior: _Point, firm: float) -> list[_Point]:
    """The prior, and the best of a coarse grid around it."""
    grid = []
    for overhead, knee, per_flop, per_byte in itertools.product((0.0, -2.0), (-2.0, 2.0, 5.0), (0.0, 0.7), (0.0, 0.7)):
        point = [prior[0] + overhead, prior[1] + knee, prior[2] + per_flop, prior[3] + per_byte]
        grid.append((_loss(samples, point, prior, firm), point))
    grid.sort(key=lambda each: each[0])
    return [prior, *(point for _, point in grid[: _STARTS - 1])]


def _loss(samples: Sequence[Sample], point: _Point, prior: _Point, firm: float) -> float:
    total = firm * sum((a - b) ** 2 for a, b in zip(point, prior, strict=True))
    for each in samples:
        gap = abs(exp(_log_seconds(point, each)) / each.seconds - 1)
        total += gap * gap if gap <= _HUBER else _HUBER * (2 * gap - _HUBER)
    return total


def _descend(samples: Sequence[Sample], start: _Point, prior: _Point, firm: float) -> tuple[_Point, float]:
    point, loss = start, _loss(samples, start, prior, firm)
    damping = 1e-2
    for _ in range(_STEPS):
        normal = [[0.0] * 4 for _ in range(4)]
        right = [firm * (b - a) for a, b in zip(point, prior, strict=True)]
        for row in range(4):
            normal[row][row] = firm
        for each in samples:
            slopes, made = _slopes(point, each)
            ratio = exp(made) / each.seconds
            gap = 1 - ratio
            slopes = [ratio * slope for slope in slopes]
            weight = 1.0 if abs(gap) <= _HUBER else _HUBER / abs(gap)
            for row in range(4):
                if slopes[row]:
                    right[row] += weight * slopes[row] * gap
                    for column in range(4):
                        normal[row][column] += weight * slopes[row] * slopes[column]
        moved = False
        for _ in range(8):
            damped = [
                [normal[row][column] * (1 + damping if row == column else 1) for column in range(4)] for row in range(4)
            ]
            step = _solve(damped, right)
            tried = [min(max(a + min(max(b, -3.0), 3.0), -_BOUND), _BOUND) for a, b in zip(point, step, strict=True)]
            now = _loss(samples, tried, prior, firm)
            if now < loss:
                moved = loss - now > 1e-9 * loss
                point, loss = tried, now
                damping = max(damping / 4, 1e-9)
                break
            damping *= 4
        if not moved:
            break
    return point, loss


def _slopes(point: Sequence[float], sample: Sample) -> tuple[_Point, float]:
    """The derivatives of the logarithm of seconds, and that."""
    overhead, knee, per_flop, per_byte = map(exp, point)
    memory = sample.moved * per_byte
    compute = (sample.flops + knee) * per_flop if sample.flops else 0.0
    total = overhead + max(memory, compute)
    if compute > memory:
        return [overhead / total, knee * per_flop / total, compute / total, 0.0], log(total)
    return [overhead / total, 0.0, 0.0, memory / total], log(total)


def _solve(matrix: list[_Point], right: _Point) -> _Point:
    """Gaussian elimination with pivots, of a positive definite matrix."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(4):
        pivot = max(range(column, 4), key=lambda row: abs(rows[row][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(column + 1, 4):
            share = rows[row][column] / rows[column][column]
            for at in range(column, 5):
                rows[row][at] -= share * rows[column][at]
    found = [0.0] * 4
    for row in reversed(range(4)):
        known = sum(rows[row][at] * found[at] for at in range(row + 1, 4))
        found[row] = (rows[row][4] - known) / rows[row][row]
    return found
