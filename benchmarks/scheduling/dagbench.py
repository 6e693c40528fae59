"""Published task graphs (DAGBench, https://github.com/ANRGUSC/dag-bench, Apache-2.0), read where they are.

Each has a network of its own: nodes with speeds, links with speeds, no contention. The schedules to beat are those of
the library its authors publish with it (``pip install anrg-saga``), each checked here before it counts.
"""

from __future__ import annotations

import importlib
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import Pipe, Process
from pathlib import Path
from typing import Any

from genie.graph import Graph, Node, Ref, TensorSpec
from genie.plan import Groups, Link, liveness
from genie.schedule.problem import build

# Sizes are whole bytes here and any numbers there.
_SCALE = 1_000_000
# All that the library offers for such instances; those that try every schedule are left out.
SCHEDULERS = {
    "bil": "BILScheduler",
    "cpop": "CpopScheduler",
    "dps": "DPSScheduler",
    "duplex": "DuplexScheduler",
    "etf": "ETFScheduler",
    "fastest_node": "FastestNodeScheduler",
    "fcp": "FCPScheduler",
    "flb": "FLBScheduler",
    "gdl": "GDLScheduler",
    "hbmct": "HbmctScheduler",
    "heft": "HeftScheduler",
    "maxmin": "MaxMinScheduler",
    "mct": "MCTScheduler",
    "met": "METScheduler",
    "minmin": "MinMinScheduler",
    "msbc": "MsbcScheduler",
    "mst": "MSTScheduler",
    "olb": "OLBScheduler",
    "sufferage": "SufferageScheduler",
    "wba": "WBAScheduler",
}


@dataclass(frozen=True)
class Instance:
    name: str
    tasks: tuple[str, ...]  # in an order that keeps dependencies
    cost: Mapping[str, float]
    edges: Mapping[tuple[str, str], float]  # (from, to) → size
    speed: Mapping[str, float]
    links: Mapping[tuple[str, str], float]  # (from, to) → speed, both ways

    def transfer(self, edge: tuple[str, str], source: str, target: str) -> float:
        size = self.edges[edge]
        return 0.0 if source == target or not size else size / self.links[source, target]


def ready(path: Path) -> None:
    """Raises what is missing: :class:`FileNotFoundError` for the graphs, :class:`ImportError` for the library."""
    next(instances(path))
    importlib.import_module("saga.schedulers")


def instances(path: Path) -> Iterator[Instance]:
    files = sorted(path.glob("workflows/*/*/graph.json"))
    if not files:
        raise FileNotFoundError(f"no workflows/*/*/graph.json below {path}")
    for file in files:
        data = json.loads(file.read_text())
        tasks, network = data["task_graph"], data["network"]
        cost = {task["name"]: float(task["cost"]) for task in tasks["tasks"]}
        edges = {(e["source"], e["target"]): float(e["size"]) for e in tasks["dependencies"]}
        speed = {node["name"]: float(node["speed"]) for node in network["nodes"]}
        links: dict[tuple[str, str], float] = {}
        for link in network["edges"]:
            if link["source"] != link["target"]:
                for pair in ((link["source"], link["target"]), (link["target"], link["source"])):
                    links.setdefault(pair, float(link["speed"]))
        yield Instance(data["name"], _ordered(cost, edges), cost, edges, speed, links)


def _ordered(cost: Mapping[str, float], edges: Mapping[tuple[str, str], float]) -> tuple[str, ...]:
    needs = dict.fromkeys(cost, 0)
    users: dict[str, list[str]] = {name: [] for name in cost}
    for source, target in edges:
        needs[target] += 1
        users[source].append(target)
    found = [name for name in cost if not needs[name]]
    for name in found:
        for user in users[name]:
            needs[user] -= 1
            if not needs[user]:
                found.append(user)
    return tuple(found)


def ours(instance: Instance, budget: int, seed: int = 0) -> float:
    """The makespan of the native search's schedule, placed and ordered."""
    at = {name: step for step, name in enumerate(instance.tasks)}
    edges = sorted(instance.edges, key=lambda edge: (at[edge[0]], at[edge[1]]))
    value = {edge: number for number, edge in enumerate(edges)}
    takes: dict[str, list[Ref]] = {name: [] for name in instance.tasks}
    makes: dict[str, list[int]] = {name: [] for name in instance.tasks}
    for (source, target), number in value.items():
        takes[target].append(Ref(number))
        makes[source].append(number)
    steps = tuple(Node(step, "task::run", "", tuple(takes[name]), tuple(makes[name])) for name, step in at.items())
    size = [round(instance.edges[edge] * _SCALE) for edge in edges]
    graph = Graph(tuple(TensorSpec((bytes_,), "uint8") for bytes_ in size), (), steps, (), name=instance.name)
    nodes = list(instance.speed)
    seconds = [[instance.cost[name] / instance.speed[node] for name in instance.tasks] for node in nodes]
    links = [
        Link(i, j, 0.0, instance.links[a, b] * _SCALE)
        for i, a in enumerate(nodes)
        for j, b in enumerate(nodes)
        if i != j and (a, b) in instance.links
    ]
    count = len(steps)
    groups = Groups(list(range(count)), [(1 << len(nodes)) - 1] * count)
    problem = build(graph, seconds, links, [1 << 62] * len(nodes), groups, {}, liveness(graph), size, ports=False)
    answer = problem.search(objective="min_latency", price=[0.0] * len(nodes), budget=budget, seed=seed, reorder=True)
    starts = _semi_active(instance, [nodes[place] for place in answer["place"]], answer["order"])
    check(instance, starts)
    return max(end for _, _, end in starts.values())


def _semi_active(
    instance: Instance, places: Sequence[str], order: Sequence[int]
) -> dict[str, tuple[str, float, float]]:
    """Task → (node, start, end), everything as soon as it can: worked out anew, to check the search by."""
    free = dict.fromkeys(instance.speed, 0.0)
    found: dict[str, tuple[str, float, float]] = {}
    before: dict[str, list[tuple[str, str]]] = {name: [] for name in instance.tasks}
    for edge in instance.edges:
        before[edge[1]].append(edge)
    for step in order:
        name, node = instance.tasks[step], places[step]
        start = free[node]
        for edge in before[name]:
            source, _, end = found[edge[0]]
            start = max(start, end + instance.transfer(edge, source, node))
        free[node] = start + instance.cost[name] / instance.speed[node]
        found[name] = (node, start, free[node])
    return found


def check(instance: Instance, schedule: Mapping[str, tuple[str, float, float]]) -> None:
    """Raises :class:`ValueError` for a schedule that can't be."""
    if set(schedule) != set(instance.cost):
        raise ValueError("a task is missing or made up")
    span = max(end for _, _, end in schedule.values())
    slack = 1e-9 * max(span, 1e-300)
    by_node: dict[str, list[tuple[float, float]]] = {}
    for name, (node, start, end) in schedule.items():
        if start < -slack or end - start < instance.cost[name] / instance.speed[node] - slack:
            raise ValueError(f"{name} does not have the time it needs")
        by_node.setdefault(node, []).append((start, end))
    for spans in by_node.values():
        spans.sort()
        if any(later[0] < earlier[1] - slack for earlier, later in pairwise(spans)):
            raise ValueError("two tasks run at once on one node")
    for edge in instance.edges:
        source, target = schedule[edge[0]], schedule[edge[1]]
        if target[1] < source[2] + instance.transfer(edge, source[0], target[0]) - slack:
            raise ValueError(f"{edge[1]} starts before what it needs from {edge[0]} is there")


def published(instance: Instance, patience: float = 20.0) -> tuple[float, str, dict[str, str]]:
    """The best makespan of the library's schedulers whose schedule is valid, whose it is, and why others do not count.

    Raises :class:`ImportError` without the library.
    """
    importlib.import_module("saga.schedulers")
    best, whose, refused = float("inf"), "", {}
    for module, name in SCHEDULERS.items():
        # One process each: a scheduler that does not come back is ended with it.
        receiver, sender = Pipe(duplex=False)
        process = Process(target=_answer, args=(sender, instance, module, name), daemon=True)
        process.start()
        try:
            if not receiver.poll(patience):
                raise TimeoutError(f"no answer in {patience:g} s")
            schedule = receiver.recv()
            if isinstance(schedule, str):
                raise ValueError(schedule)
            check(instance, schedule)
        except (TimeoutError, ValueError, EOFError) as error:
            refused[module] = f"{type(error).__name__}: {error}"
            continue
        finally:
            process.kill()
            process.join()
        span = max(end for _, _, end in schedule.values())
        if span < best:
            best, whose = span, module
    return best, whose, refused


def _answer(sender: Any, instance: Instance, module: str, name: str) -> None:
    logging.disable(logging.WARNING)
    try:
        sender.send(_schedule(instance, module, name))
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


def _schedule(instance: Instance, module: str, name: str) -> dict[str, tuple[str, float, float]]:
    random.seed(0)
    saga: Any = importlib.import_module("saga")
    scheduler = getattr(importlib.import_module(f"saga.schedulers.{module}"), name)()
    network = saga.Network.create(
        nodes=list(instance.speed.items()),
        edges=[(a, b, speed) for (a, b), speed in instance.links.items() if a < b]
        + [(node, node, float("inf")) for node in instance.speed],
    )
    graph = saga.TaskGraph.create(
        tasks=list(instance.cost.items()),
        dependencies=[(source, target, size) for (source, target), size in instance.edges.items()],
    )
    made = scheduler.schedule(network, graph)
    return {
        task.name: (task.node, float(task.start), float(task.end))
        for tasks in made.mapping.values()
        for task in tasks
        if task.name in instance.cost  # it adds a source and a sink of no cost where a graph has several
    }
