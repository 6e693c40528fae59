"""What a plan comes to: its devices and links, what its latency is made of, what bounds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from genie.graph import Graph, printable
from genie.plan import ExecutionPlan
from genie.plan.pinning import capacities, described
from genie.plan.text import bytes_text, engine_text, time_text

_MOST_GROUPS = 48  # modules among which the critical path is divided
_MOST_SHOWN = 12
TRANSFERS = "transfers"


class DeviceUse(msgspec.Struct, frozen=True):
    """``busy`` in seconds, ``share`` of the latency; bytes the plan ``need``s of those the device ``have``."""

    device: str
    type: str
    nodes: int
    busy: float
    share: float
    need: int
    have: int


class LinkUse(msgspec.Struct, frozen=True):
    """What goes one way: ``seconds`` it is taken, ``share`` of the latency."""

    source: str
    target: str
    values: int
    bytes: int
    seconds: float
    share: float


class PathPart(msgspec.Struct, frozen=True):
    """A module's part of the critical path, or what transfers between two devices are of it."""

    what: str
    seconds: float
    share: float


class Summary(msgspec.Struct, frozen=True):
    """Times in seconds. ``critical`` are the parts of the critical path by module and link, the longest first; they
    add up to the latency. ``bounds`` is its work by what bounds it, with ``network`` for transfers; ``sources`` counts
    nodes by what made their estimates."""

    policy: str
    latency: float
    nodes: int
    stages: int
    devices: tuple[DeviceUse, ...]
    links: tuple[LinkUse, ...]
    critical: tuple[PathPart, ...]
    bottleneck: str
    bounds: dict[str, float]
    sources: dict[str, int]
    constraints: tuple[str, ...]
    rules: tuple[str, ...]
    engine: str = ""  # of a program that comes with an artifact: what runs it, and why

    def __str__(self) -> str:
        return "".join(f"{printable(line)}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        stages = "1 stage" if self.stages == 1 else f"{self.stages:,} stages"
        yield f"{self.policy}: {time_text(self.latency)} estimated, {self.nodes:,} nodes in {stages}"
        if self.engine:
            yield f"engine: {self.engine}"
        yield f"bottleneck: {self.bottleneck}"
        sources = ", ".join(f"{name} {count:,}" for name, count in self.sources.items())
        yield f"estimates: {sources or 'none'}"
        yield ""
        yield from columns(
            ("device", "type", "nodes", "busy", "share", "memory", "of"),
            [
                (
                    d.device,
                    d.type,
                    f"{d.nodes:,}",
                    time_text(d.busy),
                    percent(d.share),
                    *map(bytes_text, (d.need, d.have)),
                )
                for d in self.devices
            ],
            left=2,
        )
        if self.links:
            yield ""
            yield from columns(
                ("link", "values", "bytes", "seconds", "share"),
                [
                    (
                        f"{x.source} → {x.target}",
                        f"{x.values:,}",
                        bytes_text(x.bytes),
                        time_text(x.seconds),
                        percent(x.share),
                    )
                    for x in self.links
                ],
            )
        if self.critical:
            yield ""
            shown = self.critical[:_MOST_SHOWN]
            rows = [(part.what, time_text(part.seconds), percent(part.share)) for part in shown]
            if rest := self.critical[_MOST_SHOWN:]:
                rows.append(
                    (f"{len(rest)} more", time_text(sum(x.seconds for x in rest)), percent(sum(x.share for x in rest)))
                )
            yield from columns(("critical path", "seconds", "share"), rows)
            bounds = (f"{name} {percent(_share(its, self.latency))}" for name, its in self.bounds.items())
            yield f"bound by {', '.join(bounds)}"
        for title, lines in (("constraints", self.constraints), ("rules", self.rules)):
            if lines:
                yield ""
                yield title
                yield from (f"  {line}" for line in lines)


def summary(plan: ExecutionPlan) -> Summary:
    """What a verified plan comes to, by its own timeline."""
    times, ids = plan.timeline, [device.id for device in plan.devices]
    bounds = _bounds(plan)
    return Summary(
        policy=plan.policy,
        latency=times.makespan,
        nodes=len(plan.graph.steps),
        stages=len(plan.stages),
        devices=device_uses(plan),
        links=link_uses(plan),
        critical=critical_parts(plan),
        bottleneck=_bottleneck(plan),
        bounds=bounds,
        sources=dict(Counter(made.source for made in plan.decisions).most_common()),
        constraints=tuple(f"{held.text}: {described(plan.graph, ids, held)}" for held in plan.constraints),
        rules=plan.rules,
        engine=engine_text(plan.engine) if plan.engine is not None else "",
    )


def device_uses(plan: ExecutionPlan) -> tuple[DeviceUse, ...]:
    times = plan.timeline
    nodes = Counter(made.device for made in plan.decisions)
    needs = plan.peak_memory or (0,) * len(plan.devices)
    return tuple(
        DeviceUse(device.id, device.type, nodes[i], busy, _share(busy, times.makespan), need, have)
        for i, (device, busy, need, have) in enumerate(
            zip(plan.devices, times.busy, needs, capacities(plan), strict=True)
        )
    )


def link_uses(plan: ExecutionPlan) -> tuple[LinkUse, ...]:
    """Those that something is sent over, in the order of first use."""
    ids, whole = [device.id for device in plan.devices], plan.timeline.makespan
    used: dict[tuple[int, int], list[int]] = {}
    for number, move in enumerate(plan.transfers):
        used.setdefault((move.source, move.target), []).append(number)
    found = []
    for (source, target), numbers in used.items():
        moves = [plan.transfers[number] for number in numbers]
        seconds = sum(move.seconds for move in moves)
        size = sum(move.bytes for move in moves)
        found.append(LinkUse(ids[source], ids[target], len(moves), size, seconds, _share(seconds, whole)))
    return tuple(found)


def critical_parts(plan: ExecutionPlan) -> tuple[PathPart, ...]:
    """The critical path by module, as deep as there are not too many of them, and by link; the longest first."""
    times, graph = plan.timeline, plan.graph
    ids = [device.id for device in plan.devices]
    runs = critical_runs(plan)
    paths = [_path(graph, step) for step, _ in runs]
    depth = _depth(paths)
    parts: dict[str, float] = {}
    for (step, device), path in zip(runs, paths, strict=True):
        what = ".".join(path[:depth]) or "outside of modules"
        parts[what] = parts.get(what, 0.0) + plan.decisions[step].on(device)
    for number in times.critical_transfers:
        move = plan.transfers[number]
        what = f"{TRANSFERS} {ids[move.source]} → {ids[move.target]}"
        parts[what] = parts.get(what, 0.0) + move.seconds
    ranked = sorted(parts, key=lambda what: (-parts[what], what))
    return tuple(PathPart(what, parts[what], _share(parts[what], times.makespan)) for what in ranked)


def critical_runs(plan: ExecutionPlan) -> list[tuple[int, int]]:
    """(step, device) along the critical path, in order of time; with what is run again."""
    times, count = plan.timeline, len(plan.decisions)
    if not plan.again or not times.critical_steps:
        return [(step, plan.decisions[step].device) for step in times.critical_steps]
    found = []
    kind, number = "device", times.critical_steps[-1]
    while kind and number >= 0:
        if kind not in ("device", "made"):
            span = times.transfers[number]
        elif number < count:
            span = times.steps[number]
            found.append((number, plan.decisions[number].device))
        else:
            span = times.again[number - count]
            found.append((plan.again[number - count].step, plan.again[number - count].device))
        kind, number = span.waits, span.on
    return found[::-1]


def _path(graph: Graph, step: int) -> tuple[str, ...]:
    module = graph.steps[step].module
    path = graph.modules[module].path if module >= 0 else ""
    return tuple(path.split(".")) if path else ()


def _depth(paths: Sequence[tuple[str, ...]]) -> int:
    deepest = max(map(len, paths), default=0)
    for depth in range(deepest, 1, -1):
        if len({path[:depth] for path in paths}) <= _MOST_GROUPS:
            return depth
    return 1


def _bounds(plan: ExecutionPlan) -> dict[str, float]:
    times = plan.timeline
    found: dict[str, float] = {}
    for step, device in critical_runs(plan):
        made = plan.decisions[step]
        what = made.bound or "what is not known"
        found[what] = found.get(what, 0.0) + made.on(device)
    sent = sum(plan.transfers[number].seconds for number in times.critical_transfers)
    if sent:
        found["network"] = sent
    return dict(sorted(found.items(), key=lambda its: (-its[1], its[0])))


def _bottleneck(plan: ExecutionPlan) -> str:
    """Of devices and links the one that takes most of the critical path."""
    times = plan.timeline
    if not times.makespan:
        return "none"
    ids = [device.id for device in plan.devices]
    works: dict[int, float] = {}
    bounds: dict[int, dict[str, float]] = {}
    for step, place in critical_runs(plan):
        made = plan.decisions[step]
        works[place] = works.get(place, 0.0) + made.on(place)
        its = bounds.setdefault(place, {})
        its[made.bound] = its.get(made.bound, 0.0) + made.on(place)
    ways: dict[tuple[int, int], float] = {}
    for number in times.critical_transfers:
        move = plan.transfers[number]
        ways[move.source, move.target] = ways.get((move.source, move.target), 0.0) + move.seconds
    device = max(works, key=lambda its: works[its], default=-1)
    way = max(ways, key=lambda its: ways[its], default=None)
    if way is not None and ways[way] > works.get(device, 0.0):
        moved = sum(move.bytes for move in plan.transfers if (move.source, move.target) == way)
        share = percent(ways[way] / times.makespan)
        return f"{ids[way[0]]} → {ids[way[1]]}, {share} of the time: {bytes_text(moved)} (network)"
    bound = max(bounds[device], key=lambda its: bounds[device][its])
    told = f", most of it bound by {bound}" if bound else ""
    return f"{ids[device]}, {percent(works[device] / times.makespan)} of the time{told}"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def percent(share: float) -> str:
    return f"{100 * share:.2g}%" if 0.0001 <= share < 0.01 else f"{share:.0%}"


def columns(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Text in columns; the first ``left`` of them begin, the others end on one line."""
    table = [heads, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    for row in table:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
