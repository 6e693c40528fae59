"""What the accounting of a device's memory costs, how quickly values leave it and come back, and what generation takes
when they must.

    python benchmarks/bench_memory.py [--json] [--rounds 31] [--only steps,swap,rooms,generate] [--base DIRECTORY]

*steps*: an execution of 100 small additions, and one with 200 inputs, here and, with ``--base``, by another checkout
of Genie (built), in turns: both run in processes of their own. *swap*: values to host memory or to a file and
back, beside copies of the same bytes in memory that was used before. *rooms*: fetching into fresh memory and into
memory that was kept. *generate*: two clients of one node, processes of
their own, go on with their conversations in turns; the node's device has room for both, or for hardly more than one.
Their tokens are compared with each other and with the CPU's; the exit status says whether all were equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Result, in_turns, milliseconds, ratio, table

from genie import telemetry
from genie.bindings import Prediction, parameters
from genie.device import Device
from genie.graph import Graph, Input, Node, Ref, TensorSpec
from genie.remote import NodeServer, RemoteBackend
from genie.remote.client import conversation
from genie.remote.memory import room
from genie.schedule import Scheduler
from genie.testing import Caller
from genie_backend_local import LocalBackend, LocalSession, native
from genie_backend_tcp import TcpTransport

_PER_CALL = 50  # executions in one time
_GIB = 1 << 30


class Peer:
    """A process that does as it is told, a line at a time."""

    def __init__(self, *arguments: str, base: str = "") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if base:
            packages = [str(path) for path in sorted(Path(base).glob("genie-*/src"))]
            environment["PYTHONPATH"] = os.pathsep.join([*packages, str(Path(__file__).parent)])
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, what: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60.0)


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.strip()


# --- steps ------------------------------------------------------------------------------------------


def _graphs() -> dict[str, Graph]:
    spec = TensorSpec((16,), "float32")
    chain = [Node(n, "aten::add", "Tensor", (Ref(n - 1 + 2 if n else 0), Ref(1), 1), (2 + n,)) for n in range(100)]
    wide = [Node(0, "aten::add", "Tensor", (Ref(0), Ref(1), 1), (200,))]
    return {
        "100 additions": Graph((spec,) * 102, tuple(Input(n) for n in range(2)), tuple(chain), (101,)),
        "200 inputs": Graph((spec,) * 201, tuple(Input(n) for n in range(200)), tuple(wide), (200,)),
    }


def steps_worker() -> None:
    """Runs the graph a line names; answers with the last result's bytes."""
    backend = LocalBackend()
    session = backend.connect(backend.devices()[-1])
    for handle in range(1, 201):
        session.upload(handle, TensorSpec((16,), "float32"), torch.full((16,), 1.0 / handle).numpy().data.cast("B"))
    runs = {}
    for name, graph in _graphs().items():
        plan = session.load(Scheduler(devices=[session.device]).schedule(graph))
        runs[name] = (plan, Prediction(len(graph.inputs), parameters(graph)), len(graph.inputs), parameters(graph))
    handle = 1000
    for name in _lines():
        plan, prediction, inputs, own = runs[name]
        start = time.perf_counter()
        for _ in range(_PER_CALL):
            session.free([handle])
            handle += 1
            session.execute(plan, prediction.encode([handle, *range(1, inputs + 1), *own]))
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, bytes(session.fetch(handle).data).hex()]), flush=True)


def bench_steps(rounds: int, base: str) -> list[Result]:
    peers = {"here": Peer("--worker", "steps")}
    if base:
        peers["base"] = Peer("--worker", "steps", base=base)
    rows: list[Result] = []
    try:
        for name in _graphs():
            times: dict[str, list[float]] = {who: [] for who in peers}
            results = set()
            for number in range(rounds + 2):
                for who in sorted(peers, reverse=number % 2 == 1):
                    seconds, result = peers[who].ask(name)
                    results.add(result)
                    if number >= 2:
                        times[who].append(seconds / _PER_CALL)
            row = {"execution": name, "µs": milliseconds(times["here"]) * 1e3, "equal": len(results) == 1}
            if base:
                compared = ratio(times, "here", "base")
                row |= {"base µs": milliseconds(times["base"]) * 1e3, "ratio": compared["pair_ratio_median"]}
                row |= {"low": compared["pair_ratio_low"], "high": compared["pair_ratio_high"]}
            rows.append(row)
    finally:
        for peer in peers.values():
            peer.close()
    return rows


# --- swap -------------------------------------------------------------------------------------------


def bench_swap(rounds: int, megabytes: int = 256, directory: str = "") -> list[Result]:
    size, count = (megabytes << 20) // 16, 16
    device = LocalBackend().devices()[-1]
    data = [os.urandom(1 << 20) * (size >> 20) for _ in range(2)]
    kept = [bytearray(size) for _ in range(count)]
    rows = []
    for where in ("", directory):
        module = native.load()
        budget = module.Budget(2 * size * count, module.Swap(2 * size * count, where))
        session = LocalSession(device, module.Session("cpu", "device", 0, budget))
        for handle in range(1, count + 1):
            session.upload(handle, TensorSpec((size,), "uint8"), data[handle % 2])

        def copy() -> None:
            for number, each in enumerate(kept):
                each[:] = data[(number + 1) % 2]

        def out(budget: Any = budget) -> None:
            assert budget.reclaim(size * count) == size * count

        def back(session: LocalSession = session) -> None:
            for handle in range(1, count + 1):
                session.share(handle)

        times = in_turns({"copy": copy}, rounds)
        times |= {"out": [], "back": []}
        for _ in range(rounds):  # one after the other: what is out can come back
            for name, step in (("out", out), ("back", back)):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        per_gb = 1e9 / (size * count)
        equal = all(bytes(session.fetch(handle).data) == data[handle % 2] for handle in range(1, count + 1))
        rows += [
            {
                "to": "a file" if where else "host memory",
                "way": way,
                "ms/GB": milliseconds(times[way]) * per_gb,
                "copying ms/GB": milliseconds(times["copy"]) * per_gb,
                "ratio": ratio(times, way, "copy")["pair_ratio_median"],
                "equal": equal,
            }
            for way in ("out", "back")
        ]
        session.close()
    return rows


# --- rooms ------------------------------------------------------------------------------------------


def bench_rooms(rounds: int, megabytes: tuple[int, ...] = (8, 64)) -> list[Result]:
    """A client fetches into fresh memory, as it does, and into memory it has kept."""
    rows = []
    with _node(_GIB, 0) as (server, _):
        backend = RemoteBackend("tcp", TcpTransport(), (server.address,), timeout=60.0)
        caller = Caller(backend.connect(backend.devices()[0]))
        for each in megabytes:
            handle, data = caller.handles(), os.urandom(1 << 20) * each
            caller.session.upload(handle, TensorSpec((len(data),), "uint8"), data)
            kept = room(len(data))
            kept[:] = bytes(len(data))
            ways: dict[str, Callable[[int], memoryview]] = {"fresh": room, "kept": lambda size, kept=kept: kept[:size]}

            def fetch(way: str, ways: Any = ways, handle: int = handle, data: bytes = data) -> bool:
                conversation.room = ways[way]
                return caller.session.fetch(handle).data.nbytes == len(data)

            try:
                equal = all(fetch(way) and bytes(caller.session.fetch(handle).data) == data for way in ways)
                times = in_turns({way: partial(fetch, way) for way in ways}, rounds)
            finally:
                conversation.room = room
            compared = ratio(times, "fresh", "kept")
            row = {"MB": each, "fresh ms": milliseconds(times["fresh"]), "kept ms": milliseconds(times["kept"])}
            row |= {"ratio": compared["pair_ratio_median"], "low": compared["pair_ratio_low"]}
            rows.append({**row, "high": compared["pair_ratio_high"], "equal": equal})
        backend.close()
    return rows


# --- generation -------------------------------------------------------------------------------------


class Talk:
    """A conversation with a model: its cache stays where the model is."""

    def __init__(self, device: str, tiny: bool) -> None:
        from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        layers, width, batch, prompt = (2, 64, 8, 512) if tiny else (4, 256, 4, 256)
        config = GPT2Config(
            n_layer=layers,
            n_embd=width,
            n_head=width // 64,
            vocab_size=8192,
            n_positions=1024,
            bos_token_id=0,
            eos_token_id=0,
        )
        self._model = GPT2LMHeadModel(config).eval().to(device)
        self._device = device
        self._cache = DynamicCache()
        self._ids = torch.randint(0, 8192, (batch, prompt), generator=torch.Generator().manual_seed(1)).to(device)

    def go_on(self, tokens: int) -> list[list[int]]:
        made = []
        with torch.no_grad():
            for _ in range(tokens):
                out = self._model(self._ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
                self._ids = out.logits[:, -1:].argmax(-1)
                made.append(self._ids.cpu()[:, 0].tolist())
        return made


def generate_worker(tiny: bool) -> None:
    import genie

    genie.init()
    talk = Talk("remote_accelerator:0", tiny)
    for line in _lines():
        start = time.perf_counter()
        made = talk.go_on(int(line))
        print(json.dumps([time.perf_counter() - start, made]), flush=True)


@contextlib.contextmanager
def _node(memory: int, swap: int) -> Iterator[tuple[NodeServer, Any]]:
    telemetry.configure("WARNING")
    local = LocalBackend(threads=1, swap_bytes=swap)
    host = local.stand_in(
        local.devices()[-1], Device(id="gpu:0", type="GPU", memory_gb=memory / _GIB, compute_tflops=1)
    )
    with NodeServer(host, TcpTransport(), "127.0.0.1:0", local=False, lease_seconds=0) as server:
        yield server, host
    local.close()


def _conversations(rounds: int, tiny: bool, memory: int, swap: int) -> tuple[list[float], list[Any], dict[str, int]]:
    """Seconds of each turn after the first, the tokens of both clients, and what the device says."""
    with _node(memory, swap) as (server, host):
        environment = {"GENIE_NODES": server.address}
        os.environ |= environment
        peers = [Peer("--worker", "generate", *(["--tiny"] if tiny else [])) for _ in range(2)]
        try:
            tokens: list[Any] = [[], []]
            seconds = []
            for number in range(rounds + 1):
                for who, peer in enumerate(peers):
                    took, made = peer.ask("4")
                    tokens[who] += made
                    if number:
                        seconds.append(took)
            return seconds, tokens, dict(host.memory()["gpu:0"])
        finally:
            for name in environment:
                del os.environ[name]
            for peer in peers:
                peer.close()


def bench_generate(rounds: int, tiny: bool) -> list[Result]:
    talk = Talk("cpu", tiny)
    expected = [each for _ in range(rounds + 1) for each in talk.go_on(4)]
    roomy, alike, told = _conversations(rounds, tiny, _GIB, 0)
    rows: list[Result] = [_row("room for both", roomy, alike, expected, told)]
    short, alike, told = _conversations(rounds, tiny, int(told["peak"] * 0.75), _GIB)
    rows.append(_row("three quarters of that", short, alike, expected, told))
    return rows


def _row(name: str, seconds: list[float], tokens: list[Any], expected: list[Any], told: dict[str, int]) -> Result:
    return {
        "device": name,
        "memory MB": told["limit"] / 1e6,
        "a turn of 4 tokens, ms": milliseconds(seconds),
        "out MB": (told["swapped_out_bytes"] + told["evicted_bytes"]) / 1e6,
        "back MB": (told["swapped_in_bytes"] + told["restored_bytes"]) / 1e6,
        "equal": tokens == [expected, expected],
    }


def run(
    rounds: int = 31,
    only: tuple[str, ...] = ("steps", "swap", "rooms", "generate"),
    base: str = "",
    megabytes: int = 256,
    tiny: bool = False,
) -> Result:
    told: Result = {}
    if "steps" in only:
        told["steps"] = bench_steps(rounds, base)
    if "swap" in only:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
            told["swap"] = bench_swap(max(rounds // 5, 2), megabytes, directory)
    if "rooms" in only:
        told["rooms"] = bench_rooms(rounds)
    if "generate" in only:
        told["generate"] = bench_generate(max(rounds // 3, 2), tiny)
    told["equal"] = all(row["equal"] for rows in told.values() for row in rows)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--only", default="steps,swap,rooms,generate")
    parser.add_argument("--base", default="", help="another checkout, built, to compare with")
    parser.add_argument("--worker", choices=("steps", "generate"), help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        steps_worker() if options.worker == "steps" else generate_worker(options.tiny)
        return 0
    told = run(options.rounds, tuple(options.only.split(",")), options.base, tiny=options.tiny)
    if options.json:
        print(json.dumps(told))
    else:
        for name in ("steps", "swap", "rooms", "generate"):
            if name in told:
                print(table(told[name]), end="\n\n")
    return 0 if told["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
