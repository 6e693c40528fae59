"""The scheduler: how long it takes, how good its placements are, and what published schedules it is beside.

    python benchmarks/bench_scheduler.py [--json] [--rounds N] [--starts N] [--effort X] [--dagbench PATH]

Times are medians over rounds on freshly built graphs, in CPU seconds where one thread works (others share the machine),
on the wall where two do (the placement's). Quality is the latency of the plan over the best known, which is the best of
long searches from ``--starts`` seeds with ``--effort`` times the budget, and of the plan itself; tiny graphs are also
placed in every possible way. ``--dagbench`` names a copy of https://github.com/ANRGUSC/dag-bench (``git clone``), whose
graphs are read in place; the schedules to beat come from the library that goes with it (``pip install anrg-saga``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import table
from scheduling import dagbench
from scheduling.families import Case, cases, decoder, gpus, layered

from genie.device import Device
from genie.graph import Graph
from genie.graph.sizes import sizes
from genie.plan import exact, grouped, liveness
from genie.schedule import Portfolio, RooflineCostModel, Scheduler
from genie.schedule.placement import Outlook
from genie.schedule.problem import build
from genie.schedule.ways import ways

# From the requirements, in milliseconds; cost in microseconds per node; quality as ratios.
PLACEMENT = {1_000: 60.0, 20_000: 1_000.0}
PLAN = {1_000: 10.0}
COST = 5.0
GEOMEAN, WORST = 1.05, 1.15
PUBLISHED = 1.002


class Clocked(Portfolio):
    """The default strategy, and when it began and ended."""

    def place_knowing(self, graph: Graph, devices: Sequence[Device], outlook: Outlook) -> tuple[Mapping[int, str], str]:
        self.began, wall = time.process_time(), time.perf_counter()
        answer = super().place_knowing(graph, devices, outlook)
        self.ended, self.seconds = time.process_time(), time.perf_counter() - wall
        return answer


def fresh(graph: Graph) -> Graph:
    """The same graph without what is remembered with it."""
    return Graph(**{name: getattr(graph, name) for name in graph.__struct_fields__})


def clocked(case: Case, rounds: int) -> dict[str, Any]:
    """Milliseconds of the parts of ``schedule``."""
    parts: dict[str, list[float]] = {"before": [], "placement": [], "placement CPU": [], "plan": []}
    cost: list[float] = []
    for _ in range(rounds):
        graph = fresh(case.graph)
        strategy = Clocked()
        scheduler = Scheduler(case.devices)
        scheduler.set_cost_model(case.model)
        scheduler.set_placement_strategy(strategy)
        start = time.process_time()
        scheduler.schedule(graph)
        end = time.process_time()
        parts["before"].append(strategy.began - start)
        parts["placement"].append(strategy.seconds)
        parts["placement CPU"].append(strategy.ended - strategy.began)
        parts["plan"].append(end - strategy.ended)
        start = time.process_time()
        for node in graph.steps:
            case.model.estimate_compute(node, case.devices[0])
        cost.append((time.process_time() - start) / len(graph.steps))
    row: dict[str, Any] = {"case": case.name, "nodes": len(case.graph.steps), "devices": len(case.devices)}
    row |= {f"{name} ms": statistics.median(times) * 1e3 for name, times in parts.items()}
    row["cost µs"] = statistics.median(cost) * 1e6
    return row


def timed() -> list[Case]:
    """What times are taken of: cut to the sizes that the requirements name."""
    roofline = RooflineCostModel()
    mixed = (300.0, 120.0)
    found = []
    for nodes, layers, width in ((1_000, 34, 4096), (20_000, 690, 1024)):
        graph = decoder(layers, width, 64, 0)
        found.append(Case(f"decoder of {layers} layers", "llm", graph, gpus(8, memory=8.0, tflops=mixed), roofline))
        found.append(layered(nodes, gpus(8, tflops=(1.0, 2.0)), 1.0, 1))
    return found


def scheduled(case: Case, effort: float = 1.0, seed: int = 0) -> float:
    scheduler = Scheduler(case.devices)
    scheduler.set_cost_model(case.model)
    scheduler.set_placement_strategy(Portfolio(effort, seed))
    return scheduler.schedule(case.graph).latency


def quality(case: Case, starts: int, effort: float) -> dict[str, Any]:
    plan = scheduled(case)
    best = min([plan, *(scheduled(case, effort, seed) for seed in range(1, starts + 1))])
    seconds = [sum(case.model.estimate_compute(node, each) for node in case.graph.steps) for each in case.devices]
    return {
        "case": case.name,
        "family": case.family,
        "nodes": len(case.graph.steps),
        "plan ms": plan * 1e3,
        "best known ms": best * 1e3,
        "ratio": plan / best,
        "fastest device alone ms": min(seconds) * 1e3,
    }


def exhaustive(count: int, nodes: int = 7) -> list[float]:
    """Of tiny random graphs, the plan's latency over the best of all placements."""
    ratios = []
    for seed in range(count):
        case = layered(nodes, gpus(3, tflops=(1.0, 2.0, 0.7)), (0.2, 1.0, 3.0)[seed % 3], 1000 + seed, wide=3)
        graph, releases, size = case.graph, liveness(case.graph), sizes(case.graph)
        seconds = [[case.model.estimate_compute(node, each) for node in graph.steps] for each in case.devices]
        links = ways(case.devices, case.model.estimate_transfer, "table")
        groups = grouped(nodes, 3, exact(graph, {}))
        problem = build(graph, seconds, links, [1 << 60] * 3, groups, {}, releases, size)
        best = min(
            problem.evaluate(array("i", places))["makespan"] for places in itertools.product(range(3), repeat=nodes)
        )
        ratios.append(scheduled(case) / best)
    return ratios


def published(path: Path, budget: int, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    rows = []
    for instance in dagbench.instances(path):
        if names and instance.name not in names:
            continue
        start = time.process_time()
        span = dagbench.ours(instance, budget)
        took = time.process_time() - start
        best, whose, refused = dagbench.published(instance)
        rows.append(
            {
                "graph": instance.name,
                "tasks": len(instance.tasks),
                "nodes": len(instance.speed),
                "ours": span,
                "best published": best,
                "by": whose,
                "ratio": span / best if best else 1.0,
                "ms": took * 1e3,
                "left out": ", ".join(refused),
            }
        )
    return rows


def geomean(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else float("nan")


def run(
    rounds: int = 5, starts: int = 6, effort: float = 20.0, path: Path | None = None, small: bool = False
) -> dict[str, Any]:
    times = [clocked(case, rounds) for case in (timed() if not small else [layered(60, gpus(8), 1.0, 1)])]
    rows = [quality(case, starts, effort) for case in cases(small)]
    tiny = exhaustive(3 if small else 30)
    families = {
        family: {"geomean": geomean(its), "worst": max(its)}
        for family in dict.fromkeys(row["family"] for row in rows)
        for its in [[row["ratio"] for row in rows if row["family"] == family]]
    }
    ratios = [row["ratio"] for row in rows] + tiny
    result: dict[str, Any] = {"times": times, "quality": rows, "families": families, "tiny": tiny}
    result["all"] = {"geomean": geomean([row["ratio"] for row in rows]), "worst": max(ratios)}
    result["within"] = {
        "placement": all(row["placement ms"] <= _target(PLACEMENT, row["nodes"]) for row in times),
        "plan": all(row["plan ms"] <= _target(PLAN, row["nodes"]) for row in times),
        "cost": all(row["cost µs"] <= COST for row in times),
        "geomean": result["all"]["geomean"] <= GEOMEAN,
        "worst": result["all"]["worst"] <= WORST,
    }
    if path is not None:
        result["dagbench"] = published(path, 1_000_000)
        result["within"]["published"] = all(row["ratio"] <= PUBLISHED for row in result["dagbench"])
    return result


def _target(targets: Mapping[int, float], nodes: int) -> float:
    return next((most for size, most in sorted(targets.items()) if nodes <= 1.1 * size), float("inf"))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=6, help="long searches that the best known is the best of")
    parser.add_argument("--effort", type=float, default=20.0, help="their budget, in budgets of the default")
    parser.add_argument("--dagbench", type=Path, help="a copy of the repository ANRGUSC/dag-bench")
    options = parser.parse_args(arguments)
    if options.dagbench is not None:  # before minutes of work
        dagbench.ready(options.dagbench)
    result = run(options.rounds, options.starts, options.effort, options.dagbench)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(
        "Times (CPU ms; of the placement, which takes two threads, those on the wall, too)\n" + table(result["times"])
    )
    print("\nQuality: latency over the best known\n" + table(result["quality"]))
    for family, its in {**result["families"], "all": result["all"]}.items():
        print(f"  {family}: {its['geomean']:.3f} geomean, {its['worst']:.3f} worst")
    print(f"  tiny, against every placement: {geomean(result['tiny']):.3f} geomean, {max(result['tiny']):.3f} worst")
    if "dagbench" in result:
        rows = result["dagbench"]
        print("\nPublished graphs\n" + table(rows))
        ratios = [row["ratio"] for row in rows]
        print(f"  {len(rows)} graphs: {geomean(ratios):.4f} geomean, {max(ratios):.4f} worst, {min(ratios):.4f} best")
    print("\nWithin what is required: " + ", ".join(f"{k} {'yes' if v else 'no'}" for k, v in result["within"].items()))


if __name__ == "__main__":
    main(sys.argv[1:])
