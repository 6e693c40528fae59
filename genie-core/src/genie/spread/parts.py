"""A plan for several devices as plans for one each: a part per stage, and what passes between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from genie.bindings import numbers, parameters
from genie.errors import PlanError
from genie.graph import Arg, Artifact, Graph, Input, Many, Node, Ref, with_artifacts
from genie.graph.random import spared
from genie.graph.sizes import sizes
from genie.plan import ExecutionPlan, liveness, peaks, verify


class Part(NamedTuple):
    """A stage as a plan of its own. Values are numbered as in the whole plan."""

    device: int  # in the whole plan's table
    plan: ExecutionPlan
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    words: tuple[int, ...]  # positions of its parameters among the whole's
    brings: tuple[int, ...]  # inputs of the whole that no part before it takes on this device
    arrives: tuple[int, ...]  # values that other devices make and it takes
    departs: tuple[tuple[int, int], ...]  # (value, device), once it is done
    frees: tuple[int, ...]  # what nobody here needs after that
    entered: Mapping[int, int]  # bytes of the inputs of the whole among its inputs
    need: int = 0  # bytes on the device while it runs: its own most, and what passes between other parts meanwhile


class Split(NamedTuple):
    """All parts, each after those it takes values from, and what holds for the plan as a whole."""

    parts: tuple[Part, ...]
    brought: tuple[tuple[int, int], ...]  # (input value, device that uses it)
    scattered: frozenset[int]  # inputs that several devices use
    home: dict[int, int]  # value → the device it is made on; of an input, the first that uses it
    bound: tuple[int, ...]  # inputs that share memory with what is written or outlives the plan: copies won't do
    written: tuple[int, ...]  # inputs whose memory is written
    roots: tuple[int, ...]  # per output: the first value that shares its memory
    donated: tuple[tuple[int, frozenset[int]], ...]  # (input value, devices that use it up)
    entered: Mapping[int, int]  # bytes of the inputs
    sizes: tuple[int, ...]  # per output: the bytes of its memory, if that is its own


def split(plan: ExecutionPlan) -> Split:
    graph = plan.graph
    entered = {entry.value: entry for entry in graph.inputs}
    stages = [(stage.device, stage.steps) for stage in plan.stages]
    home: dict[int, int] = {}
    for node, decided in zip(graph.steps, plan.decisions, strict=True):
        for value in node.operands():
            home.setdefault(value, decided.device)
        for value in node.outputs:
            home[value] = decided.device
    untouched = [value for value in dict.fromkeys(graph.outputs) if value in entered and value not in home]
    home.update(dict.fromkeys(untouched, 0))

    users: dict[tuple[int, int], int] = {}  # (value, device) → the last stage that takes it there
    needed: list[tuple[int, ...]] = []
    for number, (device, steps) in enumerate(stages):
        made: set[int] = set()
        takes: dict[int, None] = {}
        for step in steps:
            takes.update((value, None) for value in graph.steps[step].operands() if value not in made)
            made.update(graph.steps[step].outputs)
        needed.append(tuple(takes))
        users.update(((value, device), number) for value in takes)
    targets: dict[int, list[int]] = {}  # made value → other devices that take it, in the order of need
    for move in plan.transfers:
        if move.value not in entered:
            targets.setdefault(move.value, []).append(move.target)

    lasting = set(graph.outputs)
    words = _words(graph)
    size = sizes(graph)
    parts = []
    arrived: set[tuple[int, int]] = set()
    brought: dict[tuple[int, int], None] = {}
    for number, (device, steps) in enumerate(stages):
        gone = {
            value
            for value in needed[number]
            if users[value, device] == number
            and (home[value] != device or value not in lasting)
            and (value not in entered or entered[value].donated)
        }
        made = {value for step in steps for value in graph.steps[step].outputs if value >= 0}
        # What is made once more, on another device, is for that device alone.
        at_home = {value for value in made if home[value] == device}
        departs = tuple((value, target) for value in sorted(at_home) for target in targets.get(value, ()))
        leaving = [value for value in graph.outputs if value in at_home]
        kept = {value for value in made if (value, device) in users}
        passed = sorted((kept | {value for value, _ in departs}) - set(leaving))
        outputs = (*leaving, *passed)
        arrives = tuple(
            value for value in needed[number] if device in targets.get(value, ()) and (value, device) not in arrived
        )
        arrived.update((value, device) for value in arrives)
        brings = tuple(value for value in needed[number] if value in entered and (value, device) not in brought)
        brought.update(((value, device), None) for value in brings)
        parts.append(
            Part(
                device,
                _alone(plan, device, steps, needed[number], outputs, gone),
                needed[number],
                outputs,
                tuple(position for step in steps for position in words[step]),
                brings,
                arrives,
                departs,
                tuple(value for value in passed if value not in kept),
                {value: size[value] for value in needed[number] if value in entered},
            )
        )
    # Inputs that leave as they came: a part that runs nothing gives them another name.
    for device in dict.fromkeys(home[value] for value in graph.outputs if value in entered):
        alone = tuple(value for value in graph.outputs if value in entered and home[value] == device)
        passing = tuple(dict.fromkeys(alone))
        given = {value for value in passing if entered[value].donated}
        whole = _alone(plan, device, (), passing, alone, given)
        brings = tuple(value for value in passing if (value, device) not in brought)
        parts.append(
            Part(device, whole, passing, alone, (), brings, (), (), (), {value: size[value] for value in passing})
        )
        brought.update(((value, device), None) for value in passing)
    root = _roots(graph)
    families = _families(graph, root)
    used_by: dict[int, set[int]] = {value: set() for value in entered}
    for value, device in brought:
        used_by[value].add(device)
    return Split(
        _with_needs(parts, size),
        tuple(brought),
        frozenset(value for value, devices in used_by.items() if len(devices) > 1),
        home,
        tuple(value for value in entered if value in home and root[value] in families.bound),
        tuple(value for value in entered if root[value] in families.written),
        tuple(root[value] for value in graph.outputs),
        tuple((value, frozenset(used_by[value])) for value, entry in entered.items() if entry.donated),
        {value: size[value] for value in entered},
        tuple(graph.values[value].nbytes if root[value] == value else 0 for value in graph.outputs),
    )


def _with_needs(parts: Sequence[Part], size: Sequence[int]) -> tuple[Part, ...]:
    """What an input of the whole takes counts in the parts that take it, and only there: it is the session's to know
    what is held between them."""
    found = []
    between: dict[int, set[int]] = {part.device: set() for part in parts}  # device → values made and not yet freed
    for part in parts:
        graph, held = part.plan.graph, between[part.device]
        (most,) = peaks(graph, [0] * len(graph.steps), 1, part.plan.releases, {})
        found.append(part._replace(need=most + sum(size[value] for value in held.difference(part.inputs))))
        held.update(value for value in (*part.arrives, *part.outputs) if value not in part.entered)
        held.difference_update(value for value, entry in zip(part.inputs, graph.inputs, strict=True) if entry.donated)
        held.difference_update(part.frees)
    return tuple(found)


def gathered(plan: ExecutionPlan, device: int) -> ExecutionPlan:
    """The plan with everything on one of its devices."""
    decisions = tuple(msgspec.structs.replace(made, device=device) for made in plan.decisions)
    return msgspec.structs.replace(plan, decisions=decisions, transfers=(), again=(), peak_memory=())


class _Families(NamedTuple):
    written: frozenset[int]
    bound: frozenset[int]


def _roots(graph: Graph) -> list[int]:
    root = list(range(len(graph.values)))
    for node in graph.steps:
        for output, operand in node.aliases:
            root[output] = root[operand]
    return root


def _families(graph: Graph, root: Sequence[int]) -> _Families:
    """Roots of memory that is written, and of memory that must stay where it is: written, or known after the plan
    under two names. An input's memory may have others that the graph does not see, be it donated or not."""
    written = frozenset(root[value] for node in graph.steps for value in node.mutates)
    surviving: dict[int, int] = {}
    for value in {*(entry.value for entry in graph.inputs), *graph.outputs}:
        surviving[root[value]] = surviving.get(root[value], 0) + 1
    return _Families(written, written | {value for value, count in surviving.items() if count > 1})


def _words(graph: Graph) -> list[range]:
    """Per step, where its parameters are among the graph's."""
    found, start = [], 0
    for node in graph.steps:
        count = sum(map(_numbers, node.args))
        found.append(range(start, start + count))
        start += count
    assert start == len(parameters(graph))
    return found


def sparing(graph: Graph) -> tuple[int, ...]:
    """The parameters that, being zero, are why operators of the graph draw no random numbers."""
    words = _words(graph)
    return tuple(
        words[step].start + sum(map(_numbers, graph.steps[step].args[:argument])) for step, argument in spared(graph)
    )


def _numbers(arg: Arg) -> int:
    return sum(1 for _ in numbers(arg))


def _alone(
    plan: ExecutionPlan,
    device: int,
    steps: Sequence[int],
    inputs: Sequence[int],
    outputs: Sequence[int],
    donated: set[int],
) -> ExecutionPlan:
    """The plan of some steps for the one device they run on."""
    graph = plan.graph
    entered = {entry.value: entry for entry in graph.inputs}
    values = list(inputs)
    number = {-1: -1, **{value: position for position, value in enumerate(values)}}
    nodes: list[Node] = []
    for place, node in enumerate(graph.steps[step] for step in steps):
        args = tuple(_renumbered(arg, number) for arg in node.args)
        mutates = tuple(number[value] for value in node.mutates)
        shared = [number[operand] for _, operand in node.aliases]
        for value in node.outputs:  # a step that is run again makes new values
            if value >= 0:
                number[value] = len(values)
                values.append(value)
        outputs_there = tuple(number[value] for value in node.outputs)
        aliases = tuple((number[output], operand) for (output, _), operand in zip(node.aliases, shared, strict=True))
        nodes.append(
            Node(
                place,
                node.operation,
                node.overload,
                args,
                outputs_there,
                mutates,
                aliases,
                node.module,
                node.source,
                node.semantics,
            )
        )
    alone = Graph(
        values=tuple(graph.values[value] for value in values),
        inputs=tuple(
            msgspec.structs.replace(entered.get(value, Input(0)), value=position, donated=value in donated)
            for position, value in enumerate(inputs)
        ),
        steps=tuple(nodes),
        outputs=tuple(number[value] for value in outputs),
        modules=graph.modules,
        sources=graph.sources,
        backend_type=graph.backend_type,
        name=graph.name,
    )
    whole = len(steps) == len(graph.steps) and tuple(outputs) == graph.outputs
    engine = plan.engine if plan.engine is not None and plan.engine.name else None
    forms = _forms(graph, number) if whole and engine is not None else ()
    if engine is not None and engine.required and not forms:
        raise PlanError(
            "the program has to run compiled, and its steps and its artifact do not take and give the same values",
            hint="name the device it is to run on, or let the engine be auto",
        )
    made = ExecutionPlan(
        graph=with_artifacts(alone, forms) if forms else alone,
        devices=(plan.devices[device],),
        decisions=tuple(msgspec.structs.replace(plan.decisions[step], device=0, elsewhere=()) for step in steps),
        releases=liveness(alone),
        rules=plan.rules,
        policy=plan.policy,
        engine=engine if forms else None,
    )
    verify(made)
    return made


def _forms(graph: Graph, number: Mapping[int, int]) -> tuple[Artifact, ...]:
    """The artifacts, by the inputs of a part that is all of the graph; without those that take more than its steps."""
    taken = [[graph.inputs[at].value for at in each.takes] for each in graph.artifacts]
    return tuple(
        msgspec.structs.replace(each, takes=tuple(number[value] for value in values))
        for each, values in zip(graph.artifacts, taken, strict=True)
        if all(value in number for value in values)
    )


def _renumbered(arg: Arg, number: dict[int, int]) -> Arg:
    if isinstance(arg, Ref):
        return Ref(number[arg.value])
    if isinstance(arg, Many):
        return Many(tuple(_renumbered(item, number) for item in arg.items))
    return arg
