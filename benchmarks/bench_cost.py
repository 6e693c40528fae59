"""How good estimates are: rooflines, similar shapes, measured rows; beside what the executor measured in the same run.

Accuracy on this machine's CPU over the operators of four models, each split into what a profile was told and what it
is asked. "held out" operators have shapes nobody measured; "held out model" says of a model's operators what the other
models tell. Times are the lower tenths of executions that took turns, on one thread. What timing and estimates cost.

With ``--aiconfigurator FILE``: rooflines of GPUs from 60 measured products of NVIDIA's tables (the wheel of PyPI's
``aiconfigurator-core``, read in place; needs pyarrow).
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import random
import re
import statistics
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
import workloads
from measure import Result, table

import genie
from genie.bindings import Prediction, parameters
from genie.calibration import FULL, QUICK, calibrate
from genie.device import Device
from genie.graph import Graph, Input, Node, Ref
from genie.graph.once import forget
from genie.interfaces import Estimate
from genie.profile import Profile, Seen, Signature, device_key, fitted, merged, signature_of
from genie.profile.signature import Questions, questions
from genie.schedule import RooflineCostModel, Scheduler
from genie.schedule.cost import Calibration, DeviceRoof, Sample, Trait
from genie.timing import Timing
from genie_backend_local import LocalBackend, LocalSession

FOLDS = 5


class Residual(torch.nn.Module):
    """Two convolutions, and what came in."""

    def __init__(self, width: int, out: int, step: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(width, out, 3, step, 1, bias=False)
        self.second = torch.nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(out), torch.nn.BatchNorm2d(out)])
        self.short = torch.nn.Conv2d(width, out, 1, step, bias=False) if step > 1 or width != out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
        return torch.relu(y + (x if self.short is None else self.short(x)))


def cnn(width: int = 32, stages: int = 4) -> torch.nn.Module:
    """The shape of a small ResNet."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, width, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(width)]
    layers += [torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1)]
    for stage in range(stages):
        out = width << stage
        layers += [Residual(out if not stage else out // 2, out, 2 if stage else 1), Residual(out, out, 1)]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width << (stages - 1), 1000)]
    return torch.nn.Sequential(*layers).eval()


def captured(program: Callable[[], Any]) -> tuple[Graph, Any]:
    with torch.no_grad(), genie.capture():
        result = program()
    return genie.annotate(genie.get_graph()), result


def graphs(tiny: bool) -> dict[str, Graph]:
    """By the name of the model."""
    layers, width = (2, 64) if tiny else (6, 384)
    lm, text = workloads.gpt2(layers, width), workloads.bert(layers, width, batch=1)
    model, inputs = lm.model(), lm.inputs()
    prefill, out = captured(lambda: model(**inputs, use_cache=True, logits_to_keep=1))
    token = torch.zeros(1, 1, dtype=torch.int64)
    decode, _ = captured(lambda: model(token, past_key_values=out.past_key_values, use_cache=True))
    encoder, words = text.model(), text.inputs()
    picture = torch.rand(1, 3, 64, 64) if tiny else torch.rand(4, 3, 160, 160)
    net = cnn(8, 2) if tiny else cnn()
    return {
        "gpt2 prefill": prefill,
        "gpt2 decode": decode,
        "bert": captured(lambda: encoder(**words))[0],
        "cnn": captured(lambda: net(picture))[0],
    }


class Program:
    """A graph loaded into a session, with made-up inputs, to be run again and again."""

    _handles = itertools.count(1)

    def __init__(self, session: LocalSession, graph: Graph) -> None:
        self.session = session
        self.graph = graph
        self._words = parameters(graph)
        self._number = session.load(Scheduler([session.device]).schedule(graph))
        self._prediction = Prediction(len(graph.inputs), self._words)
        self._donated = [entry.donated for entry in graph.inputs]
        self._inputs = [self._upload(graph, entry.value) for entry in graph.inputs]

    def _upload(self, graph: Graph, value: int) -> int:
        spec = graph.values[value]
        dtype = getattr(torch, spec.dtype)
        made = torch.ones(spec.shape, dtype=dtype)
        if dtype.is_floating_point:
            made.normal_(std=0.02)
        handle = next(self._handles)
        data = made.reshape(-1).view(torch.uint8).numpy().data if made.numel() else b""
        self.session.upload(handle, genie.TensorSpec(spec.shape, spec.dtype), data)
        return handle

    def run(self) -> float:
        """Seconds of the thread that does the work: what other programs take meanwhile is not in them."""
        for at, donated in enumerate(self._donated):
            if donated:
                self._inputs[at] = self._upload(self.graph, self.graph.inputs[at].value)
        outputs = len(self.graph.outputs)
        made = [next(self._handles) for _ in range(outputs)]
        bindings = self._prediction.encode([made[0] if made else 0, *self._inputs, *self._words])
        started = time.thread_time()
        self.session.execute(self._number, bindings)
        taken = time.thread_time() - started
        self.session.free(made)
        return taken


@dataclass
class Model:
    """``seconds``: of whole executions. ``told`` and ``truth`` are rows of different executions."""

    program: Program
    asked: Questions
    seconds: list[float] = field(default_factory=list)
    told: list[Timing] = field(default_factory=list)
    truth: dict[Signature, float] = field(default_factory=dict)  # seconds

    def counts(self) -> dict[Signature, int]:
        found: dict[Signature, int] = {}
        for number in self.asked.numbers.values():
            signature = self.asked.asked[number].signature
            found[signature] = found.get(signature, 0) + 1
        return found


def measure(session: LocalSession, models: Mapping[str, Model], rounds: int) -> None:
    """In turns: an execution that is not timed inside, one whose rows are told, one whose rows are the truth."""
    seen: dict[tuple[str, str], dict[Signature, list[Timing]]] = {
        (name, turn): {} for name in models for turn in ("told", "truth")
    }
    for number in range(rounds + 1):
        for name, model in models.items():
            session.profile(share=0.0)
            model.program.run()  # what ran before it has the caches
            turns = ["whole", "told", "truth"] * 4
            random.Random(number).shuffle(turns)
            for turn in turns:
                session.profile(share=0.0 if turn == "whole" else 1.0)
                taken = model.program.run()
                rows = session.profile()
                if not number:
                    continue  # memory is touched for the first time
                if turn == "whole":
                    model.seconds.append(taken)
                else:
                    for row in rows:
                        seen[name, turn].setdefault(signature_of(row), []).append(row)
    session.profile(share=0.005)
    for name, model in models.items():
        model.told = [
            msgspec.structs.replace(functools.reduce(merged, rows), typical=usual(row.typical for row in rows))
            for rows in seen[name, "told"].values()
        ]
        model.truth = {signature: usual(row.typical for row in rows) for signature, rows in seen[name, "truth"].items()}


def usual(times: Iterable[float]) -> float:
    """The lower tenth: what else a machine does only adds, and on a shared one it adds to most executions."""
    ordered = sorted(times)
    return ordered[len(ordered) // 10]


def predicted(
    device: Device, calibration: Calibration, rows: Iterable[Timing], asked: Questions
) -> dict[Signature, Estimate]:
    """Estimates of a graph's operators by a profile that was told these rows."""
    profile, key = Profile(), device_key(device)
    profile.calibrate(key, calibration)
    profile.observe(key, rows)
    return {
        each.signature: made for each, made in zip(asked.asked, profile.estimates(device, asked.asked), strict=True)
    }


def held_out(
    device: Device, calibration: Calibration, base: Sequence[Timing], model: Model
) -> dict[Signature, Estimate]:
    """Each operator estimated from the rows of others: shapes are split at random, in folds."""
    rows = list(model.told)
    random.Random(0).shuffle(rows)
    found: dict[Signature, Estimate] = {}
    for fold in range(FOLDS):
        hidden = {signature_of(row) for row in rows[fold::FOLDS]}
        bare = {each._replace(phase="") for each in hidden}
        kept = [row for row in (*base, *rows) if signature_of(row)._replace(phase="") not in bare]
        made = predicted(device, calibration, kept, model.asked)
        found.update({signature: made[signature] for signature in hidden if signature in made})
    return found


def accuracy(model: Model, estimates: Mapping[Signature, Estimate]) -> Result:
    """Over operators, each shape once (MAPE, rank) and by the time they take."""
    counts = model.counts()
    pairs = [
        (estimates[signature].seconds, model.truth[signature], counts[signature])
        for signature in counts
        if signature in estimates and signature in model.truth
    ]
    return {
        "ops": len(pairs),
        "MAPE": statistics.mean(abs(a / b - 1) for a, b, _ in pairs),
        "by time": sum(abs(a - b) * n for a, b, n in pairs) / sum(b * n for _, b, n in pairs),
        "rank": spearman([a for a, _, _ in pairs], [b for _, b, _ in pairs]),
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of ranks (Spearman, 1904); ties share their mean rank."""
    return statistics.correlation(_ranks(a), _ranks(b)) if len(set(a)) > 1 and len(set(b)) > 1 else float("nan")


def _ranks(numbers: Sequence[float]) -> list[float]:
    order = sorted(range(len(numbers)), key=lambda at: numbers[at])
    ranks = [0.0] * len(numbers)
    for _, group in itertools.groupby(enumerate(order), key=lambda each: numbers[each[1]]):
        members = list(group)
        mean = statistics.mean(place for place, _ in members)
        for _, at in members:
            ranks[at] = mean
    return ranks


def whole(model: Model, estimates: Mapping[Signature, Estimate]) -> float:
    """A model's predicted seconds over those measured, less one."""
    total = sum(estimates[signature].seconds * count for signature, count in model.counts().items())
    return total / usual(model.seconds) - 1


def bench_accuracy(rounds: int, tiny: bool, quick: bool) -> dict[str, Any]:
    genie.init(backend="local", threads=1)
    backend = LocalBackend(threads=1)
    session = backend.connect(backend.devices()[-1])
    device = session.device
    measured = calibrate(session, QUICK if quick else FULL)
    models = {name: Model(Program(session, graph), questions(graph)) for name, graph in graphs(tiny).items()}
    measure(session, models, rounds)
    rows: list[Result] = []
    wholes: list[Result] = []
    for name, model in models.items():
        others = [row for other in models.values() if other is not model for row in other.told]
        answers = {
            "roofline, figures": predicted_by_figures(device, model.asked),
            "roofline": predicted(device, measured.calibration, (), model.asked),
            "interpolated, held out": held_out(device, measured.calibration, (*measured.rows, *others), model),
            "interpolated, held out model": predicted(
                device, measured.calibration, (*measured.rows, *_without(others, model)), model.asked
            ),
            "profiled": predicted(device, measured.calibration, model.told, model.asked),
        }
        rows += [{"model": name, "estimate": kind, **accuracy(model, made)} for kind, made in answers.items()]
        wholes.append(
            {"model": name, "nodes": len(model.asked.numbers), "ms": usual(model.seconds) * 1e3}
            | {kind: whole(model, made) for kind, made in answers.items() if set(model.counts()) <= set(made)}
        )
    session.close()
    backend.close()
    genie.shutdown()
    return {"operators": rows, "mean": _mean(rows), "models": wholes, "calibrated rows": len(measured.rows)}


def _without(rows: Iterable[Timing], model: Model) -> list[Timing]:
    """No row of a shape that the model has, whatever its phase."""
    own = {signature._replace(phase="") for signature in model.counts()}
    return [row for row in rows if signature_of(row)._replace(phase="") not in own]


def predicted_by_figures(device: Device, asked: Questions) -> dict[Signature, Estimate]:
    """By the device's figures alone, nothing measured."""
    roof = RooflineCostModel().roof(device)
    return {each.signature: roof.estimate(each.trait) for each in asked.asked}


def _mean(rows: Sequence[Result]) -> list[Result]:
    kinds = list(dict.fromkeys(row["estimate"] for row in rows))
    return [
        {"estimate": kind}
        | {
            key: statistics.mean(row[key] for row in rows if row["estimate"] == kind)
            for key in ("MAPE", "by time", "rank")
        }
        for kind in kinds
    ]


# --- costs -----------------------------------------------------------------------------------------


def bench_overhead(rounds: int, tiny: bool) -> Result:
    """A decode step untimed, timed at the usual rate, and timed each time, in turns: pairs of neighbours."""
    genie.init(backend="local", threads=1)
    backend = LocalBackend(threads=1)
    session = backend.connect(backend.devices()[-1])
    program = Program(session, graphs(tiny)["gpt2 decode"])
    batch = 20
    shares = {"none": 0.0, "usual": 0.005, "every": 1.0}
    times: dict[str, list[float]] = {name: [] for name in shares}
    sampled = 0
    for _ in range(rounds):
        for name, share in shares.items():
            session.profile(share=share)
            before = session.stats()["timed_executions"]
            times[name].append(statistics.median(program.run() for _ in range(batch)))
            sampled += session.stats()["timed_executions"] - before if name == "usual" else 0
    session.profile()
    session.close()
    backend.close()
    genie.shutdown()
    pairs = {name: [a / b - 1 for a, b in zip(times[name], times["none"], strict=True)] for name in ("usual", "every")}
    return {
        "step ms": statistics.median(times["none"]) * 1e3,
        "timed": sampled / (rounds * batch),
        "usual": statistics.median(pairs["usual"]),
        "every": statistics.median(pairs["every"]),
    }


def bench_estimates(nodes: int = 4000, devices: int = 8) -> Result:
    """Microseconds per node and device, of graphs asked about for the first time: by rooflines, and by a profile that
    measured some of their operators and shapes like those of the others."""
    rng = random.Random(0)
    sizes = [64, 96, 128, 192, 256, 384]
    values: list[genie.TensorSpec] = []
    steps: list[Node] = []
    for number in range(nodes):
        m, k, n = (rng.choice(sizes) for _ in range(3))
        first = len(values)
        values += [genie.TensorSpec(shape, "float32") for shape in ((m, k), (k, n), (m, n))]
        steps.append(Node(number, "aten::mm", "", (Ref(first), Ref(first + 1)), (first + 2,)))
    inputs = tuple(Input(value) for value in range(len(values)) if value % 3 < 2)
    graph = genie.annotate(Graph(tuple(values), inputs, tuple(steps), ()))
    places = [Device(id=f"gpu{n}", type="GPU", memory_gb=16, compute_tflops=10 + n) for n in range(devices)]
    profile = Profile()
    asked = questions(graph).asked
    for place in places:
        known = RooflineCostModel().roof(place)
        told = [(each, known.estimate(each.trait).seconds * rng.uniform(1, 2)) for each in asked]
        calibration = fitted([Seen(each.trait, seconds) for each, seconds in told], place)
        assert calibration is not None
        profile.calibrate(device_key(place), calibration)
        rows = [Timing(*each.signature, 9, seconds, seconds, 0.0, seconds) for each, seconds in told[::2]]
        profile.observe(device_key(place), rows)
    found: Result = {"nodes": nodes, "shapes": len(asked)}
    for name, model in (
        ("roofline", RooflineCostModel()),
        ("profile, first", profile.model()),
        ("then", profile.model()),
    ):
        bound = graph.nodes()
        if name != "then":
            forget(graph)
        started = time.perf_counter()
        for place in places:
            model.appraise(bound, place)
        found[f"{name} µs"] = (time.perf_counter() - started) / nodes / devices * 1e6
    return found


# --- GPUs, from published tables ------------------------------------------------------------------


def bench_gpus(path: Path, points: int = 60, seeds: int = 20) -> list[Result]:
    """Rooflines of products on GPUs, fitted to so many random rows of a table, on all of its other rows."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SystemExit("reading the tables needs pyarrow: pip install pyarrow") from error
    found: list[Result] = []
    with zipfile.ZipFile(path) as wheel:
        names = sorted(
            name for name in wheel.namelist() if re.search(r"/gemm/(trtllm|vllm)/[^/]+/gemm_perf\.parquet$", name)
        )
        for name in names:
            system, framework = re.findall(r"data/([^/]+)/gemm/([^/]+)/", name)[0]
            if system not in ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm"):
                continue
            rows = pyarrow.parquet.read_table(io.BytesIO(wheel.read(name))).to_pylist()
            rows = [row for row in rows if row["gemm_dtype"] == "bfloat16"]
            peaks = _peaks(wheel.read(f"aiconfigurator_core/systems/{system}.yaml").decode())
            if rows:
                found.append({"GPU": system, "by": framework, "rows": len(rows), **_gpu(rows, *peaks, points, seeds)})
    return found


def _peaks(text: str) -> tuple[float, float]:
    """FLOP/s of bfloat16 and bytes/s, of a system's description."""
    flops, moved = re.search(r"bfloat16_tc_flops:\s*(\S+)", text), re.search(r"mem_bw:\s*(\S+)", text)
    assert flops is not None and moved is not None
    return float(flops[1]), float(moved[1])


def _gpu(rows: Sequence[Mapping[str, Any]], peak: float, bandwidth: float, points: int, seeds: int) -> Result:
    samples = []
    for row in rows:
        m, n, k = row["m"], row["n"], row["k"]
        samples.append(Sample(2.0 * m * n * k, 2.0 * (m * k + n * k + m * n), row["latency"] / 1e3))
    device = Device(
        id="gpu", type="GPU", memory_gb=80, compute_tflops=peak / 1e12, memory_bandwidth_gb_s=bandwidth / 1e9
    )
    errors = []
    for seed in range(seeds):
        order = list(range(len(samples)))
        random.Random(seed).shuffle(order)
        calibration = _products([samples[at] for at in order[:points]], device)
        roof = DeviceRoof(device, calibration)
        rest = [samples[at] for at in order[points : points + 5000]]
        errors.append(
            statistics.mean(
                abs(roof.estimate(Trait("gemm", "", int(s.flops), int(s.moved))).seconds / s.seconds - 1) for s in rest
            )
        )
    return {"MAPE": statistics.mean(errors), "median": statistics.median(errors), "worst": max(errors)}


def _products(samples: Sequence[Sample], device: Device) -> Calibration:
    seen = [Seen(Trait("gemm", "bfloat16", int(each.flops), int(each.moved)), each.seconds) for each in samples]
    made = fitted(seen, device)
    assert made is not None
    return made


def run(rounds: int = 12, tiny: bool = False, quick: bool = False, gpus: Path | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"accuracy": bench_accuracy(rounds, tiny, quick)}
    found["timing"] = bench_overhead(max(rounds, 3), tiny)
    found["estimates"] = bench_estimates(400 if tiny else 4000)
    if gpus is not None:
        found["gpus"] = bench_gpus(gpus)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="calibrate as `genie calibrate --quick` does")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--aiconfigurator", type=Path, metavar="FILE", help="the wheel with the tables of GPUs")
    parser.add_argument("--only-gpus", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.only_gpus:
        found: dict[str, Any] = {"gpus": bench_gpus(given.aiconfigurator)}
    else:
        found = run(given.rounds, given.tiny, given.quick, given.aiconfigurator)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    if "accuracy" in found:
        print("operators (relative errors; rank: Spearman's correlation)")
        print(table(found["accuracy"]["operators"]))
        print("\nmean of the models")
        print(table(found["accuracy"]["mean"]))
        print("\nwhole models: predicted / measured - 1")
        print(table(found["accuracy"]["models"]))
        print("\nwhat timing costs a decode step")
        print(table([found["timing"]]))
        print("\nwhat an estimate costs, per node and device")
        print(table([found["estimates"]]))
    if "gpus" in found:
        print("\nproducts on GPUs (bfloat16): rooflines of 60 points, error on the other rows, over 20 draws")
        print(table(found["gpus"]))


if __name__ == "__main__":
    main()
