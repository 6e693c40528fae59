"""Programs over links that are bad in every way: the same results, or an error that says so; never a wrong value.

    python -m campaigns.links [--count 20] [--seconds 20] [--seed 0] [--json]

run in ``benchmarks/``. For each kind of fault ``--count`` sessions, one after the other and each for its share of the
time, decode, encode and classify through a proxy that treats the bytes so; results are compared with the native ones,
bit by bit. "struck" counts the faults, "came back" how often a client did, "lost" the sessions that ended with an error
of the link. The last rows are without checksums: there a changed bit is a wrong value, or an error of any kind. The
exit status says whether no result was wrong, and no other error came, where there were checksums.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any, TypeAlias

from measure import table

from campaigns.calls import KINDS, Client, Kind, Program, WrongValue
from campaigns.load import prepared
from campaigns.proxy import Faults, Proxy
from campaigns.serving import Node, client, serve
from genie import telemetry
from genie.errors import ConnectionLost, GenieError

FAULTS = {
    "none": Faults(),
    "cut": Faults(),
    "held back": Faults(held=0.05, seconds=0.05),
    "bit flips": Faults(flip=0.01),
    "twice": Faults(twice=0.01),
    "out of order": Faults(late=0.01),
    "lost": Faults(lost=0.005),
    "all of these": Faults(flip=0.003, twice=0.003, late=0.003, lost=0.001, held=0.01, seconds=0.02),
}
_UNCHECKED = ("none", "bit flips")

Row: TypeAlias = dict[str, Any]


def _budgets(choose: random.Random) -> Iterator[int | None]:
    return (choose.randrange(5_000, 200_000) for _ in repeat(0))


def _row(
    node: Node,
    programs: Mapping[Kind, Program],
    name: str,
    *,
    checked: bool,
    count: int,
    share: float,
    seed: int,
    others: set[str],
) -> Row:
    choose = random.Random(f"{seed} {name}")
    row: Row = {"faults": name, "checksums": checked, "sessions": 0, "calls": 0, "struck": 0}
    row |= {"came back": -node.view().resumed, "lost": 0, "wrong": 0, "other errors": 0}
    for number in range(count):
        cuts = name in ("cut", "all of these")
        proxy = Proxy(node.address, seed=choose.randrange(1 << 30), budget=_budgets(choose) if cuts else None)
        checksums = "on" if checked else "off"
        backend = client(proxy.address, node.token("tenant"), checksums=checksums, timeout=30.0, heartbeat=0.5)
        until = time.monotonic() + share
        try:
            session = backend.connect(backend.devices()[0])
            row["sessions"] += 1
            proxy.faults = FAULTS[name]
            for _ in Client(session, programs[KINDS[number % len(KINDS)]], number).calls():
                row["calls"] += 1
                if time.monotonic() > until:
                    break
        except ConnectionLost:
            row["lost"] += 1
        except WrongValue:
            row["wrong"] += 1
        except GenieError as error:
            row["other errors"] += 1
            others.add(f"{name}: {type(error).__name__}: {error.message}")
        finally:
            proxy.faults = None
            backend.close()
            proxy.close()
            row["struck"] += sum(proxy.struck.values()) + proxy.cuts
    row["came back"] += node.view().resumed
    return row


def run(count: int = 20, seconds: float = 20.0, seed: int = 0, only: Collection[str] = ()) -> Row:
    """``seconds`` for each kind of fault."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        at = prepared(directory, tiny=True)
        programs = {kind: Program(at, kind) for kind in KINDS}
        with serve(directory, ["tenant"], sessions=1000, lease=10.0) as node:
            share, others = seconds / count, set[str]()
            how: dict[str, Any] = {"count": count, "share": share, "seed": seed}
            rows = [
                _row(node, programs, fault, checked=True, others=others, **how)
                for fault in FAULTS
                if not only or fault in only
            ]
            rows += [
                _row(node, programs, fault, checked=False, others=set(), **how)
                for fault in _UNCHECKED
                if not only or fault in only
            ]
    good = not any(row["wrong"] or row["other errors"] for row in rows if row["checksums"])
    return {"rows": rows, "good": good, "errors": sorted(others)}


def main() -> None:
    telemetry.configure("CRITICAL", False)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds of faults, separated by commas")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(given.count, given.seconds, given.seed, [name for name in given.only.split(",") if name])
    if given.json:
        print(json.dumps(found))
    else:
        print(table(found["rows"]))
        print("\n".join(["", *found["errors"]]))
        print(f"never a wrong value with checksums: {'yes' if found['good'] else 'NO'}")
    sys.exit(0 if found["good"] else 1)


if __name__ == "__main__":
    main()
