"""Whether a graph runs step by step or as what a compiler makes of it, by what either takes.

A compiled program is estimated from the same model as the steps: what multiplies, convolves or draws takes what it
takes there, without the call's own cost; all else is fused, so that of its traffic with memory a part is left. Operands
and results are read and written once. Compiling is counted over the calls to come.
"""

from __future__ import annotations

from collections.abc import Sequence

from genie.device import Device
from genie.errors import SchedulingError
from genie.graph import Artifact, Graph
from genie.graph.regions import OPERATORS
from genie.plan import Decision, EngineChoice
from genie.schedule.cost import bandwidth, default_roofline, traits

CALLS = 1000  # that compiling is counted over: programs are compiled to be called again
_FUSED = 0.25  # of the bytes that operators move which a compiler fuses: what is left
_APART = frozenset({"gemm", "gemv", "batched gemm", "attention", "convolution", "random", "other"})
# Seconds of a call, of each operand or result that passes, of compiling. Rough: benchmarks/bench_jax.py shows whether
# they choose well for whole programs, and measures none of them by itself.
_CALL, _PASSED = 4e-5, 6e-6
_COMPILE, _COMPILE_STEP = 0.1, 1e-3


def choice(graph: Graph, device: Device, decisions: Sequence[Decision], seconds: float) -> EngineChoice | None:
    """Of a graph that is all on ``device``, whose steps take ``seconds``; ``None`` where there is nothing to choose.
    Raises :class:`SchedulingError` for a required artifact that the device cannot compile."""
    found = [(each, name) for each in graph.artifacts if (name := device.engine_for(each.kind))]
    required = next((each for each in graph.artifacts if each.required), None)
    if required is not None:
        found = [(each, name) for each, name in found if each is required]
        if not found:
            raise SchedulingError(
                f"the program has to run as {required.kind}, and {device.id} has no engine for that",
                hint="install genie-compiler-xla with jaxlib there, or let the engine be auto",
            )
    if not found:
        return None
    artifact, name = found[0]
    takes = _compiled(graph, artifact, device, decisions)
    making = _COMPILE + _COMPILE_STEP * _equations(graph)
    better = artifact.required or takes + making / CALLS < seconds
    return EngineChoice(name if better else "", artifact.kind, takes, seconds, making, CALLS, artifact.required)


def split_up(graph: Graph) -> None:
    """Raises :class:`SchedulingError` for a graph whose steps are on several devices, and that has to be compiled."""
    if any(each.required for each in graph.artifacts):
        raise SchedulingError(
            "the program has to run compiled, which it does whole, and is placed on several devices",
            hint="name the device it is to run on, or let the engine be auto",
        )


def _compiled(graph: Graph, artifact: Artifact, device: Device, decisions: Sequence[Decision]) -> float:
    per_byte = 1 / (bandwidth(device) * default_roofline(device).memory)
    overhead = default_roofline(device).overhead
    faces = [graph.values[graph.inputs[at].value] for at in artifact.takes]
    faces += [graph.values[value] for value in graph.outputs]
    busy = sum(spec.nbytes for spec in faces) * per_byte
    asks = traits(graph)
    for node, made in zip(graph.steps, decisions, strict=True):
        asked = asks[node.id]
        if node.operation in OPERATORS or asked.kind in _APART:
            busy += max(made.seconds - overhead, 0.0)
        elif asked.kind != "view":
            busy += max(made.seconds - overhead, 0.0) * _FUSED
    return _CALL + _PASSED * len(faces) + busy


def _equations(graph: Graph) -> int:
    return len(graph.steps) + sum(_equations(region) for region in graph.regions)
