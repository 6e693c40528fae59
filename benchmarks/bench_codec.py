"""Graphs and plans as bytes, and what a miss of the plan cache pays before the first byte leaves.

    python benchmarks/bench_codec.py [--json] [--repeat N]

Every figure is the median over runs on freshly built values, verification included. Each size checks first that what
comes back equals what went in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from genie.annotate import annotate
from genie.codec import decode, decode_plan, encode
from genie.device import Device
from genie.graph import Const, Graph, Input, Many, Module, Node, Ref, TensorSpec, verify
from genie.schedule import Scheduler

SIZES = (1, 16, 64, 1_000, 20_000)
# From the requirements: milliseconds for both directions of a graph, and for graph → plan → bytes → plan.
GRAPH_TARGET = {1_000: 10.0, 20_000: 200.0}
PLAN_TARGET = {64: 1.5}


def decoder(nodes: int) -> Graph:
    """A decoder as a recorder sees it: norms, projections, views, an in-place cache write, attention."""
    wide = TensorSpec((1, 8, 384), "float32")
    heads = TensorSpec((1, 6, 8, 64), "float32", (3072, 64, 384, 1))
    cache = TensorSpec((1, 6, 128, 64), "float32")
    values = [wide, TensorSpec((384,), "float32"), TensorSpec((384, 384), "float32"), cache, cache]
    inputs = [Input(0, "x", "input"), Input(1, "norm", "parameter"), Input(2, "weight", "parameter")]
    inputs += [Input(3, "keys", "state"), Input(4, "values", "state")]
    steps: list[Node] = []

    def add(op: str, overload: str, args: tuple[Any, ...], spec: TensorSpec | None, **more: Any) -> int:
        if spec is not None:
            values.append(spec)
        made = len(values) - 1 if spec is not None else -1
        steps.append(Node(len(steps), f"aten::{op}", overload, args, (made,), module=len(steps) % 8, source=0, **more))
        return made

    x, weight, keys, held = 0, Ref(2), Ref(3), Ref(4)
    while len(steps) < nodes:
        normed = add("native_layer_norm", "", (Ref(x), Many((384,)), Ref(1), Ref(1), 1e-5), wide)
        query = add("linear", "", (Ref(normed), weight, None), wide)
        split = add("view", "", (Ref(query), Many((1, 8, 6, 64))), wide, aliases=((len(values), query),))
        turned = add("transpose", "int", (Ref(split), 1, 2), heads, aliases=((len(values), split),))
        add("index_copy_", "", (keys, 2, keys, Ref(turned)), None, mutates=(3,))
        seen = add("scaled_dot_product_attention", "", (Ref(turned), keys, held, None, 0.0, False, 0.125), heads)
        whole = add("clone", "", (Ref(seen), Const("memory_format", "contiguous_format")), wide)
        x = add("add", "Tensor", (Ref(x), Ref(whole), 1), wide)
    made = sum(sum(value >= 0 for value in node.outputs) for node in steps[nodes:])
    steps, values = steps[:nodes], values[: len(values) - made]
    modules = tuple(Module(f"model.layers.{i}.attention", "Attention") for i in range(8))
    graph = Graph(tuple(values), tuple(inputs), tuple(steps), (len(values) - 1,), modules, ("model.py:42",))
    return graph


def fresh(graph: Graph) -> Graph:
    """The same graph without what the process remembers about it (a frozen graph is verified only once)."""
    return Graph(**{name: getattr(graph, name) for name in graph.__struct_fields__})


def median_ms(action: Callable[[Any], object], make: Callable[[], Any], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        value = make()
        start = time.perf_counter_ns()
        action(value)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e6


def measure(nodes: int, repeat: int) -> dict[str, float | int | None]:
    graph = annotate(decoder(nodes))
    scheduler = Scheduler([Device(id="gpu0", type="GPU", memory_gb=80, compute_tflops=100, network_gbps=100)])
    data, plan = encode(graph), scheduler.schedule(graph)
    packed = encode(plan)
    if decode(data) != graph or decode_plan(packed) != plan:
        raise SystemExit(f"{nodes} nodes do not come back as they were")
    bare = decoder(nodes)
    row: dict[str, float | int | None] = {"nodes": nodes, "graph_bytes": len(data), "plan_bytes": len(packed)}
    row["verify_ms"] = median_ms(verify, lambda: fresh(graph), repeat)
    row["encode_ms"] = median_ms(encode, lambda: fresh(graph), repeat)
    row["decode_ms"] = median_ms(decode, lambda: data, repeat)
    row["annotate_ms"] = median_ms(annotate, lambda: fresh(bare), repeat)
    row["schedule_ms"] = median_ms(scheduler.schedule, lambda: graph, repeat)
    row["plan_trip_ms"] = median_ms(lambda g: decode_plan(encode(scheduler.schedule(g))), lambda: graph, repeat)
    row["graph_target_ms"], row["plan_target_ms"] = GRAPH_TARGET.get(nodes), PLAN_TARGET.get(nodes)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeat", type=int, default=15, help="runs per figure (default 15; small graphs more)")
    options = parser.parse_args()
    rows = [measure(nodes, options.repeat * (10 if nodes <= 64 else 1)) for nodes in SIZES]
    if options.json:
        json.dump(rows, sys.stdout, indent=1)
        print()
    else:
        print("  nodes  graph KB  plan KB |  verify  encode  decode   both | annotate schedule  plan trip   (ms)")
        for row in rows:
            both = row["encode_ms"] + row["decode_ms"]
            print(
                f"{row['nodes']:7} {row['graph_bytes'] / 1e3:9.1f} {row['plan_bytes'] / 1e3:8.1f} |"
                f" {row['verify_ms']:7.3f} {row['encode_ms']:7.3f} {row['decode_ms']:7.3f} {both:6.2f} |"
                f" {row['annotate_ms']:8.3f} {row['schedule_ms']:8.3f} {row['plan_trip_ms']:10.3f}"
                + (f"   both < {row['graph_target_ms']:g}" if row["graph_target_ms"] else "")
                + (f"   trip < {row['plan_target_ms']:g}" if row["plan_target_ms"] else "")
            )
    missed = [
        row["nodes"]
        for row in rows
        if (row["graph_target_ms"] and row["encode_ms"] + row["decode_ms"] >= row["graph_target_ms"])
        or (row["plan_target_ms"] and row["plan_trip_ms"] >= row["plan_target_ms"])
    ]
    if missed:
        print(f"missed its target at {missed} nodes", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
