"""Plans over several devices, for tests of what is shown of plans, and profiles of their operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genie import Device, ExecutionPlan, Graph, Scheduler
from genie.profile import Profile, device_key
from genie.profile.signature import questions
from genie.timing import Timing


def gpu(number: int, tflops: float = 10.0) -> Device:
    return Device(
        id=f"gpu{number}",
        type="GPU",
        memory_gb=16,
        compute_tflops=tflops,
        memory_bandwidth_gb_s=900,
        network_gbps=100,
        address=f"10.0.0.{number + 1}:8888",
    )


class Placed:
    """A strategy that is a function from a step's position and module to a device's number."""

    name = "placed"

    def __init__(self, where: Callable[[int, str], int]) -> None:
        self.where = where

    def place(self, graph: Graph, devices: tuple[Device, ...]) -> dict[int, str]:
        return {
            node.id: devices[self.where(step, graph.modules[node.module].path if node.module >= 0 else "")].id
            for step, node in enumerate(graph.steps)
        }


def placed(graph: Graph, count: int, where: Callable[[int, str], int]) -> ExecutionPlan:
    scheduler = Scheduler([gpu(number, 10.0 * (1 + number)) for number in range(count)])
    scheduler.set_placement_strategy(Placed(where))
    return scheduler.schedule(graph)


def pipeline(graph: Graph, count: int) -> ExecutionPlan:
    """As many steps in a row on each device."""
    return placed(graph, count, lambda step, _: step * count // len(graph.steps))


def two(graph: Graph) -> ExecutionPlan:
    """Modules called mlp on the second device."""
    return placed(graph, 2, lambda _, path: int(path.endswith(".mlp")))


def profile_of(plan: ExecutionPlan, scale: Callable[[str], float], directory: Path) -> Profile:
    """A profile in which each operator took what the plan says, times ``scale`` of its name; nothing, where that is
    0."""
    profile, asks = Profile(directory), questions(plan.graph)
    for number, device in enumerate(plan.devices):
        rows = {}
        for node, made in zip(plan.graph.steps, plan.decisions, strict=True):
            its = asks.asked[asks.numbers[node.id]].signature
            took = made.seconds * scale(node.operation)
            if made.device == number and took:
                rows[its] = Timing(its.target, its.phase, its.operands, its.results, 16, took, took, 0.0, took)
        profile.observe(device_key(device), rows.values())
    return profile
