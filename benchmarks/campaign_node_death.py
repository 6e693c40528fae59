"""Nodes killed at random moments: do programs go on, with the same results, and how long does that take?

    python benchmarks/campaign_node_death.py [--kills 200] [--seed 0] [--json]

Two nodes on this machine, processes of their own. Programs in turn: greedy and sampled generation with a growing
cache, training with Adam and dropout; each on one device, where the other node takes over, and scattered over both,
where every plan stops in the middle. At a random moment of each run one of the nodes, at random, gets SIGKILL, and is
started anew at its address; in every third run the other one, too, while the first kill is being recovered from. The
results are compared, to the bit, with those of an undisturbed run. "s" is how much longer a run took than that one,
"s replay" what a recovery took on the average, from where the loss was noticed. Runs that were over before the kill are
not counted. The exit status says whether all were equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import workloads
from measure import Result, table
from torch import nn

import genie

_READY_SECONDS = 180.0
_NEW_TOKENS = 24
_STEPS = 16


class Node:
    """At one address, in one process after the other."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "genie",
            "serve",
            "--port",
            str(self.port),
            "--device",
            "cpu",
            "--threads",
            "1",
        ]
        self._process = subprocess.Popen(
            [*command, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def ready(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], _READY_SECONDS)[0] or not process.stdout.readline():
            raise RuntimeError(f"the node at {self.address} was not ready within {_READY_SECONDS:g} s")

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


class Scattered:
    """Every group of nodes of a graph on a device chosen at random."""

    name = "scattered"

    def __init__(self) -> None:
        self._draw = random.Random(5)

    def place(self, graph: Any, devices: Sequence[Any]) -> Mapping[int, str]:
        return {step.id: self._draw.choice(devices).id for step in graph.steps}

    def place_knowing(self, graph: Any, devices: Sequence[Any], outlook: Any) -> tuple[Mapping[int, str], str]:
        masks = outlook.groups.allowed
        chosen = [self._draw.choice([at for at in range(len(devices)) if mask >> at & 1]) for mask in masks]
        of = zip(graph.steps, outlook.groups.of, strict=True)
        return {step.id: devices[chosen[group]].id for step, group in of}, self.name


def _generated(device: str, *, sampled: bool) -> list[int]:
    workload = workloads.gpt2(layers=2, width=64, prompt=8, new_tokens=_NEW_TOKENS)
    model = workload.model().to(device)
    inputs = {name: value.to(device) for name, value in workload.inputs().items()}
    torch.manual_seed(7)
    options: dict[str, Any] = {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS, "pad_token_id": 0}
    with torch.no_grad():
        return list(model.generate(**inputs, do_sample=sampled, **options)[0].tolist())


def _trained(device: str) -> list[float]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 8))
    data = [(torch.randn(96, 64), torch.randint(0, 8, (96,))) for _ in range(_STEPS)]
    model.to(device)
    torch.manual_seed(6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    told = []
    for inputs, labels in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        told.append(loss.item())
    return [*told, *(float(each) for parameter in model.parameters() for each in parameter.detach().cpu().flatten())]


PROGRAMS: dict[str, Callable[[str], Any]] = {
    "greedy": lambda device: _generated(device, sampled=False),
    "sampled": lambda device: _generated(device, sampled=True),
    "training": _trained,
}


class Killer:
    """Kills a node so many seconds from now, and starts it anew; then ``second``, so many seconds after that."""

    def __init__(self, first: Node, second: Node | None, after: float, between: float) -> None:
        self._plan = [(after, first), *([(between, second)] if second is not None else [])]
        self._over = threading.Event()
        self.killed: list[Node] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for seconds, node in self._plan:
            if self._over.wait(seconds):
                return
            node.kill()
            self.killed.append(node)
            node.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for node in self.killed:
            node.ready()


@contextlib.contextmanager
def _connected(nodes: Sequence[Node], scattered: bool, settings: Mapping[str, Any]) -> Iterator[str]:
    more = {"placement": "scattered"} if scattered else {}
    genie.init(nodes=[node.address for node in nodes], unix_sockets=False, **settings, **more)
    try:
        genie.engine(None if scattered else 0)
        yield "remote_accelerator" if scattered else "remote_accelerator:0"
    finally:
        genie.shutdown()


def run(*, kills: int = 200, seed: int = 0, **settings: Any) -> dict[str, Any]:
    import genie_pytorch  # noqa: F401  (makes the device)

    torch.set_num_threads(1)
    genie.register_placement_strategy("scattered", lambda _settings: Scattered())
    settings = {"recovery": True, "recovery_attempts": 1000, "recovery_seconds": 120.0, **settings}
    draw = random.Random(seed)
    nodes = [Node(), Node()]
    rows: list[Result] = []
    try:
        for node in nodes:
            node.start()
        for node in nodes:
            node.ready()
        kinds = [(name, scattered) for name in PROGRAMS for scattered in (False, True)]
        undisturbed: dict[tuple[str, bool], tuple[Any, float]] = {}
        while sum(row["kills"] for row in rows) < kills:
            number = len(rows)
            name, scattered = kinds[number % len(kinds)]
            if (name, scattered) not in undisturbed:
                undisturbed[name, scattered] = _timed(nodes, name, scattered, settings)
            expected, usual = undisturbed[name, scattered]
            victim = draw.randrange(2) if scattered else 0
            second = nodes[1 - victim] if number % 3 == 2 else None
            with _connected(nodes, scattered, settings) as device:
                killer = Killer(nodes[victim], second, draw.uniform(0.02, usual), draw.uniform(0.0, 3.0))
                began, failure, got = time.perf_counter(), "", None
                try:
                    got = PROGRAMS[name](device)
                except Exception as error:
                    failure = f"{type(error).__name__}: {error}".splitlines()[0]
                seconds = time.perf_counter() - began
                killer.close()
                stats = genie.get_stats()
            if not stats.get("recoveries") and not failure:
                continue
            rows.append(
                {
                    "program": f"{name}{', two nodes' if scattered else ''}",
                    "kills": len(killer.killed),
                    "recoveries": stats.get("recoveries", 0),
                    "seconds": seconds - usual,
                    "ms": stats.get("recovery_ms", 0),
                    "calls": stats.get("recovery_calls", 0),
                    "checkpoints": stats.get("checkpoints", 0),
                    "equal": got == expected,
                    "failure": failure,
                }
            )
            struck = sum(row["kills"] for row in rows)
            verdict = failure or ("equal" if got == expected else "another result")
            print(f"{struck}/{kills} kills: {rows[-1]['program']}: {verdict}", file=sys.stderr, flush=True)
    finally:
        genie.shutdown()
        for node in nodes:
            node.kill()
    return {"programs": _summary(rows), "failures": _failures(rows), "equal": all(row["equal"] for row in rows)}


def _timed(nodes: Sequence[Node], name: str, scattered: bool, settings: Mapping[str, Any]) -> tuple[Any, float]:
    """What it gives, and how long it takes when it was run before."""
    for _ in range(2):
        with _connected(nodes, scattered, settings) as device:
            began = time.perf_counter()
            got = PROGRAMS[name](device)
            seconds = time.perf_counter() - began
    return got, seconds


def _summary(rows: Sequence[Result]) -> list[Result]:
    names = [*dict.fromkeys(row["program"] for row in rows), "all"]
    summary = []
    for name in names:
        own = [row for row in rows if name in (row["program"], "all")]
        times = sorted(row["seconds"] for row in own)
        summary.append(
            {
                "program": name,
                "runs": len(own),
                "kills": sum(row["kills"] for row in own),
                "recoveries": sum(row["recoveries"] for row in own),
                "equal": sum(row["equal"] for row in own),
                "s median": statistics.median(times),
                "s p90": times[round(0.9 * (len(times) - 1))],
                "s most": times[-1],
                "s replay": sum(row["ms"] for row in own) / 1e3 / max(sum(row["recoveries"] for row in own), 1),
                "calls": statistics.median(row["calls"] for row in own),
                "checkpoints": sum(row["checkpoints"] for row in own),
            }
        )
    return summary


def _failures(rows: Sequence[Result]) -> dict[str, int]:
    return dict(Counter(row["failure"] or "another result" for row in rows if not row["equal"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.perf_counter()
    result = run(kills=options.kills, seed=options.seed)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(table(result["programs"]))
        for failure, count in result["failures"].items():
            print(f"{count} × {failure}")
        print(f"({time.perf_counter() - began:.0f} s)")
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
