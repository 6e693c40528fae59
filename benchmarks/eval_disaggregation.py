"""What meaning is worth: programs on a node behind a slow link, by how much the system between knows.

    python benchmarks/eval_disaggregation.py [--quick] [--json] [--only gpt2,cnn] [--profile 1G/1ms,…] [--rounds 5]

Client and node are separate network namespaces (without root: one namespace and a relay, said in the output) on a link
of stated bandwidth and latency. Every workload runs natively, with an application-blind system (naive and strong), and
with more and more of what Genie knows, all on the same node process and the same kernels; see
``docs/evaluation.md``. Modes take turns; figures are medians with quartiles.

In every run, results must be the native ones – tokens equal, scores within 1e-5 – and the bytes of tensors that move
must be those of the closed form in ``disaggregation/forms.py``. The exit status is 1 if either fails. Targets that are
missed are told; they do not change the status.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from disaggregation import pipeline, report, tap
from disaggregation.forms import FRAMING
from disaggregation.modes import Mode, modes
from disaggregation.network import Network, open_network
from disaggregation.probe import measure_link
from disaggregation.programs import Pictures, Workload, suite
from disaggregation.shaping import Profile
from measure import Times, ratio

import genie
import genie_pytorch  # noqa: F401  (makes the device known)

# Links of 1, 10 and 25 Gbit/s are to an accelerator what a hundredth of them is to a core of a CPU, or less (see
# docs/evaluation.md). And one that is quicker beside its node than any of these.
RATES = {"0.01G": 1e7, "0.1G": 1e8, "0.25G": 2.5e8, "1G": 1e9}
ROUND_TRIPS = {"0.2ms": 2e-4, "1ms": 1e-3, "10ms": 1e-2}
PROFILES = {f"{r}/{t}": Profile(f"{r}/{t}", RATES[r], ROUND_TRIPS[t]) for r in RATES for t in ROUND_TRIPS}
USUAL = ("0.25G/0.2ms", "0.25G/1ms", "0.25G/10ms", "0.1G/1ms", "0.01G/1ms", "1G/1ms")
QUICK = ("0.25G/1ms", "0.25G/10ms")
FREE = Profile("no limit", 0, 0)

TOLERANCE = 1e-5
RUN_SECONDS = 300  # deadline of one run
NAIVE_SECONDS = 30.0  # shipping weights for longer shows nothing new
BASE_SECONDS = 60.0  # nor does a baseline whose bytes alone take longer: such a link is left out
# Of all bytes on the wire: TCP/IP heads (52 bytes of at most 65,520), acknowledgements, what is sent twice.
WIRE_OVERHEAD = 0.03
PACKET_HEAD = 80

Row: TypeAlias = dict[str, Any]


@contextmanager
def deadline(seconds: int, what: str) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"{what}: not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Runs:
    """Runs of one mode under one profile: times, and whether all was as it must be."""

    def __init__(self, mode: Mode, expected: torch.Tensor, network: Network) -> None:
        self.mode = mode
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self.traffic = tap.Traffic()  # of the last run
        self.wire = (0, 0, 0)  # up, down, between nodes: of the timed run that put least on the wire
        self._packets = 0  # of that run
        self._session = 0  # bytes of its messages
        self._expected = expected
        self._network = network

    def once(self, timed: bool = True) -> float:
        mode, network = self.mode, self._network
        wire, traffic = network.counts(), tap.TRAFFIC.copy()
        with deadline(RUN_SECONDS, f"{mode.work.name}, {mode.name}"):
            start = time.perf_counter()
            result = mode.run()
            taken = time.perf_counter() - start
        self.traffic = tap.TRAFFIC - traffic
        after = network.counts()
        sums = {key: [b - a for a, b in zip(wire.get(key, (0, 0)), entry, strict=True)] for key, entry in after.items()}
        packets = sum(entry[0] for entry in sums.values())
        up = sum(entry[1] for key, entry in sums.items() if key.startswith("0>"))
        down = sum(entry[1] for key, entry in sums.items() if key.endswith(">0"))
        wired = (up, down, sum(entry[1] for entry in sums.values()) - up - down)
        self._check_result(result)
        if timed:  # the first run of a mode may send plans, and what of weights is too small to go by content
            # A busy machine answers late, and TCP sends again what was not lost: the least is what a run takes.
            if not self.seconds or sum(wired) < sum(self.wire):
                self.wire, self._packets = wired, packets
                self._session = self.traffic.sent + self.traffic.received
            self._check_bytes()
            self.seconds.append(taken)
        return taken

    def _check_result(self, result: torch.Tensor) -> None:
        expected = self._expected[..., : result.shape[-1]] if self.mode.is_short else self._expected
        if result.dtype.is_floating_point:
            if result.shape != expected.shape or not torch.allclose(result, expected, rtol=0, atol=TOLERANCE):
                self.wrong.append("result differs from the native one")
        elif not torch.equal(result, expected):
            self.wrong.append("tokens differ from the native ones")

    def _check_bytes(self) -> None:
        form, traffic = self.mode.moves, self.traffic
        if form is None:
            return
        if (traffic.up, traffic.down) != form:
            self.wrong.append(f"moved {traffic.up:,} up, {traffic.down:,} down; must be {form.up:,}, {form.down:,}")
        if traffic.framing > FRAMING * (traffic.messages + traffic.answers):
            self.wrong.append(f"{traffic.framing:,} bytes of framing for {traffic.messages} messages")

    def check_wire(self) -> None:
        """After all runs."""
        if self.mode.moves is None:
            return
        session, wire = self._session, sum(self.wire[:2])
        heads = PACKET_HEAD * (self._packets + 1)
        if not session <= wire + PACKET_HEAD <= session * (1 + WIRE_OVERHEAD) + heads:
            self.wrong.append(f"{wire:,} bytes on the wire for {session:,} of the session")
        between = self.mode.between
        if between is not None and not (
            between <= self.wire[2] <= between * (1 + WIRE_OVERHEAD) + (PACKET_HEAD + FRAMING) * self._packets
        ):
            self.wrong.append(f"{self.wire[2]:,} bytes on the wire between nodes for {between:,}")


def measure(
    work: Workload,
    profile: Profile,
    network: Network,
    options: argparse.Namespace,
    table: dict[str, Mode],
    base: str = "blind",
) -> list[Row]:
    """All modes in turns under one profile."""
    gc.collect()  # what earlier workloads left is not to be freed in the runs of this one
    network.shape(profile)
    expected = table["local"].run()
    runs = {name: Runs(mode, expected, network) for name, mode in table.items()}
    naive = runs.pop("blind-naive", None)
    if (
        naive is not None
        and profile.rate
        and naive.mode.moves
        and naive.mode.moves.up * 8 / profile.rate > NAIVE_SECONDS
    ):
        naive = None
    total = sum(each.once(timed=False) for each in runs.values())
    rounds = max(min(3, options.rounds), min(options.rounds, round(options.seconds / total)))
    names = list(runs)
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            runs[name].once()
    if naive is not None:
        naive.once()
        runs["blind-naive"] = naive
    times: Times = {name: each.seconds for name, each in runs.items()}
    rows = []
    for name in table:
        if name not in runs:
            continue
        each = runs[name]
        each.check_wire()
        units = each.mode.work.units
        row: Row = {
            "profile": profile.name,
            "workload": work.name,
            "mode": name,
            "unit": work.unit,
            "units": units,
            "runs": len(each.seconds),
            "ms": statistics.median(each.seconds) * 1e3,
            "ms_low": report.quantile(each.seconds, 0.25) * 1e3,
            "ms_high": report.quantile(each.seconds, 0.75) * 1e3,
            "ms_per_unit": statistics.median(each.seconds) / units * 1e3,
            "units_per_s": units / statistics.median(each.seconds),
            "up": each.traffic.up / units,
            "down": each.traffic.down / units,
            "wire_up": each.wire[0] / units,
            "wire_down": each.wire[1] / units,
            "wire_between": each.wire[2] / units,
            "framing": each.traffic.framing / units,
            "plans": each.traffic.plans / units,
            "frees": each.traffic.frees / units,
            "profiles": each.traffic.profiles / units,
            "messages": each.traffic.messages / units,
            "answers": each.traffic.answers / units,
            "wrong": sorted(set(each.wrong)),
        }
        if name not in ("local", "blind-naive"):
            row["latency_ratio"] = ratio(times, name, base)["ratio"]
        rows.append(row)
    report.ratios(rows, base)
    return rows


def counted_like_sessions() -> list[str]:
    """The tap must have seen what the sessions counted."""
    stats = genie.get_stats()
    told = (stats.get("bytes_sent", 0), stats.get("bytes_received", 0))
    # A session counts from after its greeting; a connection's first messages are of some hundred bytes.
    if abs(tap.TRAFFIC.sent - told[0]) > 4096 or abs(tap.TRAFFIC.received - told[1]) > 65536:
        return [f"sessions counted {told}, the tap {(tap.TRAFFIC.sent, tap.TRAFFIC.received)}"]
    return []


def connect(network: Network, profile: Profile) -> None:
    """To all nodes, told what the link carries; how fast a node computes is measured here, for it is this machine."""
    x = torch.randn(512, 512)
    torch.mm(x, x)
    start = time.perf_counter()
    for _ in range(20):
        torch.mm(x, x)
    tflops = 20 * 2 * 512**3 / (time.perf_counter() - start) / 1e12
    devices = [
        {
            "id": f"node{index}",
            "type": "CPU",
            "memory_gb": 8,
            "compute_tflops": tflops,
            "network_gbps": profile.rate / 1e9,
            "address": address,
        }
        for index, address in enumerate(network.addresses)
    ]
    genie.init(cluster={"devices": devices, "backend": tap.BACKEND}, unix_sockets=False, timeout=120.0)


def pipelines(profiles: Sequence[str], tiny: bool, network: Network, options: argparse.Namespace) -> Iterator[Row]:
    """The stream of pictures on two nodes, by a scheduler that knows each link."""
    [work] = suite(["cnn"], tiny)
    assert isinstance(work, Pictures)
    work = dataclasses.replace(work, name="CNN pipeline", batches=2 * work.batches)
    native = work.build()
    for name in profiles:
        genie.shutdown()
        network.shape(FREE)
        connect(network, PROFILES[name])
        yield from told(measure, work, PROFILES[name], network, options, pipeline.modes(work, native), "one node")


def line_seconds(mode: Mode, profile: Profile) -> float:
    """What a run's bytes take on the link, whatever else is done."""
    return sum(mode.moves or ()) * 8 / profile.rate


def told(measure: Callable[..., list[Row]], *args: Any) -> list[Row]:
    start = time.perf_counter()
    rows = measure(*args)
    print(report.progress(rows, time.perf_counter() - start), file=sys.stderr, flush=True)
    return rows


def run(
    *,
    profiles: Sequence[str] = USUAL,
    only: Sequence[str] = (),
    tiny: bool = False,
    relayed: bool = False,
    options: argparse.Namespace,
) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    tap.register()
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "links": [],
        "rows": [],
        "left_out": [],
    }
    left_out: list[str] = result["left_out"]
    two = "pipeline" in only or not only
    with open_network(2 if two else 1, relayed=relayed) as network:
        result["network"] = network.kind
        network.enter()
        try:
            for name in profiles:
                network.shape(PROFILES[name])
                result["links"].append({"profile": name, **measure_link(network.probe)})
            connect(network, PROFILES[profiles[0]])
            for work in suite([each for each in only if each != "pipeline"], tiny) if only != ("pipeline",) else ():
                network.shape(FREE)
                table = modes(work, work.build())
                for name in profiles:
                    if (seconds := line_seconds(table["blind"], PROFILES[name])) > BASE_SECONDS:
                        left_out.append(f"{work.name}, {name}: blind's bytes alone take {seconds:.0f} s")
                        continue
                    result["rows"] += told(measure, work, PROFILES[name], network, options, table)
            result["wrong"] = counted_like_sessions()
            if two and not relayed:
                result["rows"] += list(pipelines(profiles, tiny, network, options))
            wrong = [f"{r['profile']} {r['workload']} {r['mode']}: {w}" for r in result["rows"] for w in r["wrong"]]
            result["wrong"] += wrong
        finally:
            genie.shutdown()
    result["targets_missed"] = list(report.missed(result["rows"]))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="some of gpt2,smollm2,vqa,cnn,dlrm,pipeline")
    parser.add_argument("--profile", default="", help=f"some of {','.join(PROFILES)}, or all")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each mode, at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="per workload and profile; at least 3 rounds")
    parser.add_argument("--quick", action="store_true", help="about two minutes: fewer profiles and rounds, no SmolLM2")
    parser.add_argument("--relay", action="store_true", help="a relay in this namespace even where namespaces work")
    parser.add_argument("--tiny", action="store_true", help="sizes for tests; figures mean nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="tables as in docs/evaluation.md")
    options = parser.parse_args()
    chosen = tuple(filter(None, options.profile.split(",")))
    only = tuple(filter(None, options.only.split(",")))
    if options.quick:
        chosen, options.rounds, options.seconds = chosen or QUICK, min(options.rounds, 3), 10.0
        only = only or ("gpt2", "vqa", "cnn", "dlrm")
    profiles = tuple(PROFILES) if chosen == ("all",) else chosen or USUAL
    unknown = [name for name in profiles if name not in PROFILES]
    if unknown:
        parser.error(f"no profile {unknown[0]!r}: {', '.join(PROFILES)}")
    result = run(profiles=profiles, only=only, tiny=options.tiny, relayed=options.relay, options=options)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(report.markdown(result) if options.markdown else report.text(result))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
