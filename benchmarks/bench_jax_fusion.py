"""What fusing operators with PyTorch's compiler would be worth to JAX's programs on a node without XLA.

    python benchmarks/bench_jax_fusion.py [--rounds N] [--json FILE]

The graph of a small transformer's forward pass, and of a step of training it: run by the node's executor as it is, made
one function of ``torch.compile`` (inductor), and by ``jax.jit``, in this process, in turns, with one thread per core.
``compile_s`` is what the first call of the compiled function takes, with nothing compiled before; it needs a C++
compiler. Results are compared bit by bit with the executor's, and by their largest difference.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # three pools of threads take turns: none keeps a core

import jax
import jax.numpy as jnp
import jax_programs
import measure
import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from genie.graph import Arg, Graph, ScalarTensor
from genie_backend_local.reference import Reference


def function_of(graph: Graph) -> Callable[..., list[torch.Tensor]]:
    """The graph's steps, called one after the other. Without regions, random numbers and writes."""
    reference = Reference()

    def argument(arg: Arg, values: Mapping[int, Any]) -> Any:
        if isinstance(arg, ScalarTensor):  # a number in a tensor's place, of which tracing makes none
            return torch.tensor(arg.number, dtype=getattr(torch, arg.dtype))
        return reference.argument(arg, values)

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        values: dict[int, Any] = {entry.value: each for entry, each in zip(graph.inputs, inputs, strict=True)}
        for node in graph.steps:
            library, name = node.operation.split("::")
            operator = getattr(getattr(getattr(torch.ops, library), name), node.overload or "default")
            formals = operator._schema.arguments
            given = [argument(arg, values) for arg in node.args]
            keywords = {each.name: arg for each, arg in zip(formals, given, strict=False) if each.kwarg_only}
            positional = [arg for each, arg in zip(formals, given, strict=False) if not each.kwarg_only]
            made = operator(*positional, **keywords)
            several = made if isinstance(made, tuple | list) else (made,)
            values.update({value: one for value, one in zip(node.outputs, several, strict=True) if value >= 0})
        return [values[value] for value in graph.outputs]

    return run


def waited(results: Any) -> None:
    """Until they are there. Nobody looks at them: torch.compile's are not looked at, either."""
    for each in jax.tree_util.tree_leaves(results):
        each.block_until_ready()


def leaves(results: Any) -> list[np.ndarray]:
    return [np.asarray(each) for each in jax.tree_util.tree_leaves(results)]


def same(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> dict[str, Any]:
    pairs = list(zip(one, other, strict=True))
    return {
        "same_bits": all(a.tobytes() == b.tobytes() for a, b in pairs),
        "largest_difference": max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fusion-", ignore_cleanup_errors=True) as nothing_of_an_earlier_run:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = nothing_of_an_earlier_run
        rows, found = measured(options.rounds)
    print(measure.table(rows))
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measured(rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, and what they come to."""
    import genie_jax

    import genie

    torch.set_num_threads(os.cpu_count() or 1)
    genie.init(backend="local")
    generator = np.random.default_rng(1)
    parameters, ids = jax_programs.lm_parameters(generator), jnp.asarray(jax_programs.tokens(generator))
    momentum = jax.tree_util.tree_map(jnp.zeros_like, parameters)
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for name, function, operands in (
        ("lm", jax_programs.lm, (parameters, ids)),
        ("train", jax_programs.train, (parameters, momentum, ids)),
    ):
        remote, local = genie_jax.remote(function, engine="aten"), jax.jit(function)
        far, near = leaves(remote(*operands)), leaves(local(*operands))
        graph = remote.latest
        inputs = [torch.from_numpy(each.copy()) for each in leaves(operands)]
        with torch.no_grad():
            plain = function_of(graph)
            compiled = torch.compile(make_fx(plain)(*inputs), fullgraph=True)
            began = time.perf_counter()
            made = compiled(*inputs)
            seconds = time.perf_counter() - began
            times = measure.in_turns(
                {
                    "executor": lambda: waited(remote(*operands)),  # noqa: B023  (called within the turn)
                    "torch.compile": lambda: compiled(*inputs),  # noqa: B023
                    "jax.jit": lambda: waited(local(*operands)),  # noqa: B023
                },
                rounds,
                warm=3,
            )
        rows += [{"what": name, "who": who, "ms": measure.milliseconds(its)} for who, its in times.items()]
        found[name] = {
            "nodes": len(graph.steps),
            "compile_s": seconds,
            "beside_the_executor": measure.ratio(times, "torch.compile", "executor"),
            "executor_beside_jit": measure.ratio(times, "executor", "jax.jit"),
            "compiled_beside_jit": measure.ratio(times, "torch.compile", "jax.jit"),
            "executor": same(far, [each.numpy() for each in plain(*inputs)]),
            "compiled": same(far, [each.numpy() for each in made]),
            "jax": same(far, near),
        }
    return rows, found


if __name__ == "__main__":
    main()
