"""Clients that decode with one model at the same time, on nodes with and without batching, in one run.

    python benchmarks/bench_batching.py [--json] [--only gpt2,smollm2] [--clients 1,2,4,8] [--tokens 96] [--rounds 3]
                                        [--threads 1] [--cores 0]

There are three nodes, processes of their own on this machine: one that does not batch (``off``), one that batches
without changing a bit (``exact``, the default), and one that multiplies all clients' rows at once (``stacked``). The
clients are processes, too, each with a session on each node and a prompt of its own, of its own length, greedy, by the
node's loop. All numbers of clients and all nodes take turns.

Figures are medians over the rounds: tokens per second of all clients from the first's start to the last's end, prompts
included; milliseconds between a client's tokens (the median client's median); and of the node's counters the products
that were done for several clients, and how many were together on average. ``difference`` is how far stacked products
are from products alone, of the largest element. ``--cores`` pins the nodes, ``--threads`` are a node's for one batch.
The exit status says whether all tokens were the native ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch
import workloads
from measure import table
from nodes import node
from workloads import Workload

import genie

WAYS = {"off": ("--no-batching",), "exact": (), "stacked": ("--no-batching-exact",)}
TARGET = 1.5  # of the tokens/s without batching, for the clients
TARGET_CLIENTS = 4
TARGET_ALONE = 0.97  # a client that has the node to itself
_DEADLINE = 600.0

Row: TypeAlias = dict[str, Any]


def prompt(workload: Workload, client: int) -> torch.Tensor:
    """Another length and other tokens for each client."""
    ids = workload.inputs()["input_ids"]
    return torch.roll(ids, client, 1)[:, : max(ids.shape[1] - 3 * client, 2)]


def options(workload: Workload, ids: torch.Tensor) -> dict[str, Any]:
    length = {"max_new_tokens": workload.new_tokens, "min_new_tokens": workload.new_tokens}
    return {"attention_mask": torch.ones_like(ids), **length, "do_sample": False, "pad_token_id": 0}


def serve_client(commands: Connection, model: Any, workload: Workload, number: int, nodes: list[str]) -> None:
    """Generate whenever told, and tell the tokens, when each came, and what the node counted."""
    torch.set_num_threads(1)
    genie.init(nodes=nodes, timeout=_DEADLINE)
    ids = prompt(workload, number)
    while (way := commands.recv()) is not None:
        where = genie.devices()[way]
        before = genie.get_stats()
        tokens, came = [], []
        for each in genie.generate(model, ids, devices=[where], stream=True, **options(workload, ids)):
            tokens.append(each)
            came.append(time.monotonic())
        after = genie.get_stats()
        names = ("batched_executions", "batched_members", "batched_steps", "loop_iterations")
        spent = {name: after.get(name, 0) - before.get(name, 0) for name in names}
        commands.send((torch.stack(tokens, 1).tolist(), came, spent))
    genie.shutdown()


class Clients:
    """Processes that share the model's memory, as they do its weights on a node."""

    def __init__(self, workload: Workload, model: Any, nodes: list[str], count: int) -> None:
        context = multiprocessing.get_context("fork")
        self._ends: list[Connection] = []
        self._processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve_client, args=(theirs, model, workload, number, nodes), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, way: int, count: int) -> tuple[float, list[Any]]:
        """Seconds until the last was done, and what each told."""
        start = time.monotonic()
        for end in self._ends[:count]:
            end.send(way)
        answers = [self._answer(end) for end in self._ends[:count]]
        return max(came[-1] for _, came, _ in answers) - start, answers

    def _answer(self, end: Connection) -> Any:
        if not end.poll(_DEADLINE):
            raise RuntimeError(f"a client did not answer within {_DEADLINE:g} s")
        return end.recv()

    def close(self) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join(30)
            process.kill()


def measure(workload: Workload, counts: Sequence[int], rounds: int, threads: int, cores: Sequence[int]) -> list[Row]:
    model = workload.model()
    torch.set_num_threads(1)
    native = []
    for number in range(max(counts)):
        ids = prompt(workload, number)
        with torch.no_grad():
            native.append(model.generate(ids, **options(workload, ids))[:, ids.shape[1] :].tolist())
    taken: dict[tuple[int, str], list[Any]] = {(count, way): [] for count in counts for way in WAYS}
    with ExitStack() as stack:
        addresses = [stack.enter_context(node("cpu", threads, its, cores)) for its in WAYS.values()]
        clients = Clients(workload, model, addresses, max(counts))
        stack.callback(clients.close)
        for number in range(len(WAYS)):  # weights, plans
            clients.run(number, 1)
            clients.run(number, max(counts))
        for turn in range(rounds):
            for count in counts:
                for place in range(len(WAYS)):
                    number = (place + turn) % len(WAYS)
                    taken[count, list(WAYS)[number]].append(clients.run(number, count))
    rows: list[Row] = []
    difference = stacked_difference(model)
    for count in counts:
        off = statistics.median(seconds for seconds, _ in taken[count, "off"])
        for way in WAYS:
            rows.append(
                {
                    "workload": workload.name,
                    "clients": count,
                    "batching": way,
                    **_figures(taken[count, way], workload, off),
                    "difference": difference if way == "stacked" and count > 1 else 0.0,
                    "equal": all(
                        tokens == native[client]
                        for _, answers in taken[count, way]
                        for client, (tokens, _, _) in enumerate(answers)
                    ),
                }
            )
    return rows


def stacked_difference(model: Any, rows: int = 4) -> float:
    """How far a product of several rows is from the products of each, at most over the model's weights: of the
    largest element of the result. What batching that is not exact adds to a product's rounding."""
    generator = torch.Generator().manual_seed(2)
    most = 0.0
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                x = torch.randn(rows, weight.shape[1], generator=generator)
                each = torch.cat([torch.nn.functional.linear(row[None], weight) for row in x])
                difference = (torch.nn.functional.linear(x, weight) - each).abs().max() / each.abs().max()
                most = max(most, float(difference))
    return most


def _figures(taken: list[tuple[float, list[Any]]], workload: Workload, off: float) -> Row:
    seconds = statistics.median(seconds for seconds, _ in taken)
    answers = [answer for _, each in taken for answer in each]
    gaps = [statistics.median(b - a for a, b in itertools.pairwise(came)) for _, came, _ in answers]
    spent = {name: sum(answer[2][name] for answer in answers) for name in answers[0][2]}
    tokens = workload.new_tokens * len(taken[0][1])
    return {
        "tokens/s": tokens / seconds,
        "of off": off / seconds,
        "ms/token": 1e3 * statistics.median(gaps),
        "iterations": spent["loop_iterations"],
        "batched": spent["batched_executions"],
        "products": spent["batched_steps"],
        "together": spent["batched_members"] / max(spent["batched_executions"], 1),
    }


def run(
    *,
    only: Sequence[str] = ("gpt2", "smollm2"),
    counts: Sequence[int] = (1, 2, 4, 8),
    tokens: int = 96,
    rounds: int = 3,
    threads: int = 1,
    cores: Sequence[int] = (),
    tiny: bool = False,
) -> dict[str, Any]:
    rows: list[Row] = []
    for name in only:
        if name == "smollm2":
            workload = workloads.smollm2(new_tokens=tokens)
        elif tiny:
            workload = workloads.gpt2(layers=2, width=64, prompt=8, new_tokens=tokens)
        else:
            workload = workloads.gpt2(new_tokens=tokens)
        rows += measure(workload, counts, rounds, threads, cores)
        print(f"{name} done", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"torch": torch.__version__, "threads": threads, "cores": list(cores), "rows": rows}
    result["equal"] = all(row["equal"] for row in rows)
    result["targets_missed"] = list(_missed(rows))
    return result


def _missed(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        what = f"{row['workload']}, {row['clients']} clients, {row['batching']}: {row['of off']:.2f} of unbatched"
        if row["clients"] == TARGET_CLIENTS and row["batching"] != "off" and row["of off"] < TARGET:
            yield f"{what}, target {TARGET}"
        if row["clients"] == 1 and row["of off"] < TARGET_ALONE:
            yield f"{what}, target {TARGET_ALONE}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="gpt2,smollm2")
    parser.add_argument("--clients", default="1,2,4,8")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", default="", help="the nodes run on these alone, e.g. 0 or 0,1")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(
        only=tuple(filter(None, options.only.split(","))),
        counts=tuple(map(int, options.clients.split(","))),
        tokens=options.tokens,
        rounds=options.rounds,
        threads=options.threads,
        cores=tuple(map(int, filter(None, options.cores.split(",")))),
    )
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        where = f"{options.threads} threads, cores {options.cores or 'all'}"
        print(f"torch {result['torch']}, {options.tokens} tokens, {where}\n")
        print(table(result["rows"]))
        for each in result["targets_missed"]:
            print(f"target missed: {each}")
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
