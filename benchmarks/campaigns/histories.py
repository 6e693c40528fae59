"""Sessions of several tenants over links that break: what they see must be what serial runs of each would have shown.

    python -m campaigns.histories [--clients 16] [--seconds 60] [--seed 0] [--json]

run in ``benchmarks/``. Each client updates lists on the node at random: appends of values nobody else writes, at a
place that is counted there, too; exchanges; copies. All lists begin as one content, which all sessions of the node share
until they write. Each client's link goes through a proxy that cuts it and damages, repeats, delays and swallows its
bytes; with checksums, since without them damage is seen as values. Then :mod:`campaigns.history` looks at what was done
and seen. The exit status says whether it found nothing, and no error came but a lost connection.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, TypeAlias

from measure import table

from campaigns.history import Event, Found, check
from campaigns.proxy import Faults, Proxy
from campaigns.serving import Node, client, serve
from genie import telemetry
from genie.errors import ConnectionLost, GenieError
from genie.graph import Graph, Input, Ref, TensorSpec
from genie.graph import Node as Step
from genie.testing import Caller

ROOM = 2048  # values of a list: a content of 16 KiB, which is offered by its digest
REGISTERS = ("a", "b", "c")
TENANTS = ("red", "blue", "green")
BAD = Faults(flip=0.003, twice=0.003, late=0.003, lost=0.001, held=0.01, seconds=0.02)

_LIST = TensorSpec((ROOM,), "int64")
_ONE = TensorSpec((1,), "int64")

Row: TypeAlias = dict[str, Any]
Register: TypeAlias = tuple[int, int]  # the handles of the list and of how many values are in it


def _graph(values: list[TensorSpec], steps: list[Step]) -> Graph:
    """All of ``values`` are inputs; what steps give beyond them is theirs, again."""
    made = sum(len(step.outputs) for step in steps)
    return Graph(
        values=(*values, *(_spec_of(values, step) for step in steps)),
        inputs=tuple(Input(value) for value in range(len(values))),
        steps=tuple(steps),
        outputs=(len(values) + made - 1,),
    )


def _spec_of(values: list[TensorSpec], step: Step) -> TensorSpec:
    first = step.args[0]
    assert isinstance(first, Ref)
    return values[first.value] if first.value < len(values) else _LIST


def _append() -> Graph:
    return _graph(
        [_LIST, _ONE, _ONE],
        [
            Step(0, "aten::index_copy_", "", (Ref(0), 0, Ref(1), Ref(2)), (3,), mutates=(0,), aliases=((3, 0),)),
            Step(1, "aten::add_", "Scalar", (Ref(1), 1, 1), (4,), mutates=(1,), aliases=((4, 1),)),
        ],
    )


def _copy(target: int, source: int, made: int, number: int) -> Step:
    return Step(
        number,
        "aten::copy_",
        "",
        (Ref(target), Ref(source), False),
        (made,),
        mutates=(target,),
        aliases=((made, target),),
    )


def _copied() -> Graph:
    return _graph([_LIST, _ONE, _LIST, _ONE], [_copy(0, 2, 4, 0), _copy(1, 3, 5, 1)])


def _swapped() -> Graph:
    """Two lists, exchanged by way of a third."""
    kept = [Step(number, "aten::clone", "", (Ref(number),), (4 + number,)) for number in (0, 1)]
    moves = [_copy(0, 2, 6, 2), _copy(1, 3, 7, 3), _copy(2, 4, 8, 4), _copy(3, 5, 9, 5)]
    specs = [_LIST, _ONE, _LIST, _ONE]
    return Graph(
        values=(*specs, _LIST, _ONE, _LIST, _ONE, _LIST, _ONE),
        inputs=tuple(Input(value) for value in range(4)),
        steps=(*kept, *moves),
        outputs=(9,),
    )


APPEND, COPY, SWAP = _append(), _copied(), _swapped()


@dataclass
class Told:
    """What all clients did and saw."""

    events: list[Event] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    sessions: int = 0
    lost: int = 0
    struck: Counter[str] = field(default_factory=Counter)


class Person:
    """One client after the other, by one thread: a session that is lost is followed by a new one."""

    def __init__(self, node: Node, number: int, seed: int, told: Told, until: float) -> None:
        self._choose = random.Random(f"{seed} {number}")
        self._node = node
        self._number = number
        self._tenant = TENANTS[number % len(TENANTS)]
        self._told = told
        self._until = until
        self._values = itertools.count(number << 40 | 1)

    def run(self) -> None:
        budgets = (self._choose.choice([None, self._choose.randrange(20_000, 400_000)]) for _ in repeat(0))
        proxy = Proxy(self._node.address, seed=self._number, budget=budgets)
        try:
            for turn in itertools.count():
                if time.monotonic() > self._until:
                    break
                self._session(proxy, f"{self._number}.{turn}")
        finally:
            proxy.close()
            self._told.struck.update(proxy.struck)
            self._told.struck["cut"] += proxy.cuts

    def _session(self, proxy: Proxy, name: str) -> None:
        proxy.faults = None
        backend = client(proxy.address, self._node.token(self._tenant), checksums="on", timeout=20.0)
        try:
            caller = Caller(backend.connect(backend.devices()[0]))
            self._told.sessions += 1
            proxy.faults = BAD
            self._work(caller, name)
        except ConnectionLost:
            self._told.lost += 1
        except GenieError as error:
            self._told.errors.append(f"{type(error).__name__}: {error}")
        finally:
            proxy.faults = None
            backend.close()

    def _work(self, caller: Caller, name: str) -> None:
        choose, events = self._choose, self._told.events
        registers = {each: self._fresh(caller) for each in REGISTERS}
        for _ in range(choose.randrange(100, 600)):
            if time.monotonic() > self._until:
                break
            one, other = choose.sample(REGISTERS, 2)
            what = choose.random()
            if what < 0.6:
                value = next(self._values)
                events.append(Event(name, self._tenant, "append", one, value))
                given = caller.put([value], dtype="int64")
                made = caller.run(APPEND, [*registers[one], given])
                caller.session.free((given, made))
            elif what < 0.75:
                events.append(Event(name, self._tenant, "swap", one, other=other))
                caller.session.free((caller.run(SWAP, [*registers[one], *registers[other]]),))
            elif what < 0.8:
                events.append(Event(name, self._tenant, "copy", one, other=other))
                caller.session.free((caller.run(COPY, [*registers[one], *registers[other]]),))
            else:
                events.append(Event(name, self._tenant, "read", one, seen=self._read(caller, registers[one])))
        for each, register in registers.items():
            events.append(Event(name, self._tenant, "read", each, seen=self._read(caller, register)))

    def _fresh(self, caller: Caller) -> Register:
        return caller.put([0] * ROOM, dtype="int64", shared=True), caller.put([0], dtype="int64")

    def _read(self, caller: Caller, register: Register) -> tuple[int, ...]:
        count = int(caller.get(register[1])[0])
        return tuple(map(int, caller.get(register[0])[:count]))


def run(clients: int = 16, seconds: float = 60.0, seed: int = 0) -> Row:
    told = Told()
    with tempfile.TemporaryDirectory() as name:
        settings = {"GENIE_CHECKSUMS": "on"}
        with serve(Path(name), TENANTS, sessions=4 * clients, lease=20.0, **settings) as node:
            until = time.monotonic() + seconds
            people = [Person(node, number, seed, told, until) for number in range(clients)]
            threads = [threading.Thread(target=person.run) for person in people]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            resumed = node.view().resumed
    found = check(told.events)
    return {
        "row": {
            "sessions": told.sessions,
            "updates": sum(event.operation != "read" for event in told.events),
            "reads": sum(event.operation == "read" for event in told.events),
            "cut": told.struck.pop("cut", 0),
            **{name: told.struck[name] for name in ("flip", "twice", "late", "lost")},
            "came back": resumed,
            "lost sessions": told.lost,
            "anomalies": len(found),
        },
        "anomalies": [str(each) for each in _first(found)],
        "errors": sorted(set(told.errors)),
    }


def _first(found: list[Found]) -> list[Found]:
    return found[:20]


def main() -> None:
    telemetry.configure("CRITICAL", False)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(given.clients, given.seconds, given.seed)
    if given.json:
        print(json.dumps(found))
    else:
        print(table([found["row"]]))
        print("\n".join([*found["anomalies"], *found["errors"]]))
    sys.exit(1 if found["anomalies"] or found["errors"] else 0)


if __name__ == "__main__":
    main()
