"""Clients killed at random moments: each time the node's memory is what it was before.

    python -m campaigns.death [--count 200] [--seed 0] [--json]

run in ``benchmarks/``. One after the other, a process uploads, generates (by a small language model, one of two times
by the node's loop), or trains (a small net on the remote device, with Adam), and is killed (SIGKILL) within a second.
When the lease is over, the node must have no session and no value, and no more descriptors and threads than before the
first. The exit status says whether that was so each time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from measure import table
from torch import nn

import genie
from campaigns.calls import Client, Program
from campaigns.load import held, prepared
from campaigns.serving import Node, Standing, client, serve
from genie import telemetry
from genie.graph import TensorSpec

_LEASE = 0.5
_LONGEST = 1.0  # that a client lives once it is at work
_FREED_SECONDS = 30.0
_BYTES = 24 << 20

Row: TypeAlias = dict[str, Any]
Ready: TypeAlias = Callable[[], None]


def _uploads(node: Node, programs: Path, number: int, ready: Ready) -> None:
    backend = client(node.address, node.token("tenant"))
    session = backend.connect(backend.devices()[0])
    data = bytes(range(256)) * (_BYTES // 256)
    ready()
    handle = 0
    while True:
        handle += 1
        session.upload(handle, TensorSpec((_BYTES,), "uint8"), data, shared=handle % 2 == 0)
        if handle > 8:
            session.free((handle - 8,))


def _generates(node: Node, programs: Path, number: int, ready: Ready) -> None:
    backend = client(node.address, node.token("tenant"))
    its = Client(backend.connect(backend.devices()[0]), Program(programs, "llm"), number)
    ready()
    for _ in its.calls():
        pass


def _trains(node: Node, programs: Path, number: int, ready: Ready) -> None:
    genie.init(nodes=[node.address], token_file=node.token("tenant"), unix_sockets=False)
    torch.manual_seed(number)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).to("remote_accelerator")
    optimizer = torch.optim.Adam(model.parameters())
    inputs, labels = torch.randn(64, 64), torch.randint(0, 8, (64,))
    ready()
    while True:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs.to("remote_accelerator")), labels.to("remote_accelerator"))
        loss.backward()
        optimizer.step()
        loss.item()


WORKS = {"uploads": _uploads, "generates": _generates, "trains": _trains}


def _kill_one(node: Node, programs: Path, work: str, number: int, seconds: float) -> bool:
    """Whether it was at work when it was killed. This process has no session and no thread, so it may fork."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            WORKS[work](node, programs, number, lambda: os.write(theirs, b"r") and None)
        finally:
            os._exit(1)
    os.close(theirs)
    try:
        began = os.read(ours, 1) == b"r"
        time.sleep(seconds)
        ended = bool(select.select([ours], [], [], 0)[0])  # it would have closed its end
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours)
    return began and not ended


class _Watcher:
    """Asks the node from another process: whoever forks must have no threads of gRPC's."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def ask(self, seconds: float) -> Standing:
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                standing = self._node.settled(seconds)
                os.write(theirs, json.dumps([getattr(standing, name) for name in Standing.__slots__]).encode())
            finally:
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as told:
            data = told.read()
        os.waitpid(pid, 0)
        return Standing(*json.loads(data))


def run(count: int = 200, seed: int = 0) -> Row:
    choose = random.Random(seed)
    rows: dict[str, Counter[str]] = {work: Counter() for work in WORKS}
    seconds: dict[str, list[float]] = {work: [] for work in WORKS}
    left: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        programs = prepared(directory, tiny=True)
        with serve(directory, ["tenant"], lease=_LEASE) as node:
            watcher = _Watcher(node)
            for number, work in enumerate(WORKS):  # once each: what a first client leaves is no leak
                _kill_one(node, programs, work, number, _LONGEST)
            before = after = watcher.ask(_FREED_SECONDS)
            for number in range(count):
                work = list(WORKS)[number % len(WORKS)]
                at_work = _kill_one(node, programs, work, number, choose.uniform(0, _LONGEST))
                began = time.monotonic()
                after = watcher.ask(_FREED_SECONDS)
                seconds[work].append(time.monotonic() - began)
                rows[work]["killed"] += 1
                rows[work]["at work"] += at_work
                rows[work]["all freed"] += after.clean_since(before)
                left.update(after.left_since(before))
    return {
        "rows": [
            {
                "work": work,
                **{name: its[name] for name in ("killed", "at work", "all freed")},
                "freed s": statistics.median(seconds[work]) if seconds[work] else None,
            }
            for work, its in rows.items()
        ],
        "node": [held("before", before), held("after", after)],
        "left": dict(left),
        "clean": all(its["killed"] == its["at work"] == its["all freed"] for its in rows.values()),
    }


def main() -> None:
    telemetry.configure("CRITICAL", False)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(given.count, given.seed)
    if given.json:
        print(json.dumps(found))
    else:
        print(table(found["rows"]), table(found["node"]), sep="\n\n")
        left = ", ".join(f"{what} ({times} times)" for what, times in found["left"].items())
        print(f"\nmemory back to the start each time: {'yes' if found['clean'] else 'NO'}; left: {left or 'nothing'}")
    sys.exit(0 if found["clean"] else 1)


if __name__ == "__main__":
    main()
