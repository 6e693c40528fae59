"""What it costs that a program can go on when its node dies: a language model generates with and without, in turns, in
one run.

    python benchmarks/bench_recovery.py [--json] [--rounds 31] [--only gpt2]

Two nodes, processes of their own on this machine, one thread each; the session on one is logged, the other's is not.
The second table is the smallest thing there is: one small operator whose value is looked at. The third is the upload of
the weights, of which the logged session keeps a copy on disk. Log bytes are what calls since the last checkpoint take
in this process. At last checkpoints: the first, of everything, and then one at every look of a generation, of what it
wrote in between. Every run's tokens are compared; the exit status says whether all were equal.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import workloads
from measure import Result, compared, in_turns, milliseconds, ratio, table
from nodes import node

ROLES = ("plain", "recovery")


def _connect(index: int, role: str) -> None:
    """The session of a device is made as settings say; here, one of two is to be without."""
    import genie
    from genie import lineage

    guarded = lineage.guarded
    if role == "plain":
        lineage.guarded = lambda sessions, *_: list(sessions)
    try:
        genie.engine(index)
    finally:
        lineage.guarded = guarded


def run(*, rounds: int = 31, only: str = "gpt2", small: int = 300) -> dict[str, Any]:
    import genie
    import genie_pytorch  # noqa: F401  (makes the device)

    torch.set_num_threads(1)
    workload = workloads.by_name(only)
    native, inputs = workload.model(), workload.inputs()
    uploads: dict[str, Callable[[], object]] = {}
    generations: dict[str, Callable[[], torch.Tensor]] = {}
    looks: dict[str, Callable[[], set[float]]] = {}
    tokens: dict[str, list[torch.Tensor]] = {role: [] for role in ROLES}
    values: dict[str, list[set[float]]] = {role: [] for role in ROLES}
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(tempfile.TemporaryDirectory())
        addresses = [stack.enter_context(node()) for _ in ROLES]
        genie.init(nodes=addresses, recovery=True, recovery_dir=kept)
        for index, role in enumerate(ROLES):
            _connect(index, role)
            uploads[role] = _upload(native, index)
            model = copy.deepcopy(native).to(f"remote_accelerator:{index}")
            generations[role] = _generation(workload, model, inputs, index)
            looks[role] = _looks(index, small)
        upload_times = in_turns(uploads, max(rounds // 4, 2), warm=1)
        kept_bytes = int(genie.get_stats()["recovery_disk_bytes"])
        before = _log_bytes()
        generations["recovery"]()
        log_bytes = _log_bytes() - before
        times = in_turns(_kept(generations, tokens), rounds, warm=1)
        small_times = in_turns(_kept(looks, values), max(rounds // 3, 2), warm=1)
        checkpoints = _checkpoints(addresses, kept, workload, native, inputs)
    expected = tokens["plain"][0]
    rows: list[Result] = [
        {
            "sessions": role,
            "ms": milliseconds(times[role]),
            "tokens/s": workload.new_tokens / statistics.median(times[role]),
            **ratio(times, role, "plain"),
            "equal": all(torch.equal(each, expected) for each in tokens[role]),
        }
        for role in ROLES
    ]
    smallest: list[Result] = [
        {
            "sessions": role,
            "µs": statistics.median(small_times[role]) / small * 1e6,
            **ratio(small_times, role, "plain"),
            "equal": all(each == {2.0} for each in values[role]),
        }
        for role in ROLES
    ]
    up: list[Result] = [
        {"sessions": role, "ms": milliseconds(upload_times[role]), **ratio(upload_times, role, "plain")}
        for role in ROLES
    ]
    return {
        "workload": workload.name,
        "generation": rows,
        "small": smallest,
        "upload": up,
        "log_bytes_per_token": log_bytes / workload.new_tokens,
        "kept_bytes": kept_bytes,
        "checkpoints": checkpoints,
        "cost": 1 - 1 / rows[1]["pair_ratio_median"],
        "equal": all(row["equal"] for row in (*rows, *smallest)),
    }


def _checkpoints(
    addresses: Sequence[str], kept: str, workload: workloads.Workload, native: Any, inputs: Mapping[str, torch.Tensor]
) -> list[Result]:
    import genie
    from genie.lineage import checkpointing

    def taken() -> tuple[int, float]:
        stats = genie.get_stats()
        return int(stats["checkpoints"]), float(stats["checkpoint_ms"])

    share, rows = checkpointing._SHARE, []
    for to in ("disk", "node"):
        genie.shutdown()
        genie.init(nodes=addresses, recovery=True, recovery_dir=kept, checkpoint_interval=1e-6, checkpoint_to=to)
        checkpointing._SHARE = 0  # type: ignore[misc]
        try:
            model = copy.deepcopy(native).to("remote_accelerator:0")
            next(model.parameters()).flatten()[0].item()
            first = taken()
            _generation(workload, model, inputs, 0)()
            last, size = taken(), int(genie.get_stats()["checkpoint_bytes"])
        finally:
            checkpointing._SHARE = share  # type: ignore[misc]
        rows.append(
            {
                "to": to,
                "first ms": first[1] / first[0],
                "MiB": size / (1 << 20),
                "next ms": (last[1] - first[1]) / (last[0] - first[0]),
                "checkpoints": last[0] - first[0],
            }
        )
    return rows


def _log_bytes() -> int:
    import genie

    return int(genie.get_stats()["recovery_log_bytes"])


def _kept(run: Mapping[str, Callable[[], Any]], results: dict[str, list[Any]]) -> dict[str, Callable[[], None]]:
    def step(role: str) -> Callable[[], None]:
        return lambda: results[role].append(run[role]())

    return {role: step(role) for role in ROLES}


def _upload(native: Any, index: int) -> Callable[[], object]:
    """Weights that the node has not seen."""

    def upload() -> None:
        with torch.no_grad():
            model = copy.deepcopy(native)
            for parameter in model.parameters():
                parameter.mul_(1 + torch.rand(()))
        model.to(f"remote_accelerator:{index}")
        torch.accelerator.synchronize(index)

    return upload


def _generation(
    workload: workloads.Workload, model: Any, inputs: Mapping[str, torch.Tensor], index: int
) -> Callable[[], torch.Tensor]:
    there = {name: tensor.to(f"remote_accelerator:{index}") for name, tensor in inputs.items()}
    return lambda: workload.run(model, there).cpu()


def _looks(index: int, count: int) -> Callable[[], set[float]]:
    x = torch.ones(1).to(f"remote_accelerator:{index}")
    return lambda: {(x + 1).item() for _ in range(count)}


def show(result: dict[str, Any]) -> None:
    keep = {"pair_ratio_median": "× plain", "pair_ratio_low": "× low", "pair_ratio_high": "× high", "pairs": "pairs"}
    print(f"{result['workload']}; {result['log_bytes_per_token']:,.0f} bytes of log per token, ", end="")
    print(f"{result['kept_bytes'] / (1 << 20):,.1f} MiB of uploads on disk\n")
    for key in ("generation", "small", "upload"):
        rows = [{keep.get(name, name): value for name, value in row.items() if name != "ratio"} for row in result[key]]
        print(table(rows) + "\n")
    print(table(result["checkpoints"]) + "\n")
    print(f"recovery costs {result['cost']:.1%} of the tokens per second")


def main() -> int:
    return compared(__doc__ or "", run, show)


if __name__ == "__main__":
    sys.exit(main())
