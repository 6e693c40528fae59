"""What being observed costs: a language model generates on nodes that count, are scraped and trace, and on one that
does none of it, in turns, in one run.

    python benchmarks/bench_observability.py [--json] [--rounds 31] [--only gpt2]

The nodes are processes of their own on this machine, one thread each. *bare* counts nothing: its meter is replaced by
one that does nothing. *metrics* counts, and is scraped once a second. *sampled* traces one look in a hundred besides,
on both sides, *traced* each one; spans go through the SDK's batching processor and are then dropped. The last table is
the smallest thing there is: one small operator whose value is looked at. Every run's tokens are compared with those of
the bare node; the exit status says whether all were equal.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import select
import statistics
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import workloads
from measure import Result, compared, in_turns, milliseconds, ratio, table

os.environ.setdefault("TQDM_DISABLE", "1")
TARGET_COST = 0.03  # of tokens per second, metrics and sampled traces together
_RATIOS = {"bare": 0.0, "metrics": 0.0, "sampled": 0.01, "traced": 1.0}
_SCRAPE_SECONDS = 1.0

_NODE = """
import sys
role = sys.argv.pop(1)
if role == "bare":
    from genie.remote.node.session import messages as node_session
    from genie.remote.node.meters import Meter

    class Still(Meter):
        __slots__ = ()
        enter = lambda self: 0
        bulk = leave = end = lambda self: None
        arrived = lambda self, size, bulk=0: None
        loaded = uses = done = lambda self, number: None
        answered = lambda self, kind, size, made, failed: None
        iterated = lambda self, size, made: None

    node_session.Meter = Still
if role in ("sampled", "traced"):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Dropped(SpanExporter):
        def export(self, spans):
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Dropped()))
    trace.set_tracer_provider(provider)
from genie.cli import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""


@contextlib.contextmanager
def node(role: str, options: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """A node of that kind; what it said when it was ready."""
    command = [sys.executable, "-c", _NODE, role, "--port", "0", "--device", "cpu", "--threads", "1", "--json"]
    command += options
    if role != "bare":
        command += ["--metrics-port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENIE_TRACE_RATIO": str(_RATIOS[role])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
    assert process.stdout is not None
    try:
        if not select.select([process.stdout], [], [], 180.0)[0]:
            raise RuntimeError("a node was not ready within 180 s")
        yield dict(json.loads(process.stdout.readline()))
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class Scraper:
    """Asks for the metrics of nodes once a second, as Prometheus does every fifteen."""

    def __init__(self, addresses: list[str]) -> None:
        self.scrapes = 0
        self.bytes = 0
        self._addresses = addresses
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(_SCRAPE_SECONDS):
            for address in self._addresses:
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                    self.bytes = len(answer.read())
                self.scrapes += 1

    def close(self) -> None:
        self._over.set()
        self._thread.join(20.0)


def sdk() -> list[int]:
    """Spans of this process go nowhere, but are counted."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    count = [0]

    class Counted(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            count[0] += len(spans)
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Counted()))
    trace.set_tracer_provider(provider)
    return count


def _steps(run: Mapping[str, Callable[[], Any]], results: dict[str, list[Any]]) -> dict[str, Callable[[], None]]:
    from genie import tracing

    def step(role: str) -> Callable[[], None]:
        def do() -> None:
            tracing.configure(_RATIOS[role])
            results[role].append(run[role]())

        return do

    return {role: step(role) for role in _RATIOS}


def run(*, rounds: int = 31, only: str = "gpt2", small: int = 300) -> dict[str, Any]:
    import genie
    import genie_pytorch  # noqa: F401  (makes the device)
    from genie import tracing

    torch.set_num_threads(1)
    spans = sdk()
    workload = workloads.by_name(only)
    native, inputs = workload.model(), workload.inputs()
    with contextlib.ExitStack() as stack:
        told = {role: stack.enter_context(node(role)) for role in _RATIOS}
        stack.callback(genie.shutdown)
        genie.init(nodes=[told[role]["address"] for role in _RATIOS], unix_sockets=True)
        generations: dict[str, Callable[[], torch.Tensor]] = {}
        looks: dict[str, Callable[[], set[float]]] = {}
        for index, role in enumerate(_RATIOS):
            tracing.configure(_RATIOS[role])  # a session is of the kind that was wanted when it was opened
            model = copy.deepcopy(native).to(f"remote_accelerator:{index}")
            generations[role] = _generation(workload, model, inputs, index)
            looks[role] = _looks(index, small)
        scraper = Scraper([told[role]["metrics_address"] for role in _RATIOS if role != "bare"])
        tokens: dict[str, list[torch.Tensor]] = {role: [] for role in _RATIOS}
        values: dict[str, list[set[float]]] = {role: [] for role in _RATIOS}
        try:
            times = in_turns(_steps(generations, tokens), rounds, warm=2)
            small_times = in_turns(_steps(looks, values), max(rounds // 3, 2), warm=1)
        finally:
            tracing.configure(0.0)
            scraper.close()
    expected = tokens["bare"][0]
    per_token = workload.new_tokens
    rows = [
        {
            "observed": role,
            "ms": milliseconds(times[role]),
            "tokens/s": per_token / statistics.median(times[role]),
            **ratio(times, role, "bare"),
            "equal": all(torch.equal(each, expected) for each in tokens[role]),
        }
        for role in _RATIOS
    ]
    smallest: list[Result] = [
        {
            "observed": role,
            "µs": statistics.median(small_times[role]) / small * 1e6,
            **ratio(small_times, role, "bare"),
            "equal": all(each == {2.0} for each in values[role]),
        }
        for role in _RATIOS
    ]
    sampled = next(row for row in rows if row["observed"] == "sampled")
    return {
        "workload": workload.name,
        "generation": rows,
        "small": smallest,
        "scrapes": scraper.scrapes,
        "metrics_bytes": scraper.bytes,
        "spans": spans[0],
        "cost": 1 - 1 / sampled["pair_ratio_median"],
        "target": TARGET_COST,
        "equal": all(row["equal"] for row in (*rows, *smallest)),
    }


def _generation(
    workload: workloads.Workload, model: Any, inputs: Mapping[str, torch.Tensor], index: int
) -> Callable[[], torch.Tensor]:
    there = {name: tensor.to(f"remote_accelerator:{index}") for name, tensor in inputs.items()}
    return lambda: workload.run(model, there).cpu()


def _looks(index: int, count: int) -> Callable[[], set[float]]:
    x = torch.ones(1).to(f"remote_accelerator:{index}")
    return lambda: {(x + 1).item() for _ in range(count)}


def show(result: dict[str, Any]) -> None:
    keep = {"pair_ratio_median": "× bare", "pair_ratio_low": "× low", "pair_ratio_high": "× high", "pairs": "pairs"}
    print(
        f"{result['workload']}; {result['scrapes']} scrapes of {result['metrics_bytes']:,} bytes, "
        f"{result['spans']:,} spans of this side\n"
    )
    for key in ("generation", "small"):
        rows = [{keep.get(name, name): value for name, value in row.items() if name != "ratio"} for row in result[key]]
        print(table(rows) + "\n")
    verdict = "within" if result["cost"] <= result["target"] else "ABOVE"
    print(
        f"metrics and sampled traces cost {result['cost']:.1%} of the tokens per second, "
        f"{verdict} {result['target']:.0%}"
    )


def main() -> int:
    return compared(__doc__ or "", run, show)


if __name__ == "__main__":
    sys.exit(main())
