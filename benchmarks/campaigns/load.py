"""Many clients of several tenants on one node, with clients beside them that read slowly or not at all.

    python -m campaigns.load [--clients 200] [--seconds 600] [--pairs 5] [--neighbours 4] [--weights 1,1,1,1] [--json]

run in ``benchmarks/``. The node is ``genie serve`` in a process of its own with one thread; clients are threads of
light processes, each with its own session over TCP and its tenant's token, that decode by a small language model,
encode as BERT does, or classify pictures. Every result is compared with the native one, bit by bit.

After a warm-up (a tenth of the time) phases alternate: alone, and with as many slow readers (a byte a second) and as
many stopped clients (SIGSTOP, in the middle of an answer) as ``--neighbours`` says; while those come and go nothing
is counted. Percentiles are of the phases alone; "p99 beside" is the median over the pairs of phases of p99 with them
over p99 without. Shares are of the time that the calls take natively. What the node has is taken at the end of each
phase alone; "left" is after the last client has gone. ``--options`` are given to ``genie serve``. The exit status says
whether all was equal, nothing failed and nothing stayed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from measure import table

from campaigns.calls import KINDS, Prepared
from campaigns.clients import Done, Who, Work
from campaigns.serving import Node, Standing, serve

BENCHMARKS = Path(__file__).resolve().parents[1]
TARGET_SHARE = 0.1  # that a tenant's may be off
TARGET_BESIDE = 1.1
TARGET_GROWTH = 0.01
_PER_PROCESS = 25
_LEASE = 2.0
_READY_SECONDS = 600.0

Row: TypeAlias = dict[str, Any]


def python(module: str, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    """A module of the campaigns in a process of its own."""
    paths = os.pathsep.join([str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        **more,
    )


class Crowd:
    """All clients, in a few processes."""

    def __init__(self, node: Node, programs: Path, tenants: Sequence[str], count: int, phases: int) -> None:
        # Each tenant has the same mix of programs.
        who = [
            Who(number, tenants[number % len(tenants)], node.token(tenants[number % len(tenants)]), kind)
            for number, kind in zip(range(count), itertools.cycle(_spread(KINDS, len(tenants))))
        ]
        self._processes = []
        for start in range(0, count, _PER_PROCESS):
            process = python("campaigns.clients", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
            work = Work(str(programs), node.address, tuple(who[start : start + _PER_PROCESS]), phases)
            self._say(process, msgspec.json.encode(work).decode())
            assert process.stdout is not None
            if process.stdout.readline().strip() != b"ready":
                raise RuntimeError("the clients did not come in")
        self.who = {each.number: each for each in who}

    @staticmethod
    def _say(process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()

    def phase(self, number: int) -> None:
        for process in self._processes:
            self._say(process, f"phase {number}")

    def stop(self) -> list[Done]:
        for process in self._processes:
            self._say(process, "stop")
        found: list[Done] = []
        for process in self._processes:
            assert process.stdout is not None
            found += msgspec.json.decode(process.stdout.readline(), type=list[Done])
            process.wait(60)
        return found

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def _spread(kinds: Sequence[Any], times: int) -> list[Any]:
    return [kind for kind in kinds for _ in range(times)]


@contextlib.contextmanager
def neighbours(node: Node, tenant: str, count: int) -> Iterator[None]:
    """So many slow readers and so many stopped clients; killed in the end."""
    started = []
    try:
        for _ in ("slow", "stopped") if count else ():
            process = python(
                "campaigns.neighbours", node.address, node.token(tenant), str(count), stdout=subprocess.PIPE
            )
            started.append(process)
            assert process.stdout is not None
            if process.stdout.readline().strip() != b"ready":
                raise RuntimeError("the neighbours did not come in")
        for process in started[1:]:
            process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run(
    clients: int = 200,
    seconds: float = 600.0,
    pairs: int = 5,
    beside: int = 4,
    weights: Sequence[float] = (1, 1, 1, 1),
    options: Sequence[str] = (),
    tiny: bool = False,
) -> Row:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        return _run(directory, prepared(directory, tiny), clients, seconds, pairs, beside, weights, options)


def prepared(directory: Path, tiny: bool) -> Path:
    """Where the programs are, captured in a process of its own: this one stays small."""
    programs = directory / "programs"
    programs.mkdir()
    with python("campaigns.programs", str(programs), *(["tiny"] if tiny else [])) as process:
        if process.wait():
            raise RuntimeError("the programs were not captured")
    return programs


def _run(
    directory: Path,
    programs: Path,
    clients: int,
    seconds: float,
    pairs: int,
    beside: int,
    weights: Sequence[float],
    options: Sequence[str],
) -> Row:
    tenants = [f"tenant{number}" for number in range(len(weights))]
    warm, each = seconds / 10, seconds * 0.9 / (2 * pairs)
    spent, samples = [], []
    with serve(directory, [*tenants, "noise"], *options, sessions=clients + 2 * beside + 8, lease=_LEASE) as node:
        empty = node.standing()
        crowd = Crowd(node, programs, tenants, clients, 1 + 2 * pairs)
        try:
            crowd.phase(0)
            time.sleep(warm)
            for number in range(2 * pairs):
                with neighbours(node, "noise", beside if number % 2 else 0):
                    crowd.phase(1 + number)
                    began = time.monotonic()
                    time.sleep(each)
                    spent.append(time.monotonic() - began)
                    crowd.phase(0)
                if number % 2 == 0:
                    samples.append(node.standing())
            done = crowd.stop()
        finally:
            crowd.kill()
        left = node.settled(30 + _LEASE)
    return _report(programs, crowd, done, spent, weights, tenants, (empty, samples, left))


def _report(
    programs: Path,
    crowd: Crowd,
    done: Sequence[Done],
    spent: Sequence[float],
    weights: Sequence[float],
    tenants: Sequence[str],
    node: tuple[Standing, Sequence[Standing], Standing],
) -> Row:
    cost = {
        kind: msgspec.json.decode((programs / f"{kind}.json").read_bytes(), type=Prepared).seconds for kind in KINDS
    }
    of = {kind: [each for each in done if crowd.who[each.number].kind == kind] for kind in KINDS}
    alone = range(1, len(spent) + 1, 2)
    kinds = []
    for kind, its in of.items():
        quiet = sorted(took for each in its for phase in alone for took in each.calls[phase])
        ratios = [
            _percentile(_calls(its, phase + 1), 0.99) / _percentile(_calls(its, phase), 0.99)
            for phase in alone
            if _calls(its, phase) and _calls(its, phase + 1)
        ]
        kinds.append(
            {
                "kind": kind,
                "clients": len(its),
                "calls": sum(len(calls) for each in its for calls in each.calls),
                "calls/s": len(quiet) / sum(spent[phase - 1] for phase in alone),
                "native ms": cost[kind] * 1e3,
                "p50 ms": _percentile(quiet, 0.5) / 1e3 if quiet else None,
                "p99 ms": _percentile(quiet, 0.99) / 1e3 if quiet else None,
                "p99 beside": statistics.median(ratios) if ratios else None,
            }
        )
    taken = dict.fromkeys(tenants, 0.0)
    for each in done:
        who = crowd.who[each.number]
        taken[who.tenant] += cost[who.kind] * sum(len(each.calls[phase]) for phase in alone)
    shares = [
        {
            "tenant": tenant,
            "weight": weight,
            "share": taken[tenant] / (sum(taken.values()) or 1),
            "due": weight / sum(weights),
            "off by": abs(taken[tenant] / (sum(taken.values()) or 1) * sum(weights) / weight - 1),
        }
        for tenant, weight in zip(tenants, weights, strict=True)
    ]
    empty, samples, left = node
    return {
        "equal": not any(each.wrong for each in done) and len(done) == len(crowd.who),
        "errors": sorted({each.error or each.wrong for each in done} - {""}),
        "kinds": kinds,
        "tenants": shares,
        "node": [
            held(*each) for each in (("empty", empty), ("first", samples[0]), ("last", samples[-1]), ("left", left))
        ],
        "growth": (samples[-1].anonymous - samples[-1].kept) / (samples[0].anonymous - samples[0].kept) - 1,
        "clean": left.clean_since(empty),
    }


def held(name: str, standing: Standing) -> Row:
    return {
        "node": name,
        "sessions": standing.sessions,
        "values MB": standing.values / 1e6,
        "kept MB": standing.kept / 1e6,
        "contents MB": standing.contents / 1e6,
        "memory MB": standing.anonymous / 1e6,
        "heap MB": standing.heap / 1e6,
        "fds": standing.descriptors,
        "threads": standing.threads,
    }


def _calls(its: Sequence[Done], phase: int) -> list[int]:
    return sorted(took for each in its for took in each.calls[phase])


def _percentile(ordered: Sequence[int], share: float) -> float:
    return float(ordered[min(round(share * (len(ordered) - 1)), len(ordered) - 1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--neighbours", type=int, default=4, help="slow readers, and as many stopped clients")
    parser.add_argument("--weights", default="1,1,1,1", help="of the tenants tenant0, tenant1, …")
    parser.add_argument("--options", default="", help="for genie serve")
    parser.add_argument("--tiny", action="store_true", help="programs of a tenth of the size")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    weights = [float(weight) for weight in given.weights.split(",")]
    found = run(given.clients, given.seconds, given.pairs, given.neighbours, weights, given.options.split(), given.tiny)
    if given.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        for name in ("kinds", "tenants", "node"):
            print(table(found[name]), end="\n\n")
        print(
            f"equal: {'yes' if found['equal'] else 'NO'}; errors: {found['errors'] or 'none'}; memory grew by "
            f"{found['growth']:.2%} (target {TARGET_GROWTH:.0%}); nothing left: {'yes' if found['clean'] else 'NO'}; "
            f"targets: shares within {TARGET_SHARE:.0%}, p99 beside at most {TARGET_BESIDE}"
        )
    sys.exit(0 if found["equal"] and not found["errors"] and found["clean"] else 1)


if __name__ == "__main__":
    main()
