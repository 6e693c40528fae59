"""What was measured on one device, and estimates from it: exact rows first, then what similar shapes took."""

from __future__ import annotations

import heapq
import operator
from collections import defaultdict
from collections.abc import Iterable
from math import exp, log, prod, sqrt
from typing import NamedTuple

import msgspec

from genie.interfaces import Estimate
from genie.profile.signature import PRODUCT, Family, Signature, dims, family, signature_of, trait_of
from genie.schedule.cost import DeviceRoof, Trait
from genie.timing import Timing

MOST_ROWS = 1 << 14
_MOST_IN_FAMILY = 128
_REMEMBERED = 256  # executions of the past count as no more than so many, so that a change is seen
_FAR = 0.4  # logarithm of a ratio
_NEIGHBOURS = 4
_DOUBT = 0.05  # the weight, among neighbours', of the roofline itself: that of one at a distance of 4.5
_TESTED = 16  # rows of a family that are estimated from its others, to learn the error
_LEAST_ERROR = 0.02  # no machine is steadier
_UNTESTED = 0.5  # the error of an estimate from similar shapes, until there are enough to tell
_OTHER_LAYOUT, _OTHER_TARGET, _OTHER_PHASE = 1.0, 0.2, 0.1  # distances, beside that of logarithms of sizes


class Point(NamedTuple):
    """A measured row as a neighbour for others."""

    signature: Signature
    trait: Trait
    sizes: tuple[float, ...]  # logarithms
    layout: tuple[bool, ...]
    seconds: float


class Table:
    """Rows by signature. Not thread-safe."""

    def __init__(self, rows: Iterable[Timing] = ()) -> None:
        self._rows: dict[Signature, Timing] = {}
        self._families: dict[Family, dict[Signature, Point]] = defaultdict(dict)
        self._errors: dict[Family, tuple[float, float]] = {}
        self.merge(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> tuple[Timing, ...]:
        return tuple(self._rows.values())

    def points(self) -> Iterable[Point]:
        for points in self._families.values():
            yield from points.values()

    def merge(self, rows: Iterable[Timing]) -> set[Family]:
        """Count verified rows in; the families whose estimates may have changed."""
        changed: set[Family] = set()
        for row in rows:
            signature = signature_of(row)
            known = self._rows.get(signature)
            row = merged(known, row) if known is not None else row
            self._rows[signature] = row
            kin = family(signature)
            if known is None:
                self._errors.pop(kin, None)
            points = self._families[kin]
            points[signature] = _point(signature, trait_of(signature), max(row.typical, 1e-9))
            if len(points) > _MOST_IN_FAMILY:
                self._drop(kin, min(points, key=lambda each: self._rows[each].count))
            changed.add(kin)
        excess = len(self._rows) - MOST_ROWS
        if excess > 0:
            for signature in sorted(self._rows, key=lambda each: self._rows[each].count)[:excess]:
                self._drop(family(signature), signature)
        return changed

    def _drop(self, kin: Family, signature: Signature) -> None:
        del self._rows[signature]
        points = self._families[kin]
        points.pop(signature, None)
        if not points:
            del self._families[kin]

    def estimate(self, signature: Signature, kin: Family, trait: Trait, roof: DeviceRoof) -> Estimate:
        row = self._rows.get(signature)
        base = roof.estimate(trait)
        if row is not None:
            spread = sqrt(row.variance / row.count) / row.typical if row.typical else 1.0
            return Estimate(row.typical, "profiled", max(min(spread, 1.0), _LEAST_ERROR), base.bound)
        points = self._families.get(kin)
        if not points:
            return base
        ratio, distance = _carried(_point(signature, trait), points.values(), roof)
        error, usual = self._error(kin, roof)
        scale = min(max(distance / usual, 0.5), 2.0) if usual else 1.0
        return Estimate(base.seconds * ratio, "interpolated", max(error * scale, _LEAST_ERROR), base.bound)

    def _error(self, kin: Family, roof: DeviceRoof) -> tuple[float, float]:
        """How far estimates of a family's rows from its other rows are off, and how far those are away, on average."""
        known = self._errors.get(kin)
        if known is None:
            known = self._errors[kin] = self._tested(kin, roof)
        return known

    def _tested(self, kin: Family, roof: DeviceRoof) -> tuple[float, float]:
        points = list(self._families[kin].values())
        if len(points) < 3:
            return _UNTESTED, 0.0
        tested = points[:: max(1, len(points) // _TESTED)]
        errors = distances = 0.0
        for each in tested:
            others = [other for other in points if other is not each]
            ratio, distance = _carried(each, others, roof)
            errors += abs(roof.estimate(each.trait).seconds * ratio / each.seconds - 1)
            distances += distance
        return errors / len(tested), distances / len(tested)


def merged(old: Timing, new: Timing) -> Timing:
    """Both in one row; of the old one no more than so much counts."""
    kept = min(old.count, _REMEMBERED)
    count = kept + new.count
    share = new.count / count
    mean = old.mean + (new.mean - old.mean) * share
    between = (new.mean - old.mean) ** 2 * share * (1 - share)
    return msgspec.structs.replace(
        new,
        count=count,
        mean=mean,
        least=min(old.least, new.least),
        variance=old.variance * (1 - share) + new.variance * share + between,
        typical=_towards(old.typical, new.typical, share),
    )


def _towards(old: float, new: float, share: float) -> float:
    """A step from ``old`` to ``new``; a few executions that took far longer (another program ran) pull no further than
    some that took somewhat longer."""
    if old <= 0 or new <= 0 or share >= 0.5:
        return old + (new - old) * share
    return old * exp(share * min(max(log(new / old), -_FAR), _FAR))


def _point(signature: Signature, trait: Trait, seconds: float = 1.0) -> Point:
    layout = tuple([each.contiguous for each in signature.operands])
    return Point(signature, trait, _sizes(signature, trait), layout, seconds)


def _carried(asked: Point, points: Iterable[Point], roof: DeviceRoof) -> tuple[float, float]:
    """Measured seconds over the roofline's, at the nearest of ``points``, weighed by nearness; and how near that is.

    Shepard's inverse distance weighting (1968) of residuals, over logarithms of sizes. Far from all points the
    roofline stands by itself.
    """
    near = heapq.nsmallest(_NEIGHBOURS, [(_distance(asked, point), at, point) for at, point in enumerate(points)])
    total, weights = 0.0, _DOUBT
    for distance, _, point in near:
        weight = 1 / (distance * distance + 1e-3)
        total += weight * log(point.seconds / roof.estimate(point.trait).seconds)
        weights += weight
    return exp(total / weights), near[0][0]


def _distance(asked: Point, point: Point) -> float:
    sizes, others = asked.sizes, point.sizes
    if sizes == others:
        far = 0.0
    elif len(sizes) == len(others):
        far = sum(map(operator.mul, gaps := list(map(operator.sub, sizes, others)), gaps))
    else:
        far = _OTHER_LAYOUT
        far += 2 * (log(1 + asked.trait.flops) - log(1 + point.trait.flops)) ** 2
        far += 2 * (log(1 + asked.trait.moved) - log(1 + point.trait.moved)) ** 2
    if asked.layout != point.layout:
        far += _OTHER_LAYOUT * sum(a != b for a, b in zip(asked.layout, point.layout, strict=False))
    one, other = asked.signature, point.signature
    if one.target != other.target:
        far += _OTHER_TARGET
    if one.phase != other.phase:
        far += _OTHER_PHASE
    return sqrt(far)


def _sizes(signature: Signature, trait: Trait) -> tuple[float, ...]:
    """What tells similar shapes: of products their three sizes, of others those of their tensors."""
    if trait.kind == PRODUCT and trait.flops and len(signature.results) == 1 and signature.results[0].shape:
        made = prod(signature.results[0].shape)
        columns = signature.results[0].shape[-1]
        return log(made / columns), log(columns), log(trait.flops / (2 * made))
    return tuple([log(size) if size else -1.0 for size in dims(signature)])
