"""What it brings that weights of later stages set out when a plan begins, not when they are needed.

    python benchmarks/bench_prefetch.py [--json] [--rounds N] [--layers N] [--width N] [--batch N]

A network's weights are on one node. Then the program says that its second half belongs on the other: the next call has
to bring the weights there. With prefetch they travel while the first half is computed. That call is timed, with and
without, in turns, each time in sessions of its own; results are compared with the native ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import nodes  # sets the environment up before what reads it is imported
import torch
from torch import nn

import genie

DEVICE = "remote_accelerator"


def half(layers: int, width: int) -> nn.Module:
    return nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.Tanh())))


def run(rounds: int = 7, layers: int = 4, width: int = 2048, batch: int = 512) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(batch, width)
    first, second = half(layers, width), half(layers, width)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with torch.no_grad(), nodes.node() as one, nodes.node() as other:
        expected = second(first(x))
        for number in range(2 * rounds):
            prefetch = number % 2 == 0
            genie.shutdown()
            genie.init(nodes=[one, other], prefetch=prefetch)
            seconds[prefetch].append(moving_call(first, second, x, expected))
    with_it, without = (statistics.median(seconds[kind]) for kind in (True, False))
    return {"with_ms": with_it * 1e3, "without_ms": without * 1e3, "ratio": with_it / without, "rounds": rounds}


def moving_call(first: nn.Module, second: nn.Module, x: torch.Tensor, expected: torch.Tensor) -> float:
    """Seconds of the call that brings the second half's weights to the other node."""
    ours = [nn.Sequential(*[type(layer)(*_sizes(layer)) for layer in part]) for part in (first, second)]
    for mine, theirs in zip(ours, (first, second), strict=True):
        mine.load_state_dict(theirs.state_dict())
        mine.to(DEVICE)
    there = x.to(DEVICE)
    if not torch.equal(ours[1](ours[0](there)).cpu(), expected):
        raise AssertionError("the results differ")
    home, away = (device.id for device in genie.devices())
    genie.mark(ours[0], device=home)
    genie.mark(ours[1], device=away)
    started = time.perf_counter()
    result = ours[1](ours[0](there)).cpu()
    taken = time.perf_counter() - started
    if not torch.equal(result, expected):
        raise AssertionError("the results differ")
    return taken


def _sizes(layer: nn.Module) -> tuple[int, ...]:
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=4, help="of each half")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    result = run(options.rounds, options.layers, options.width, options.batch)
    if options.json:
        print(json.dumps(result))
        return
    print(f"first call with weights to be moved: {result['with_ms']:.0f} ms with prefetch, ", end="")
    print(f"{result['without_ms']:.0f} ms without ({result['ratio']:.2f}); results equal")


if __name__ == "__main__":
    main()
