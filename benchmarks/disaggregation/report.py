"""Rows as tables, and what they say about the targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from measure import table

TARGET_BYTES = 0.70  # of blind's
TARGET_LATENCY = 0.85
TARGET_LOOP = 0.9  # of the speed over the shortest round trip, over the longest
# The mode that does all there is, by how much it does.
_FULLEST = ("loop", "full", "sample")

Row = dict[str, Any]


def quantile(numbers: Sequence[float], share: float) -> float:
    ordered = sorted(numbers)
    return ordered[round(share * (len(ordered) - 1))]


def ratios(rows: Sequence[Row], base: str) -> None:
    """Adds each mode's bytes beside the base's, per unit."""
    by_mode = {row["mode"]: row for row in rows}
    theirs = by_mode[base]
    for row in rows:
        row["base"] = base
        if row["mode"] != "local":
            row["bytes_ratio"] = (row["up"] + row["down"]) / (theirs["up"] + theirs["down"])
            row["wire_ratio"] = (row["wire_up"] + row["wire_down"]) / (theirs["wire_up"] + theirs["wire_down"])


def fullest(rows: Sequence[Row]) -> Row | None:
    """Of one workload under one profile."""
    by_mode = {row["mode"]: row for row in rows}
    return next((by_mode[mode] for mode in _FULLEST if mode in by_mode), None)


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["workload"], row["profile"]), []).append(row)
    return groups


def missed(rows: Sequence[Row]) -> Iterator[str]:
    speeds: dict[tuple[str, str], dict[str, float]] = {}
    for (workload, profile), group in _groups(rows).items():
        if group[0]["base"] == "one node":
            quickest = min((row for row in group if row["mode"].startswith("two")), key=lambda row: row["ms"])
            if quickest["latency_ratio"] >= 1:
                share = quickest["latency_ratio"]
                yield f"{workload}, {profile}: {quickest['mode']} take {share:.2f} × one node's time"
            continue
        best = fullest(group)
        if best is None:
            continue
        if best["wire_ratio"] > TARGET_BYTES:
            yield f"{workload}, {profile}: {best['mode']} puts {best['wire_ratio']:.2f} × blind's bytes on the wire"
        if best["latency_ratio"] > TARGET_LATENCY:
            yield f"{workload}, {profile}: {best['mode']} takes {best['latency_ratio']:.2f} × blind's time"
        if best["mode"] == "loop":
            rate, _, trip = profile.partition("/")
            speeds.setdefault((workload, rate), {})[trip] = best["units_per_s"]
    for (workload, rate), by_trip in speeds.items():
        if {"0.2ms", "10ms"} <= set(by_trip) and by_trip["10ms"] < TARGET_LOOP * by_trip["0.2ms"]:
            share = by_trip["10ms"] / by_trip["0.2ms"]
            yield f"{workload}, {rate}: over 10 ms the loop runs at {share:.2f} of its speed over 0.2 ms"


def progress(rows: Sequence[Row], seconds: float) -> str:
    best = fullest(rows)
    first = rows[0]
    said = f"{first['workload']}, {first['profile']}:"
    if best is None:
        said += ",".join(f" {row['mode']} {row['ms_per_unit']:.1f} ms" for row in rows)
    else:
        said += f" {best['mode']} {best['latency_ratio']:.2f} × blind's time, {best['wire_ratio']:.4f} × its bytes"
    wrong = sum(len(row["wrong"]) for row in rows)
    return f"{said}{f'; {wrong} WRONG' if wrong else ''} ({seconds:.0f} s)"


def text(result: dict[str, Any]) -> str:
    parts = [f"torch {result['torch']}, {result['cores']} cores; {result['network']}"]
    parts.append("The links, as plain sockets find them:\n" + table(result["links"]))
    for (workload, profile), group in _groups(result["rows"]).items():
        unit = group[0]["unit"]
        shown = [
            {
                "mode": row["mode"],
                f"ms/{unit}": row["ms_per_unit"],
                "low": row["ms_low"] / row["units"],
                "high": row["ms_high"] / row["units"],
                f"{unit}/s": row["units_per_s"],
                "up B": row["up"],
                "down B": row["down"],
                "wire up B": row["wire_up"],
                "wire down B": row["wire_down"],
                **({"between B": row["wire_between"]} if row["base"] == "one node" else {}),
                "round trips": row["answers"],
                "× time": row.get("latency_ratio"),
                "× bytes": row.get("bytes_ratio"),
                "× wire": row.get("wire_ratio"),
                "runs": row["runs"],
                "right": not row["wrong"],
            }
            for row in group
        ]
        parts.append(f"{workload}, {profile}, per {unit}; × {group[0]['base']}\n" + table(shown))
    said = [f"WRONG: {each}" for each in result["wrong"]]
    said += [f"left out: {each}" for each in result["left_out"]]
    said += [f"target missed: {each}" for each in result["targets_missed"]]
    return "\n\n".join([*parts, "\n".join(said) or "all targets met"])


def markdown(result: dict[str, Any]) -> str:
    """The same as tables for docs: per workload, modes down, profiles across."""
    links = "; ".join(
        f"{x['profile']}: {x['round trip ms']:.2f} ms, {x['Mbit/s']:,.0f} Mbit/s" for x in result["links"]
    )
    parts = [f"The links, as plain sockets find them: {links}."]
    by_workload: dict[str, dict[str, dict[str, Row]]] = {}
    for row in result["rows"]:
        by_workload.setdefault(row["workload"], {}).setdefault(row["mode"], {})[row["profile"]] = row
    for workload, modes in by_workload.items():
        some = next(iter(modes.values()))
        profiles, first = list(some), next(iter(some.values()))
        heads = ["mode", "up B", "down B", "× wire", *(f"{profile} ms" for profile in profiles)]
        lines = [f"**{workload}**, per {first['unit']}; in brackets × {first['base']}", ""]
        lines += ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
        for mode, by_profile in modes.items():
            row = next(iter(by_profile.values()))
            moved = ["–", "–", "–"]
            if mode != "local":
                moved = [f"{row['up']:,.0f}", f"{row['down']:,.0f}", _share(row["wire_ratio"])]
            times = [_time(by_profile[profile]) if profile in by_profile else "–" for profile in profiles]
            lines.append("| " + " | ".join([mode, *moved, *times]) + " |")
        parts.append("\n".join(lines))
    parts += ["\n".join(f"- {each}" for each in result["left_out"])] if result["left_out"] else []
    parts.append("\n".join(f"- {each}" for each in result["targets_missed"]) or "All targets met.")
    return "\n\n".join(parts)


def _share(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def _time(row: Row) -> str:
    text = f"{row['ms_per_unit']:,.1f}" if row["ms_per_unit"] < 1000 else f"{row['ms_per_unit']:,.0f}"
    return f"{text} ({row['latency_ratio']:.2f})" if "latency_ratio" in row else text
