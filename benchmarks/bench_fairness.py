"""Whether tenants of one node have of its device what their weights say, and what turns cost who is alone, in one run.

    python benchmarks/bench_fairness.py [--json] [--seconds 30] [--clients 3] [--weights 1,2,4] [--tokens 24] [--core 0]
                                        [--rounds 41] [--only shares,priorities,alone]

**shares**: a node, a process of its own pinned to one core, with a tenant for each weight. Each tenant has so many
clients, processes with models of their own (equal ones would be computed together), which generate without a pause.
``share`` is the tenant's part of the device time of all, as the node counted it between two looks while all clients
were at work; ``due`` is its part of the weights; ``of due`` the one over the other. All tokens are compared with those
made natively.

**priorities**: the same, with equal weights and a class of priority for each tenant.

**alone**: an execution of one small operator on the local backend, in this process, by a session that takes turns and
by one that does not, one after the other: the thread's own time, which other programs do not lengthen. ``turn ns`` is
the median of the differences of neighbours.

The exit status says whether all tokens were the native ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import torch
import workloads
from measure import table
from nodes import node
from workloads import Workload

import genie
from genie.bindings import Prediction
from genie.config import resolve
from genie.plugins import registry
from genie.remote.client.access import Access
from genie.remote.seen.observed import NodeView
from genie.schedule import Scheduler
from genie.security import Scope, tokens
from genie.tenancy.quotas import SHARES, Priority
from genie.tenancy.seats import Seat
from genie.testing import Caller
from genie.testing.plans import single, spec
from genie_backend_local import LocalBackend, LocalSession

PARTS = ("shares", "priorities", "alone")
OFF = 0.10  # a share may be so much off what is due
TURN_NS = 1000.0
_DEADLINE = 600.0
_EXECUTIONS = 2000  # of a round

Row: TypeAlias = dict[str, Any]


def model_of(workload: Workload, number: int) -> Any:
    """Weights that nobody else has."""
    model = workload.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * number)
    return model


def options(workload: Workload, ids: torch.Tensor) -> dict[str, Any]:
    length = {"max_new_tokens": workload.new_tokens, "min_new_tokens": workload.new_tokens}
    return {"attention_mask": torch.ones_like(ids), **length, "do_sample": False, "pad_token_id": 0}


def client(commands: Connection, sizes: Mapping[str, int], number: int, address: str, token: str) -> None:
    """Generate until told to stop; tell how often, and whether the tokens were always the native ones."""
    torch.set_num_threads(1)
    workload = workloads.gpt2(**sizes)
    model, ids = model_of(workload, number), workload.inputs()["input_ids"]
    with torch.no_grad():
        native = model.generate(ids, **options(workload, ids))
    genie.init(nodes=[address], token_file=token, timeout=_DEADLINE)
    where = genie.devices()[0]

    def once() -> bool:
        return torch.equal(genie.generate(model, ids, devices=[where], **options(workload, ids)), native)

    equal = once()
    commands.send("ready")
    commands.recv()
    done = 0
    while not commands.poll():
        equal = once() and equal
        done += 1
    commands.send((done, equal))
    genie.shutdown()


def look(address: str, token: str) -> NodeView:
    settings = resolve({"token_file": token}).settings
    transport = registry.make("transport", "tcp", settings)
    with Access.from_settings(settings, transport).control(transport, address, _DEADLINE) as control:
        return control.view()


def shares(
    tenants: Mapping[str, Mapping[str, Any]],
    due: Mapping[str, float],
    sizes: Mapping[str, int],
    clients: int,
    seconds: float,
    core: int,
) -> list[Row]:
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "tenants.yaml").write_text(json.dumps({"tenants": tenants}))
        known = directory / "tokens.json"
        os.umask(0o077)
        (directory / "boss").write_text(tokens.add(known, "boss", (Scope.USE, Scope.ADMIN)))
        for name in tenants:
            (directory / name).write_text(tokens.add(known, name))
        its = ("--tokens", str(known), "--tenants", str(directory / "tenants.yaml"))
        address = stack.enter_context(node("cpu", 1, its, (core,)))
        running: list[tuple[str, Connection]] = []
        for number, name in enumerate(name for name in tenants for _ in range(clients)):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=client, args=(theirs, sizes, number, address, str(directory / name)), daemon=True
            )
            process.start()
            stack.callback(process.kill)
            running.append((name, ours))
        for _, end in running:
            _answer(end)
        for _, end in running:
            end.send("go")
        time.sleep(min(2.0, seconds / 4))  # until all are at work
        before = look(address, str(directory / "boss"))
        time.sleep(seconds)
        after = look(address, str(directory / "boss"))
        for _, end in running:
            end.send("stop")
        answers = [(name, *_answer(end)) for name, end in running]
    had = {each.tenant: each.device_seconds for each in after.reception.accounts}
    for each in before.reception.accounts:
        had[each.tenant] -= each.device_seconds
    total, weights = sum(had[name] for name in tenants), sum(due.values())
    return [
        {
            "tenant": name,
            "weight": due[name],
            "device s": had[name],
            "share": had[name] / total,
            "due": due[name] / weights,
            "of due": had[name] / total / (due[name] / weights),
            "generations": sum(done for whose, done, _ in answers if whose == name),
            "equal": all(equal for whose, _, equal in answers if whose == name),
        }
        for name in tenants
    ]


def _answer(end: Connection) -> Any:
    if not end.poll(_DEADLINE):
        raise RuntimeError(f"a client did not answer within {_DEADLINE:g} s")
    return end.recv()


def alone(rounds: int, executions: int = _EXECUTIONS) -> Row:
    backend = LocalBackend(1, batching=False)
    device = backend.devices()[-1]
    seat = Seat(tenant="alone", label="alone", memory_bytes=1 << 30)
    graph = single("aten::neg", [spec(4)], spec(4))
    steps = {}
    for name, session in (("none", backend.connect(device)), ("turns", backend.connect_as(device, seat))):
        session.profile(0.0)
        x = Caller(session).put([1.0] * 4)
        plan = session.load(Scheduler(devices=(device,)).schedule(graph))
        prediction, handles = Prediction(1, []), itertools.count(x + 1)

        def work(
            session: LocalSession = session,
            plan: int = plan,
            x: int = x,
            prediction: Prediction = prediction,
            handles: Iterator[int] = handles,
        ) -> None:
            for _ in range(executions):
                made = next(handles)
                session.execute(plan, prediction.encode([made, x]))
                session.free([made])

        steps[name] = work
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in sorted(steps, reverse=number % 2 == 1):
            start = time.thread_time_ns()
            steps[name]()
            if number:  # the first one warms up
                spent[name].append((time.thread_time_ns() - start) / executions)
    backend.close()
    pairs = [a - b for a, b in zip(spent["turns"], spent["none"], strict=True)]
    none, turns = (statistics.median(spent[name]) for name in ("none", "turns"))
    return {"execution ns": none, "with turns ns": turns, "turn ns": statistics.median(pairs)}


def run(
    *,
    weights: Sequence[float] = (1, 2, 4),
    clients: int = 3,
    seconds: float = 30.0,
    tokens: int = 24,
    core: int = 0,
    rounds: int = 41,
    only: Sequence[str] = PARTS,
    tiny: bool = False,
) -> dict[str, Any]:
    sizes = {"new_tokens": tokens, **({"layers": 2, "width": 64, "prompt": 8} if tiny else {})}
    named = {f"weight-{weight:g}": weight for weight in weights}
    by_weight = {name: {"weight": weight} for name, weight in named.items()}
    result: dict[str, Any] = {"torch": torch.__version__, "cores": os.cpu_count(), "shares": [], "priorities": []}
    result["alone"] = [alone(rounds)] if "alone" in only else []
    if "shares" in only:
        result["shares"] = shares(by_weight, named, sizes, clients, seconds, core)
    if "priorities" in only:
        classes = {each.value: {"priority": each.value} for each in Priority}
        due = {each.value: SHARES[each] for each in Priority}
        result["priorities"] = shares(classes, due, sizes, clients, seconds, core)
    rows = [*result["shares"], *result["priorities"]]
    result["equal"] = all(row["equal"] for row in rows)
    result["targets_missed"] = [
        f"{row['tenant']} had {row['of due']:.2f} of what was due"
        for row in result["shares"]
        if abs(row["of due"] - 1) > OFF
    ]
    result["targets_missed"] += [
        f"a turn takes {row['turn ns']:.0f} ns" for row in result["alone"] if row["turn ns"] > TURN_NS
    ]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=3, help="of each tenant")
    parser.add_argument("--weights", default="1,2,4")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--core", type=int, default=0, help="the node runs on this one")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(
        weights=tuple(map(float, options.weights.split(","))),
        clients=options.clients,
        seconds=options.seconds,
        tokens=options.tokens,
        core=options.core,
        rounds=options.rounds,
        only=tuple(options.only.split(",")),
    )
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        for name in filter(result.get, PARTS):
            print(table(result[name]), end="\n\n")
        for each in result["targets_missed"]:
            print(f"target missed: {each}")
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
