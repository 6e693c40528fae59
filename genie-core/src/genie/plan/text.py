"""Plans as stable text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from genie.graph import spec_text
from genie.plan.records import EngineChoice, Transfer

if TYPE_CHECKING:
    from genie.plan.model import ExecutionPlan


def time_text(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def bytes_text(size: int) -> str:
    for scale, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << scale:
            return f"{size / (1 << scale):.3g} {unit}"
    return f"{size} bytes"


def engine_text(made: EngineChoice) -> str:
    compiled = f"{time_text(made.seconds)} compiled from {made.kind}, {time_text(made.steps)} step by step"
    why = "asked for" if made.required else f"compiling takes {time_text(made.making)}, counted over {made.calls} calls"
    return f"{made.name or 'step by step'}: {compiled}; {why}"


def lines(plan: ExecutionPlan) -> Iterator[str]:
    ids = [device.id for device in plan.devices]
    yield f"plan policy={plan.policy} latency={time_text(plan.latency)}"
    for number, device in enumerate(plan.devices):
        peak = f" peak={plan.peak_memory[number]}" if plan.peak_memory else ""
        yield f"  device {device.id} {device.type} {device.memory_gb:g} GiB {device.compute_tflops:g} TFLOPS{peak}"
    if plan.engine is not None:
        yield f"  engine {engine_text(plan.engine)}"
    for rule in plan.rules:
        yield f"  rule {rule}"
    for held in plan.constraints:
        where = f" on {' or '.join(ids[device] for device in held.devices)}" if held.devices else " together"
        shown = [f"#{plan.graph.steps[step].id}" for step in held.steps[:8]]
        more = f" and {len(held.steps) - 8} more" if len(held.steps) > 8 else ""
        yield f"  constraint {held.text}: {' '.join(shown)}{more}{where}"
    for value, device_ in plan.homes:
        yield f"  home of %{value}: {ids[device_]}"
    arrivals: dict[int, list[Transfer]] = {}
    for move in plan.transfers:
        arrivals.setdefault(move.before, []).append(move)
    for stage in plan.stages:
        yield f"  stage on {ids[stage.device]}"
        for step in stage.steps:
            if plan.decisions[step].device != stage.device:
                node = plan.graph.steps[step]
                yield f"    #{node.id} {node.target} again: {time_text(plan.decisions[step].on(stage.device))}"
                continue
            for move in arrivals.get(step, ()):
                what = f"%{move.value} {spec_text(plan.graph.values[move.value])}"
                yield f"    move {what} from {ids[move.source]}: {move.bytes} bytes in {time_text(move.seconds)}"
            made = plan.decisions[step]
            node = plan.graph.steps[step]
            gone = (
                f", then free {' '.join(f'%{value}' for value in plan.releases[step])}" if plan.releases[step] else ""
            )
            yield f"    #{node.id} {node.target}: {time_text(made.seconds)} {made.source}{gone}"
    yield from plan.graph.text().splitlines()
