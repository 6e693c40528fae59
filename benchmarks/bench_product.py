"""What it costs that a node is guarded, shared, watched and survived: a language model generates on a plain node and on
ones that have all of it, in turns, in one run.

    python benchmarks/bench_product.py [--json] [--rounds 31] [--only gpt2]

Nodes and clients are processes of their own on this machine, one thread each, over TCP. *plain* is a node that does not
even count, and a client that keeps nothing. *product* has tokens, tenants with quotas, metrics that are scraped once a
second while it is its turn, one look in a hundred traced on both sides (spans go through the SDK's batching processor
and are then dropped), and a client with recovery. *product, TLS* is the same over mutual TLS. Lineage is what recovery
keeps in the client's memory, by its own count: before the first token (the calls that brought the model), and for each
token. Every run's tokens are compared; the exit status says whether all were equal.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import workloads
from bench_observability import node, sdk
from measure import Result, compared, in_turns, milliseconds, ratio, table

TARGET_COST = 0.03  # of tokens per second, all but TLS
_ROLES = ("plain", "product", "product, TLS")
_SCRAPE_SECONDS = 1.0
_ANSWER_SECONDS = 300.0
_DAYS = 30  # certificates; those that expire sooner are warned of
_TENANT = "alice"
_TENANTS = f"tenants:\n  {_TENANT}: {{memory: 8GiB, sessions: 8, in_flight: 64, weight: 2}}\n"


class Scraper:
    """Asks one node for its metrics once a second, as long as it is its turn."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.bytes = 0
        self.address = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(_SCRAPE_SECONDS):
            if address := self.address:
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                    self.bytes = len(answer.read())
                self.scrapes += 1

    def close(self) -> None:
        self._over.set()
        self._thread.join(20.0)


def _client(line: Connection, settings: Mapping[str, Any], only: str) -> None:
    """A program of its own: it generates when it is told to, and says what came of it."""
    import genie
    import genie_pytorch  # noqa: F401  (makes the device)

    torch.set_num_threads(1)
    spans = sdk() if settings.get("trace_ratio") else [0]
    workload = workloads.by_name(only)
    genie.init(**settings)
    model = workload.model().to("remote_accelerator:0")
    inputs = {name: tensor.to("remote_accelerator:0") for name, tensor in workload.inputs().items()}
    torch.accelerator.synchronize(0)
    line.send(_kept(genie.get_stats(), spans))
    try:
        while line.recv():
            tokens = workload.run(model, inputs).cpu().tolist()
            line.send({"tokens": tokens, **_kept(genie.get_stats(), spans)})
    finally:
        genie.shutdown()


def _kept(stats: Mapping[str, Any], spans: list[int]) -> dict[str, int]:
    names = ("recovery_log_bytes", "recovery_log_entries", "recovery_disk_bytes", "checkpoints", "recoveries")
    return {"spans": spans[0], **{name: int(stats.get(name, 0)) for name in names}}


@contextlib.contextmanager
def client(settings: Mapping[str, Any], only: str) -> Iterator[Connection]:
    """The line to a client in a process of its own, which has brought its model."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_client, args=(theirs, settings, only))
    process.start()
    theirs.close()
    try:
        yield ours
        ours.send(False)
        process.join(30.0)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()


def _heard(line: Connection) -> dict[str, Any]:
    if not line.poll(_ANSWER_SECONDS):
        raise RuntimeError(f"a client did not answer within {_ANSWER_SECONDS:g} s")
    return dict(line.recv())


def _secured(directory: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, Any]]]:
    """By role: a node's options, and a client's settings."""
    from genie.security import certs, tokens

    (directory / "token").write_text(tokens.add(directory / "tokens.json", _TENANT))
    (directory / "tenants.yaml").write_text(_TENANTS)
    authority = certs.create_authority(directory / "ca", "benchmark").cert
    of_node = certs.issue_node(directory / "ca", ["127.0.0.1", "localhost"], _DAYS)
    of_client = certs.issue_client(directory / "ca", _TENANT, _DAYS)
    (directory / "token").chmod(0o600)
    known = ("--tokens", str(directory / "tokens.json"), "--tenants", str(directory / "tenants.yaml"))
    secret = ("--cert", str(of_node.cert), "--key", str(of_node.key), "--client-ca", str(authority))
    settings = {"token_file": str(directory / "token"), "recovery": True, "trace_ratio": 0.01}
    files = {"ca": str(authority), "cert": str(of_client.cert), "key": str(of_client.key)}
    return (
        {"plain": (), "product": known, "product, TLS": (*known, *secret)},
        {
            "plain": {},
            "product": {**settings, "recovery_dir": str(directory / "kept")},
            "product, TLS": {**settings, **files, "recovery_dir": str(directory / "kept, TLS")},
        },
    )


def run(*, rounds: int = 31, only: str = "gpt2") -> dict[str, Any]:
    answers: dict[str, list[dict[str, Any]]] = {role: [] for role in _ROLES}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options, settings = _secured(directory)
        told = {role: stack.enter_context(node(_counts(role), options[role])) for role in _ROLES}
        lines = {
            role: stack.enter_context(
                client({"nodes": (told[role]["address"],), "unix_sockets": False, **settings[role]}, only)
            )
            for role in _ROLES
        }
        before = {role: _heard(line) for role, line in lines.items()}
        scraper = Scraper()

        def step(role: str) -> Callable[[], None]:
            def do() -> None:
                scraper.address = told[role].get("metrics_address", "")
                lines[role].send(True)
                answers[role].append(_heard(lines[role]))

            return do

        try:
            times = in_turns({role: step(role) for role in _ROLES}, rounds, warm=2)
        finally:
            scraper.close()
    expected = answers["plain"][0]["tokens"]
    per_run = workloads.by_name(only).new_tokens
    rows: list[Result] = [
        {
            "node": role,
            "ms": milliseconds(times[role]),
            "tokens/s": per_run / statistics.median(times[role]),
            **ratio(times, role, "plain"),
            "equal": all(each["tokens"] == expected for each in answers[role]),
        }
        for role in _ROLES
    ]
    first, second = answers["product"][:2]
    last = answers["product"][-1]
    return {
        "workload": only,
        "generation": rows,
        "lineage": {
            "session_bytes": before["product"]["recovery_log_bytes"],
            "session_disk_bytes": before["product"]["recovery_disk_bytes"],
            # The second run's: the first one also brings its plans.
            "bytes_per_token": (second["recovery_log_bytes"] - first["recovery_log_bytes"]) / per_run,
            "entries_per_token": (second["recovery_log_entries"] - first["recovery_log_entries"]) / per_run,
            "checkpoints": last["checkpoints"],
            "recoveries": sum(answers[role][-1]["recoveries"] for role in _ROLES),
        },
        "scrapes": scraper.scrapes,
        "metrics_bytes": scraper.bytes,
        "spans": last["spans"],
        "cost": 1 - 1 / rows[1]["pair_ratio_median"],
        "cost_tls": 1 - 1 / rows[2]["pair_ratio_median"],
        "target": TARGET_COST,
        "equal": all(row["equal"] for row in rows),
    }


def _counts(role: str) -> str:
    return "bare" if role == "plain" else "sampled"


def show(result: dict[str, Any]) -> None:
    keep = {"pair_ratio_median": "× plain", "pair_ratio_low": "× low", "pair_ratio_high": "× high", "pairs": "pairs"}
    rows = [
        {keep.get(name, name): value for name, value in row.items() if name != "ratio"} for row in result["generation"]
    ]
    lineage = result["lineage"]
    print(f"{result['workload']}; {result['scrapes']} scrapes of {result['metrics_bytes']:,} bytes, ", end="")
    print(f"{result['spans']:,} spans of one client, {lineage['checkpoints']} checkpoints\n\n{table(rows)}\n")
    disk = lineage["session_disk_bytes"] / (1 << 20)
    print(
        f"lineage: {lineage['bytes_per_token']:,.0f} bytes of memory per token "
        f"({lineage['entries_per_token']:.1f} calls), {lineage['session_bytes']:,} per session "
        f"and {disk:,.1f} MiB on disk"
    )
    verdict = "within" if result["cost"] <= result["target"] else "ABOVE"
    print(
        f"all but TLS costs {result['cost']:.1%} of the tokens per second, {verdict} {result['target']:.0%}; ", end=""
    )
    print(f"with TLS {result['cost_tls']:.1%}")


def main() -> int:
    return compared(__doc__ or "", run, show)


if __name__ == "__main__":
    sys.exit(main())
