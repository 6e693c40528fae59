"""Taking times in turns, and saying them."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Times: TypeAlias = dict[str, list[float]]
Result: TypeAlias = dict[str, Any]


def in_turns(steps: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> Times:
    """Seconds of every step, ``rounds`` times one after the other: whatever else the machine does hits all alike.

    Each is run ``warm`` times before. The order turns round by round, so that none always follows the same one.
    """
    names = list(steps)
    for _ in range(warm):
        for name in names:
            steps[name]()
    times: Times = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Times, name: str, base: str) -> Result:
    """Median time over median time, with the spread of the ratios of neighbours: the pairs of one round."""
    pairs = [a / b for a, b in zip(times[name], times[base], strict=True)]
    return {
        "ratio": statistics.median(times[name]) / statistics.median(times[base]),
        "pair_ratio_median": statistics.median(pairs),
        "pair_ratio_low": _quantile(pairs, 0.25),
        "pair_ratio_high": _quantile(pairs, 0.75),
        "pairs": len(pairs),
    }


def milliseconds(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3


def _quantile(numbers: Sequence[float], share: float) -> float:
    ordered = sorted(numbers)
    return ordered[round(share * (len(ordered) - 1))]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as text, numbers to the right."""
    if not rows:
        return ""
    heads = list(rows[0])
    cells = [[_cell(row.get(head)) for head in heads] for row in rows]
    widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(heads)]
    numeric = [any(isinstance(row.get(head), int | float) for row in rows) for head in heads]

    def line(texts: Sequence[str]) -> str:
        pads = (t.rjust(w) if n else t.ljust(w) for t, w, n in zip(texts, widths, numeric, strict=True))
        return "  ".join(pads).rstrip()

    return "\n".join([line(heads), *map(line, cells)])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def compared(doc: str, run: Callable[..., Result], show: Callable[[Result], None]) -> int:
    """The command of a benchmark of generation: its options, its report, and whether all tokens were equal."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31, help="timed runs of each")
    parser.add_argument("--only", default="gpt2", help="gpt2 or smollm2")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    start = time.perf_counter()
    result = run(rounds=options.rounds, only=options.only)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        show(result)
        print(f"({time.perf_counter() - start:.0f} s)")
    return 0 if result["equal"] else 1
