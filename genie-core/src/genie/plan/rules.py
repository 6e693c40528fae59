"""The rules every plan obeys, as code."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import msgspec

from genie import graph as graphs
from genie.errors import PlanError
from genie.graph.operands import operands
from genie.plan.constraints import broken, exact
from genie.plan.lives import split_storage
from genie.plan.model import ExecutionPlan
from genie.plan.records import Decision, EngineChoice, Transfer, repeats

MAX_DEVICES = 1 << 10
MAX_TEXT = 1 << 12


def verify(plan: ExecutionPlan) -> None:
    """Check every rule of a plan and of its graph; raises :class:`PlanError` or ``GraphError``.

    * There is one decision and one list of releases per step.
    * Devices have different ids; indexes are within the plan's tables; estimates are finite and not negative.
    * A value is released once, at or after its last use; no output and no undonated input is.
    * A value used on a device where it was not made is transferred there before, from where it is.
    * Values that share memory with one that is written to stay on one device; so does memory that outlives the graph
      under two names, and so do the nodes that draw random numbers (:func:`genie.plan.exact`).
    * The plan's own constraints hold.
    """
    if not isinstance(plan, ExecutionPlan):
        raise PlanError(f"this is no plan: {plan!r}", hint="genie.Scheduler(devices).schedule(graph) makes one")
    if "_verified" in plan.__dict__:
        return
    graphs.verify(plan.graph)
    try:
        _verify_tables(plan)
        _verify_releases(plan)
        _verify_again(plan)
        _verify_transfers(plan)
        _verify_constraints(plan)
    except (TypeError, AttributeError) as error:
        raise PlanError(f"the plan holds a value of a wrong type: {error}") from error
    plan.__dict__["_verified"] = True


def bare(plan: ExecutionPlan) -> ExecutionPlan:
    """The verified plan as those need it who run it: what runs where, and nothing of why. Plans that differ in
    estimates alone are one."""
    verify(plan)
    made = plan.engine
    graph = graphs.bare(plan.graph)
    if graph.artifacts:
        kept = [each for each in graph.artifacts if made is not None and made.name and each.kind == made.kind]
        graph = graphs.with_artifacts(graph, tuple(kept))
    new = msgspec.structs.replace(
        plan,
        graph=graph,
        decisions=tuple([Decision(made.device, 0.0, "") for made in plan.decisions]),
        rules=(),
        policy="",
        latency=0.0,
        peak_memory=(),
        constraints=(),
        capacities=(),
        engine=EngineChoice(made.name, made.kind, required=made.required) if made is not None and made.name else None,
    )
    new.__dict__["_verified"] = True
    return new


def _no_time(seconds: float) -> bool:
    return not (isfinite(seconds) and seconds >= 0)


def _some_no_time(seconds: Sequence[float]) -> bool:
    # Of many, the sum tells at once that all are finite; one that overflows, or is no number, tells nothing.
    return not (min(seconds) >= 0 and isfinite(sum(seconds))) and any(map(_no_time, seconds))


def _verify_tables(plan: ExecutionPlan) -> None:
    steps, devices, rules = len(plan.graph.steps), len(plan.devices), len(plan.rules)
    if devices > MAX_DEVICES:
        raise PlanError(f"{devices} devices are more than {MAX_DEVICES}")
    if len({device.id for device in plan.devices}) != devices:
        raise PlanError("two devices have one id")
    if len(plan.decisions) != steps or len(plan.releases) != steps:
        raise PlanError(f"{len(plan.decisions)} decisions and {len(plan.releases)} releases for {steps} steps")
    if len(plan.links) > devices * devices:
        raise PlanError(f"{len(plan.links)} links between {devices} devices")
    if len(plan.peak_memory) not in (0, devices) or any(peak < 0 for peak in plan.peak_memory):
        raise PlanError("peak_memory must be a number of bytes per device")
    if _no_time(plan.latency):
        raise PlanError(f"latency {plan.latency} is no time")
    if rules > steps + 3 or any(len(rule) > MAX_TEXT for rule in plan.rules) or len(plan.policy) > MAX_TEXT:
        raise PlanError("too many rules, or one too long")
    if len(plan.constraints) > steps + MAX_DEVICES or any(len(held.text) > MAX_TEXT for held in plan.constraints):
        raise PlanError("too many constraints, or one too long")
    if len(plan.capacities) not in (0, devices) or any(has < 0 for has in plan.capacities):
        raise PlanError("capacities must be a number of bytes per device")
    inputs = {entry.value for entry in plan.graph.inputs} if plan.homes else set()
    if len({value for value, _ in plan.homes}) < len(plan.homes):
        raise PlanError("an input has two homes")
    for value, home in plan.homes:
        if value not in inputs or not 0 <= home < devices:
            raise PlanError(f"the home of %{value} is no device of the plan, or it is no input")
    if plan.engine is not None:
        _verify_engine(plan, plan.engine)
    for node, made in zip(plan.graph.steps, plan.decisions, strict=True):
        if not 0 <= made.device < devices:
            raise PlanError(f"node {node.id} ({node.target}): device {made.device} is not in the plan's table")
        if not 0 <= made.rule < max(rules, 1):
            raise PlanError(f"node {node.id} ({node.target}): rule {made.rule} is not in the plan's table")
        if len(made.elsewhere) not in (0, devices):
            raise PlanError(f"node {node.id} ({node.target}): estimates for {len(made.elsewhere)} of {devices} devices")
        if _no_time(made.seconds) or (made.elsewhere and _some_no_time(made.elsewhere)):
            raise PlanError(f"node {node.id} ({node.target}): an estimate is no time")
        if len(made.source) > MAX_TEXT or len(made.bound) > MAX_TEXT:
            raise PlanError(f"node {node.id} ({node.target}): the source of its estimate is too long")
        if _no_time(made.error):
            raise PlanError(f"node {node.id} ({node.target}): the error of its estimate is no share")
    for link in plan.links:
        if not (0 <= link.source < devices and 0 <= link.target < devices):
            raise PlanError("a link names a device that is not in the plan's table")
        if _no_time(link.latency) or not link.bytes_per_second > 0:
            raise PlanError("a link has no latency or speed")


def _verify_engine(plan: ExecutionPlan, made: EngineChoice) -> None:
    if len(made.name) > MAX_TEXT or not any(each.kind == made.kind for each in plan.graph.artifacts):
        raise PlanError(f"the plan's engine compiles {made.kind[:64]!r}, which its graph has no artifact of")
    if made.name and len({each.device for each in plan.decisions}) > 1:
        raise PlanError("a compiled plan runs on several devices")
    if any(map(_no_time, (made.seconds, made.steps, made.making))) or made.calls < 1:
        raise PlanError("an estimate of the plan's engine is no time")


def _verify_releases(plan: ExecutionPlan) -> None:
    graph = plan.graph
    never = {entry.value for entry in graph.inputs if not entry.donated}
    never.update(graph.outputs)
    made = bytearray(len(graph.values))
    for entry in graph.inputs:
        made[entry.value] = 1
    for node, taken, gone in zip(graph.steps, operands(graph), plan.releases, strict=True):
        for value in taken:
            if made[value] != 1:
                raise PlanError(f"node {node.id} ({node.target}): operand %{value} was released before")
        for value in node.outputs:
            if value >= 0:
                made[value] = 1
        for value in gone:
            if not 0 <= value < len(made) or made[value] != 1:
                raise PlanError(f"%{value} is released after node {node.id}, where it does not live")
            if value in never:
                raise PlanError(f"%{value} is released after node {node.id}, but it outlives the plan")
            made[value] = 2


def _verify_again(plan: ExecutionPlan) -> None:
    if not plan.again:
        return
    steps, devices = len(plan.graph.steps), len(plan.devices)
    if len(plan.again) > steps * devices:
        raise PlanError(f"{len(plan.again)} steps are run again, of {steps} on {devices} devices")
    unsafe = {step for held in exact(plan.graph, dict(plan.homes)) for step in held.steps}
    for each in plan.again:
        if not (0 <= each.step < each.before < steps and 0 <= each.device < devices):
            raise PlanError("what is run again names a step or a device that the plan does not have")
        node = plan.graph.steps[each.step]
        if each.step in unsafe or node.mutates:
            raise PlanError(f"node {node.id} ({node.target}) does more than make values: it can't be run again")
        if plan.decisions[each.before].device != each.device or plan.decisions[each.step].device == each.device:
            raise PlanError(f"node {node.id} ({node.target}) is run again where it is not needed")


def _verify_transfers(plan: ExecutionPlan) -> None:
    graph = plan.graph
    places = {made.device for made in plan.decisions}
    if len(places) <= 1 and not plan.homes:
        if plan.transfers:
            raise PlanError("transfers in a plan that runs on one device")
        return
    arrivals: dict[int, list[Transfer]] = {}
    for move in plan.transfers:
        if not (0 <= move.value < len(graph.values) and 0 <= move.before < len(graph.steps)):
            raise PlanError(f"a transfer names value %{move.value} and step {move.before}, which are not in the graph")
        if not (0 <= move.source < len(plan.devices) and 0 <= move.target < len(plan.devices)):
            raise PlanError(f"the transfer of %{move.value} names a device that is not in the plan's table")
        if move.bytes < 0 or _no_time(move.seconds):
            raise PlanError(f"the transfer of %{move.value} has no size or time")
        arrivals.setdefault(move.before, []).append(move)
    # Value → devices that hold it; inputs without a home are brought to where they are used.
    present: dict[int, set[int]] = {value: {home} for value, home in plan.homes}
    repeated, taken_by = repeats(plan.again), operands(graph)
    gone = {value: step for step, values in enumerate(plan.releases) for value in values} if repeated else {}
    for step, (node, taken, made) in enumerate(zip(graph.steps, taken_by, plan.decisions, strict=True)):
        for move in arrivals.get(step, ()):
            if move.source == move.target or move.source not in present.get(move.value, ()):
                raise PlanError(f"%{move.value} is sent from a device that does not hold it, before node {node.id}")
            present[move.value].add(move.target)
        for each in repeated.get(step, ()):
            if any(each.device not in present.get(value, ()) for value in taken_by[each.step]):
                raise PlanError(f"node {graph.steps[each.step].id} is run again where an operand of it is not")
            for value in graph.steps[each.step].outputs:
                if value >= 0:
                    present.setdefault(value, set()).add(each.device)
        for value in taken:
            at = present.get(value)
            if at is None:
                present[value] = {made.device}
            elif made.device not in at:
                raise PlanError(f"node {node.id} ({node.target}): operand %{value} is not on its device")
        for value in node.outputs:
            if value >= 0:
                present[value] = {made.device}
        if repeated:
            for value in plan.releases[step]:
                present.pop(value, None)  # an input that nobody uses was nowhere
            for each in repeated.get(step, ()):
                for value in graph.steps[each.step].outputs:
                    if gone.get(value, step) < step:
                        present.pop(value, None)


def _verify_constraints(plan: ExecutionPlan) -> None:
    steps, devices = len(plan.graph.steps), len(plan.devices)
    for held in plan.constraints:
        if not all(0 <= step < steps for step in held.steps) or not all(
            0 <= device < devices for device in held.devices
        ):
            raise PlanError("a constraint names a step or a device that the plan does not have")
    places = [made.device for made in plan.decisions]
    if len(set(places)) > 1:
        crossing = split_storage(plan.graph, places)
        if crossing is not None:
            raise PlanError(f"%{crossing} shares memory that is written to, and lives on two devices")
    if len(set(places)) > 1 or plan.homes:
        first = broken(places, exact(plan.graph, dict(plan.homes)))
        if first is not None:
            raise PlanError(f"node {plan.graph.steps[first.steps[0]].id}: {first.text}, but not on one device")
    first = broken(places, plan.constraints)
    if first is not None:
        raise PlanError(f"node {plan.graph.steps[first.steps[0]].id}: {first.text} does not hold")
