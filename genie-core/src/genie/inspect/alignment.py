"""Which items of one sequence are which of another."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence

# Differences up to which the shortest edit is looked for; its cost is their square.
MAX_EDITS = 1500


def align(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pairs of positions of equal items, both ascending.

    As many as there can be while the sequences differ in no more than ``MAX_EDITS`` items. Beyond that, an item's
    counterpart is the one with as many of its kind before it, as far as that crosses no other pair: O(n log n).
    """
    start, stop_a, stop_b = 0, len(a), len(b)
    while start < min(stop_a, stop_b) and a[start] == b[start]:
        start += 1
    while stop_a > start and stop_b > start and a[stop_a - 1] == b[stop_b - 1]:
        stop_a, stop_b = stop_a - 1, stop_b - 1
    inner_a, inner_b = a[start:stop_a], b[start:stop_b]
    inner = _shortest(inner_a, inner_b)
    if inner is None:
        inner = _by_count(inner_a, inner_b)
    ends = zip(range(stop_a, len(a)), range(stop_b, len(b)), strict=True)
    return [*((i, i) for i in range(start)), *((start + i, start + j) for i, j in inner), *ends]


def _shortest(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]] | None:
    """Myers' greedy algorithm, or ``None`` when the sequences differ too much."""
    # Items of one side alone are edits whatever else there is.
    common = Counter(a) & Counter(b)
    if len(a) + len(b) - 2 * common.total() > MAX_EDITS:
        return None
    furthest = {1: 0}  # diagonal → how far along ``a``
    history = []
    for edits in range(min(len(a) + len(b), MAX_EDITS) + 1):
        history.append({k: furthest[k] for k in range(-edits - 1, edits + 2) if k in furthest})
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (
                diagonal != edits and furthest.get(diagonal - 1, -1) < furthest.get(diagonal + 1, -1)
            )
            x = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            y = x - diagonal
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x, y = x + 1, y + 1
            furthest[diagonal] = x
            if x >= len(a) and y >= len(b):
                return _walked_back(history, len(a), len(b))
    return None


def _walked_back(history: list[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    pairs = []
    for edits in range(len(history) - 1, -1, -1):
        furthest, diagonal = history[edits], x - y
        down = diagonal == -edits or (
            diagonal != edits and furthest.get(diagonal - 1, -1) < furthest.get(diagonal + 1, -1)
        )
        before = diagonal + 1 if down else diagonal - 1
        from_x = furthest[before] if edits else 0
        from_y = from_x - before if edits else 0
        while x > from_x and y > from_y:
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = from_x, from_y
    return pairs[::-1]


def _by_count(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    where = {item: j for j, item in enumerate(_numbered(b))}
    candidates = [(i, where[item]) for i, item in enumerate(_numbered(a)) if item in where]
    # The longest ascending subsequence of the second positions.
    tails: list[int] = []
    last: list[int] = []  # index of the candidate that ends a subsequence of that length
    previous = [-1] * len(candidates)
    for index, (_, j) in enumerate(candidates):
        length = bisect_left(tails, j)
        previous[index] = last[length - 1] if length else -1
        tails[length : length + 1] = [j]
        last[length : length + 1] = [index]
    pairs = []
    index = last[-1] if last else -1
    while index >= 0:
        pairs.append(candidates[index])
        index = previous[index]
    return pairs[::-1]


def _numbered(items: Sequence[Hashable]) -> list[tuple[Hashable, int]]:
    seen: Counter[Hashable] = Counter()
    numbered = []
    for item in items:
        numbered.append((item, seen[item]))
        seen[item] += 1
    return numbered
