"""Generating tokens: natively, on a node step by step, and by the node's own loop, in one run, over two links.

    python benchmarks/bench_generate.py [--json] [--only gpt2,smollm2] [--tokens 128] [--delay-ms 10] [--rounds 5]

The node is a process of its own on this machine, one thread each, reached over TCP loopback through two relays: one
forwards at once, one holds every byte back, so that a round trip takes ``--delay-ms`` longer (half each way; bytes
keep their distance in time, so the link's bandwidth stays what it was). All ways take turns. Figures are medians of
whole calls of ``generate``, from the prompt's ids on the host to all tokens on the host; the exit status says whether
all tokens were equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import queue
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
import workloads
from measure import in_turns, ratio, table
from nodes import node
from workloads import Workload

import genie

TARGET_OVER_DELAY = 0.9  # of the loop's own tokens/s without the delay
TARGET_TOKEN_BYTES = 100.0

Row: TypeAlias = dict[str, Any]


def relay(address: str, delay: float, ready: Any) -> None:
    """Forward connections to ``address``; each piece leaves ``delay`` seconds after it came."""
    host, port = address.rsplit(":", 1)
    listener = socket.create_server(("127.0.0.1", 0))
    ready.send(listener.getsockname()[1])
    while True:
        near, _ = listener.accept()
        far = socket.create_connection((host, int(port)))
        for a, b in ((near, far), (far, near)):
            for end in (a, b):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=_take, args=(a, pieces, delay), daemon=True).start()
            threading.Thread(target=_give, args=(b, pieces), daemon=True).start()


def _take(source: socket.socket, pieces: queue.SimpleQueue[tuple[float, bytes]], delay: float) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            pieces.put((time.monotonic() + delay, data))
    pieces.put((0.0, b""))


def _give(target: socket.socket, pieces: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, data = pieces.get()
            if not data:
                break
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relayed(address: str, delay: float) -> Iterator[str]:
    """The address of a relay in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=relay, args=(address, delay, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(60):
            raise RuntimeError("the relay did not start within 60 s")
        yield f"127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


class Ways:
    """One workload, generated natively, and in two ways over each link. Device 0 is the node as it is, device 1 the
    same node further away."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.ids = workload.inputs()["input_ids"]
        self.native = workload.model()
        self.options = {
            "attention_mask": torch.ones_like(self.ids),
            "max_new_tokens": workload.new_tokens,
            "min_new_tokens": workload.new_tokens,
            "do_sample": False,
            "pad_token_id": 0,
        }
        self.results: list[torch.Tensor] = []

    def natively(self) -> None:
        self.results.append(self.native.generate(self.ids, **self.options))

    def remotely(self, device: int, offload: bool) -> None:
        where = [genie.devices()[device]]
        self.results.append(genie.generate(self.native, self.ids, devices=where, offload=offload, **self.options))

    def spent(self, device: int) -> dict[str, float]:
        """What one call by the loop sends and receives. Of two in a row: every ten seconds a client also asks its node
        how long operators took."""
        spent = []
        for _ in range(2):
            before = genie.get_stats()
            self.remotely(device, True)
            after = genie.get_stats()
            spent.append({name: after[name] - before[name] for name in ("bytes_sent", "bytes_received", "round_trips")})
        return min(spent, key=lambda each: sum(each.values()))


def measure(workload: Workload, links: list[str], rounds: int) -> list[Row]:
    ways = Ways(workload)
    steps: dict[str, Callable[[], object]] = {"native": ways.natively}
    for device, link in enumerate(links):
        steps[f"steps, {link}"] = lambda device=device: ways.remotely(device, False)  # type: ignore[misc]
        steps[f"loop, {link}"] = lambda device=device: ways.remotely(device, True)  # type: ignore[misc]
    times = in_turns(steps, rounds, warm=1)
    rate = {name: workload.new_tokens / statistics.median(taken) for name, taken in times.items()}
    rows: list[Row] = []
    for device, link in enumerate(links):
        spent = ways.spent(device)
        loop = f"loop, {link}"
        rows.append(
            {
                "workload": workload.name,
                "link": link,
                "native tokens/s": rate["native"],
                "steps tokens/s": rate[f"steps, {link}"],
                "loop tokens/s": rate[loop],
                "loop / native": rate[loop] / rate["native"],
                "loop / steps": rate[loop] / rate[f"steps, {link}"],
                "of no delay": 1 / ratio(times, loop, f"loop, {links[0]}")["ratio"],
                "of no delay, pairs": 1 / ratio(times, loop, f"loop, {links[0]}")["pair_ratio_median"],
                "bytes/token": (spent["bytes_sent"] + spent["bytes_received"]) / workload.new_tokens,
                "round trips": spent["round_trips"],
            }
        )
    equal = all(torch.equal(each, ways.results[0]) for each in ways.results)
    return [{**row, "equal": equal} for row in rows]


def run(
    *,
    only: tuple[str, ...] = ("gpt2", "smollm2"),
    tokens: int = 128,
    delay_ms: float = 10.0,
    rounds: int = 5,
    device: str = "cpu",
    tiny: bool = False,
) -> dict[str, Any]:
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], Workload]] = {
        "gpt2": lambda: (
            workloads.gpt2(layers=2, width=64, prompt=8, new_tokens=tokens)
            if tiny
            else workloads.gpt2(new_tokens=tokens)
        ),
        "smollm2": lambda: workloads.smollm2(new_tokens=tokens),
    }
    rows: list[Row] = []
    links = ["no delay", f"+{delay_ms:g} ms"]
    with node(device) as address, relayed(address, 0.0) as near, relayed(address, delay_ms / 2e3) as far:
        genie.init(nodes=[near, far], unix_sockets=False)
        for name in only:
            rows += measure(makers[name](), links, rounds)
            print(f"{name}: {rows[-1]['of no delay']:.3f} of no delay", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"torch": torch.__version__, "device": device, "tokens": tokens, "rows": rows}
    result["equal"] = all(row["equal"] for row in rows)
    result["targets_missed"] = list(_missed(rows))
    return result


def _missed(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        what = f"{row['workload']}, {row['link']}"
        if row["of no delay"] < TARGET_OVER_DELAY:
            yield f"{what}: {row['of no delay']:.2f} of the speed without delay, target {TARGET_OVER_DELAY}"
        if row["bytes/token"] > TARGET_TOKEN_BYTES:
            yield f"{what}: {row['bytes/token']:.0f} bytes per token, target {TARGET_TOKEN_BYTES:.0f}"


def show(result: dict[str, Any]) -> None:
    heads = list(result["rows"][-1])
    print(f"torch {result['torch']}, node on {result['device']}, {result['tokens']} tokens\n")
    print(table([{head: row.get(head) for head in heads} for row in result["rows"]]))
    for each in result["targets_missed"]:
        print(f"target missed: {each}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="gpt2,smollm2")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--delay-ms", type=float, default=10.0, help="added to a round trip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="of the node: cpu, cuda:0")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(
        only=tuple(filter(None, options.only.split(","))),
        tokens=options.tokens,
        delay_ms=options.delay_ms,
        rounds=options.rounds,
        device=options.device,
    )
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        show(result)
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
