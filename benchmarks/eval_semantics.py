"""What Genie says that models mean, compared with the truth about them.

    python benchmarks/eval_semantics.py [--json] [--only gpt2,clip] [--hide-names] [--node] [--misses]

Models with random weights, small enough to take about a second each. Of each the truth is written down in
``benchmarks/semantics`` – from its configuration and the definitions of ``genie.graph.vocabulary``, before anything
runs. Each is run natively; then on the device with each of its calls captured by itself, and with all of them captured
at once; each of these twice: as a user would run it, annotating every graph as soon as it is there, and once more to
learn which values its caches, states and weights are. All results must be the native ones: labels change nothing.

``--hide-names`` annotates graphs without modules, names and source lines. Without it both are done, and compared.

The exit status is 1 if a bar is missed, a result differs, or a model fails. Models whose library is not installed are
told and not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from measure import table
from nodes import node
from semantics import suite
from semantics.answers import RESIDENCIES, Item, judge, nameless, residency
from semantics.stages import Captured, Judged, Mode, Probed, Region, Stage
from semantics.truth import Model, Program

import genie
import genie_pytorch  # noqa: F401  (makes the device known)
from genie.graph import Graph

# From the requirements.
BARS = {"workload": 0.97, "phase": 0.99, "modality": 0.95, "residency": 0.99}
BARRED_RESIDENCIES = ("kv_cache", "recurrent_state", "weight")
MOST_LOST_WITHOUT_NAMES = 0.03
FEWEST_MODELS = 45

QUESTIONS = ("workload", "training", "phase", "modality", "fusion")
MODES: tuple[Mode, ...] = ("per call", "whole")
Row: TypeAlias = dict[str, Any]


class Differs(Exception):
    """A result is not the native one."""


class Strays(Exception):
    """Two runs of a program recorded different operators."""


def evaluate(model: Model, hidden: Sequence[bool]) -> dict[bool, list[Item]]:
    """All questions about a model and their answers, by whether names were hidden. Raises :class:`Differs`."""
    items: dict[bool, list[Item]] = {hide: [] for hide in hidden}
    expected = _run(model, Stage())
    for mode in MODES:
        try:
            found = _in_mode(model, mode, hidden, expected)
        except Strays:  # shapes are learned in the first run of a process: operators may be composed otherwise in it
            found = _in_mode(model, mode, hidden, expected)
        for hide in hidden:
            items[hide] += found[hide]
    return items


def _in_mode(
    model: Model, mode: Mode, hidden: Sequence[bool], expected: Sequence[torch.Tensor]
) -> dict[bool, list[Item]]:
    annotated: dict[bool, list[Graph]] = {hide: [] for hide in hidden}

    def read(region: Region) -> None:
        assert region.graph is not None
        for hide in hidden:
            annotated[hide].append(genie.annotate(nameless(region.graph) if hide else region.graph))

    judged, probed = Judged(mode, read), Probed(mode)
    for stage in (judged, probed):
        _compare(expected, _run(model, stage), mode)
    calls = sum(len(region.calls) for region in judged.regions)
    if calls != len(model.truth.calls):
        raise ValueError(f"{mode}: {calls} calls, where the truth tells of {len(model.truth.calls)}")
    items: dict[bool, list[Item]] = {hide: [] for hide in hidden}
    for number, (region, probe) in enumerate(zip(judged.regions, probed.regions, strict=True)):
        truth = _carried_over(probe, region)
        where = mode if mode == "whole" else f"{mode} {number}"
        for hide in hidden:
            graph = annotated[hide][number]
            items[hide] += [*judge(model.truth, region, graph, where), *residency(truth, graph, where)]
    return items


def _run(model: Model, stage: Stage) -> list[torch.Tensor]:
    """The program's results, at home."""
    torch.manual_seed(0)
    program = model.build(stage)
    for module in program.modules:
        module.to(stage.device)
    if isinstance(stage, Probed):
        stage.weights += _weights(program)
    torch.manual_seed(1)
    with warnings.catch_warnings(), stage.whole() if isinstance(stage, Captured) else contextlib.nullcontext():
        warnings.simplefilter("ignore")
        results = program.run(stage)
    return [each.detach().cpu() for each in results]


def _weights(program: Program) -> Iterator[torch.Tensor]:
    for module in program.modules:
        yield from module.parameters()
        yield from module.buffers()
    yield from program.tensors.values()


def _compare(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], mode: str) -> None:
    for number, (native, other) in enumerate(zip(expected, found, strict=True)):
        if native.shape != other.shape or native.dtype != other.dtype:
            raise Differs(f"{mode}: result {number} is {other.dtype} {tuple(other.shape)}")
        same = torch.allclose if native.is_floating_point() else torch.equal
        if not same(native, other, **({"rtol": 1e-5, "atol": 1e-5} if native.is_floating_point() else {})):
            raise Differs(f"{mode}: result {number} differs by {(native.double() - other.double()).abs().max():.3g}")


def _carried_over(probe: Region, region: Region) -> dict[int, str]:
    """What the probe learned, in the numbers of the graph that is judged. Both ran the same program."""
    assert probe.graph is not None and region.graph is not None
    if [each.target for each in probe.graph.steps] != [each.target for each in region.graph.steps]:
        raise Strays("two runs of the program recorded different operators")
    same: dict[int, int] = {}
    for theirs, ours in zip(probe.graph.steps, region.graph.steps, strict=True):
        same |= zip((*theirs.operands(), *theirs.outputs), (*ours.operands(), *ours.outputs), strict=True)
    return {same[value]: truth for value, truth in probe.truth.items() if value in same}


# --- figures -------------------------------------------------------------------------------------


def figures(items: Iterable[Item]) -> dict[str, float]:
    """Accuracies, and precision and recall of residencies."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    cells: Counter[tuple[str, str]] = Counter()
    for item in items:
        if item.label == "residency":
            cells[item.truth, item.answer] += item.count
        else:
            asked[item.label] += item.count
            right[item.label] += item.count * item.right
    found = {label: right[label] / asked[label] for label in QUESTIONS if asked[label]}
    for each in RESIDENCIES:
        true = sum(count for (truth, _), count in cells.items() if truth == each)
        told = sum(count for (_, answer), count in cells.items() if answer == each)
        if true:
            found[f"residency {each} recall"] = cells[each, each] / true
            found[f"residency {each} precision"] = cells[each, each] / told if told else 0.0
    return found


def confusion(items: Iterable[Item], label: str) -> list[Row]:
    """Truths down, answers across."""
    cells: Counter[tuple[str, str]] = Counter()
    for item in items:
        if item.label == label:
            cells[item.truth, item.answer] += item.count
    answers = sorted({answer for _, answer in cells})
    return [
        {"truth": truth, **{answer: cells[truth, answer] for answer in answers}}
        for truth in sorted({truth for truth, _ in cells})
    ]


def bar_of(name: str) -> float | None:
    label, _, rest = name.partition(" ")
    if label == "residency" and rest.split()[0] not in BARRED_RESIDENCIES:
        return None
    return BARS.get(label)


def run(
    *, only: Sequence[str] = (), hidden: Sequence[bool] = (False, True), models: Sequence[Model] | None = None
) -> dict[str, Any]:
    """Everything, as data."""
    known = suite.MODELS if models is None else models
    if unknown := set(only) - {model.name for model in known}:
        raise SystemExit(f"no model is called {', '.join(sorted(unknown))}: {', '.join(m.name for m in known)}")
    rows: list[Row] = []
    items: dict[bool, list[Item]] = {hide: [] for hide in hidden}
    misses: list[Row] = []
    for model in known:
        if only and model.name not in only:
            continue
        row: Row = {"model": model.name, "origin": model.origin, "equal": None, "seconds": None}
        rows.append(row)
        missing = [name for name in model.needs if importlib.util.find_spec(name) is None]
        if missing:
            row["error"] = f"not installed: {', '.join(missing)}"
            continue
        start = time.perf_counter()
        try:
            found = evaluate(model, hidden)
        except Exception as error:  # one model must not hide what the others are
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            row["equal"] = False if isinstance(error, Differs) else None
            continue
        row |= {"equal": True, "seconds": time.perf_counter() - start}
        for hide, each in found.items():
            items[hide] += each
            row[_kind(hide)] = figures(each)
            misses += [
                {"model": model.name, "names": not hide, "label": item.label, "where": item.where, "truth": item.truth}
                | {"answer": item.answer, "count": item.count, "note": item.note}
                for item in each
                if not item.right
            ]
    ran = [row for row in rows if row["equal"]]
    totals = {_kind(hide): figures(each) for hide, each in items.items()}
    for kind, total in totals.items():
        if ran:  # a model of many calls has many graphs: each model counts the same
            total["workload"] = statistics.fmean(row[kind]["workload"] for row in ran)
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "models": rows,
        "ran": len(ran),
        "figures": totals,
        "confusion": {
            _kind(hide): {label: confusion(each, label) for label in (*QUESTIONS, "residency")}
            for hide, each in items.items()
        },
        "misses": misses,
    }
    result["bars_missed"] = list(_missed(result, enough=not only and models is None))
    return result


def _kind(hide: bool) -> str:
    return "without names" if hide else "named"


def _missed(result: dict[str, Any], enough: bool) -> Iterator[str]:
    for row in result["models"]:
        if not row["equal"] and not row["error"].startswith("not installed"):
            yield f"{row['model']}: {row['error']}"
    if enough and result["ran"] < FEWEST_MODELS:
        yield f"{result['ran']} models ran, of at least {FEWEST_MODELS}"
    named, bare = result["figures"].get("named"), result["figures"].get("without names")
    for kind, found in result["figures"].items():
        for name, figure in found.items():
            bar = bar_of(name)
            if bar is None:
                continue
            if kind == "named" and figure < bar:
                yield f"{name}: {figure:.2%}, bar {bar:.0%}"
            if kind == "without names" and named is None and figure < bar - MOST_LOST_WITHOUT_NAMES:
                yield f"{name} without names: {figure:.2%}, bar {bar - MOST_LOST_WITHOUT_NAMES:.0%}"
    if named is not None and bare is not None:
        for name, figure in bare.items():
            if bar_of(name) is not None and figure < named[name] - MOST_LOST_WITHOUT_NAMES:
                yield f"{name} without names: {figure:.2%}, {named[name] - figure:.2%} less than with them"


def show(result: dict[str, Any], misses: bool) -> None:
    print(f"torch {result['torch']}, {result['ran']} models of {len(result['models'])} ran\n")
    for row in result["models"]:
        if "error" in row:
            print(f"{row['model']}: {row['error']}")
    kinds = list(result["figures"])
    names = list(dict.fromkeys(name for kind in kinds for name in result["figures"][kind]))
    print(
        table(
            [
                {"label": name, **{kind: result["figures"][kind].get(name) for kind in kinds}, "bar": bar_of(name)}
                for name in names
            ]
        )
    )
    for kind in kinds:
        for label, rows in result["confusion"][kind].items():
            if rows:
                print(f"\n{label}, {kind}: truth down, answers across\n{table(rows)}")
    if misses and result["misses"]:
        print()
        for each in result["misses"]:
            print(
                f"{each['model']}{'' if each['names'] else ', without names'}, {each['where']}: {each['label']} "
                f"{each['answer']} instead of {each['truth']} × {each['count']}. {each['note']}"
            )
    print()
    for each in result["bars_missed"]:
        print(f"bar missed: {each}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument("--only", default="", help="names of models, with commas between")
    parser.add_argument("--hide-names", action="store_true", help="without names alone")
    parser.add_argument("--node", action="store_true", help="on a node in a process of its own")
    parser.add_argument("--misses", action="store_true", help="each wrong answer, with what the graph shows")
    parser.add_argument("--list", action="store_true", help="names of the models")
    options = parser.parse_args()
    if options.list:
        print("\n".join(model.name for model in suite.MODELS))
        return 0
    only = tuple(filter(None, options.only.split(",")))
    hidden = (True,) if options.hide_names else (False, True)
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        if options.node:
            genie.init(nodes=[stack.enter_context(node())])
        else:
            genie.init(backend="local")
        result = run(only=only, hidden=hidden)
    if options.json:
        print(json.dumps(result))
    else:
        show(result, options.misses)
    return 1 if result["bars_missed"] else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
