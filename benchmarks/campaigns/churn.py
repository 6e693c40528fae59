"""Clients that come and go, thousands of times: nothing of them stays on the node.

    python -m campaigns.churn [--count 10000] [--rounds 4] [--workers 4] [--json]

run in ``benchmarks/``. A cycle is a new session that gets its weights, makes some calls whose results are compared
with the native ones, and ends: of ten, six say BYE, three have their link cut and never come back, one is killed
(SIGKILL) at work. What the node has is taken before, after each of the ``--rounds`` over which the cycles are spread,
and after one of the same length before them, in which heaps and the caches of libraries grow to what so many clients at
once need; each time when the last lease is over. Growth is from the first of these looks to the last. The exit status
says whether all results were equal, and nothing stayed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from measure import table

from campaigns.calls import KINDS, Client, Kind, Program, WrongValue
from campaigns.load import held, prepared
from campaigns.proxy import Proxy
from campaigns.serving import REST_SECONDS, Node, client, serve
from genie import telemetry
from genie.errors import GenieError

TARGET_GROWTH = 0.01
_LEASE = 1.0
_CALLS = 3
_WAIT_SECONDS = 120.0

Row: TypeAlias = dict[str, Any]


def _visit(address: str, token: str, programs: Mapping[Kind, Program], number: int) -> Any:
    """A session, its calls made. What keeps it open."""
    backend = client(address, token, timeout=60.0)
    its = Client(backend.connect(backend.devices()[0]), programs[KINDS[number % len(KINDS)]], number)
    calls = its.calls()
    for _ in range(_CALLS):
        next(calls)
    return backend, calls


def _orderly(node: tuple[str, str, str], numbers: range, results: Any) -> None:
    """Cycles that end by BYE, and by a cut."""
    telemetry.configure("CRITICAL", False)
    address, token, directory = node
    programs = {kind: Program(Path(directory), kind) for kind in KINDS}
    done, problems = 0, []
    for number in numbers:
        proxy = Proxy(address) if number % 3 == 2 else None
        try:
            backend, _ = _visit(proxy.address if proxy else address, token, programs, number)
            if proxy is None:
                backend.close()
            else:
                proxy.shut.set()
                proxy.cut()
            done += 1
        except (GenieError, WrongValue) as error:
            problems.append(f"{type(error).__name__}: {error}")
        finally:
            if proxy is not None:
                proxy.close()
    results.put((done, problems))


def _killed(node: tuple[str, str, str], numbers: range, results: Any) -> None:
    """Cycles whose process is killed. This one has no session, so it may fork."""
    telemetry.configure("CRITICAL", False)
    address, token, directory = node
    programs = {kind: Program(Path(directory), kind) for kind in KINDS}
    done, problems = 0, []
    for number in numbers:
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                _, calls = _visit(address, token, programs, number)
                os.write(theirs, b"k")
                for _ in calls:
                    pass
            except BaseException as error:
                os.write(theirs, f"{type(error).__name__}: {error}".encode()[:1000])
            os._exit(1)
        os.close(theirs)
        told = os.read(ours, 1000)
        os.close(ours)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if told == b"k":
            done += 1
        else:
            problems.append(told.decode())
    results.put((done, problems))


def _cycles(node: Node, programs: Path, count: int, workers: int) -> tuple[int, list[str]]:
    """So many cycles, by several processes at a time; how many were made, and what went wrong."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    at = (node.address, node.token("tenant"), str(programs))
    killed = count // 10
    jobs = [(_killed, range(killed))]
    jobs += [(_orderly, range(number, count - killed, workers)) for number in range(workers)]
    processes = [context.Process(target=job, args=(at, numbers, results)) for job, numbers in jobs]
    for process in processes:
        process.start()
    done = 0
    problems: list[str] = []
    for _ in processes:
        made, its = results.get(timeout=_WAIT_SECONDS + count)
        done, problems = done + made, problems + its
    for process in processes:
        process.join(_WAIT_SECONDS)
    return done, problems


def run(count: int = 10_000, rounds: int = 4, workers: int = 4, rest: float = REST_SECONDS) -> Row:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        programs = prepared(directory, tiny=True)
        with serve(directory, ["tenant"], sessions=1000, lease=_LEASE) as node:
            looks = [("empty", node.standing())]
            problems: list[str] = []
            cycles, seconds = 0, 0.0
            for _ in range(rounds + 1):
                began = time.monotonic()
                done, more = _cycles(node, programs, count // rounds, workers)
                seconds += time.monotonic() - began
                cycles += done
                problems += more
                looks.append((f"{cycles:,}", node.settled(30 + _LEASE, rest)))
            opened = sum(tenant.opened for tenant in node.view().tenants)
    warm, after = looks[1][1], looks[-1][1]
    return {
        "cycles": cycles,
        "cycles/s": cycles / seconds,
        "opened": opened,
        "equal": not problems,
        "problems": sorted(set(problems))[:20],
        "node": [held(*each) for each in looks],
        "growth": (after.anonymous - after.kept) / (warm.anonymous - warm.kept) - 1,
        "clean": after.clean_since(warm) and after.contents == warm.contents,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--rest", type=float, default=REST_SECONDS, help="seconds left to the node before it is looked at"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(given.count, given.rounds, given.workers, given.rest)
    if given.json:
        print(json.dumps(found))
    else:
        print(table(found["node"]))
        print(
            f"\n{found['cycles']:,} cycles, {found['cycles/s']:.0f} a second; equal: "
            f"{'yes' if found['equal'] else 'NO'}; problems: {found['problems'] or 'none'}; memory grew by "
            f"{found['growth']:.2%} (target {TARGET_GROWTH:.0%}); nothing left: {'yes' if found['clean'] else 'NO'}"
        )
    sys.exit(0 if found["equal"] and found["clean"] else 1)


if __name__ == "__main__":
    main()
