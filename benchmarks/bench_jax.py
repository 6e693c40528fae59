"""JAX's programs through a node on this machine, beside ``jax.jit`` here, in turns.

    python benchmarks/bench_jax.py [--rounds N] [--apart] [--json FILE]

``update`` is an optimizer's step on a pytree of many small arrays, whose results are the next call's operands: what
the client spends on a call, which is all of the call that the program waits for. ``mlp`` is a network's forward pass,
with its result looked at. ``one call alone`` is the time until the call is back, after something else has had the core;
nothing is looked at; ``given`` is the same with the parameters donated. ``steady`` is a call of several in a row, as a
training loop makes them: each has 100 arrays of parameters, results of the call before, and 100 of gradients. ``loop``
is many of those steps in a loop within one program. ``lm`` is a small transformer's forward pass, ``lm, 1 of 128`` and
``lm, 1 of 32`` the same of one sequence of so many tokens, ``train`` a step of training it, each waited for: by the
node's engine xla, by its operators, and by ``jax.jit`` here, all on the same cores. ``lm, 1 of 32: several`` is many of
those calls, of which the last is waited for. Least is the least of the rounds: what other work on the machine disturbs
least.

The node has as many threads as the machine has cores, and shares all of them with this process, whose caches are cold
after every call. With ``--apart`` the node has half of the cores for itself, this process with ``jax.jit`` the others:
as many for each, as where they are two machines.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import jax_programs
import measure
import nodes
import numpy as np

LEAVES = 100
TURNS = 50
IN_A_ROW = 20


def update(parameters: Any, gradients: Any) -> Any:
    return jax.tree_util.tree_map(lambda p, g: p - 0.01 * g, parameters, gradients)


def loop(parameters: Any, gradients: Any) -> Any:
    return jax.lax.fori_loop(0, jnp.asarray(TURNS), lambda _, held: update(held, gradients), parameters)


def mlp(parameters: Any, x: Any) -> Any:
    for weight, bias in parameters:
        x = jnp.tanh(x @ weight + bias)
    return x


def stepping(step: Callable[..., Any], parameters: Any, gradients: Any) -> Callable[[], None]:
    held = [step(parameters, gradients)]

    def once() -> None:
        held[0] = step(held[0], gradients)

    return once


def in_a_row(once: Callable[[], None]) -> Callable[[], None]:
    def several() -> None:
        for _ in range(IN_A_ROW):
            once()

    return several


def waited(program: Callable[..., Any], *operands: Any) -> Callable[[], None]:
    def once() -> None:
        program(*operands).block_until_ready()

    return once


def last_waited(program: Callable[..., Any], *operands: Any) -> Callable[[], None]:
    def several() -> None:
        for _ in range(IN_A_ROW - 1):
            program(*operands)
        program(*operands).block_until_ready()

    return several


def training(step: Callable[..., Any], parameters: Any, momentum: Any, ids: Any) -> Callable[[], None]:
    held = [parameters, momentum]

    def once() -> None:
        *held[:], loss = step(*held, ids)
        loss.block_until_ready()

    return once


def engines(rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, and what they come to."""
    import genie_jax

    generator = np.random.default_rng(1)
    parameters, ids = jax_programs.lm_parameters(generator), jnp.asarray(jax_programs.tokens(generator))
    momentum = jax.tree_util.tree_map(jnp.zeros_like, parameters)
    result: dict[str, Any] = {}
    rows = []
    for name, function, operands in (
        ("lm", jax_programs.lm, (parameters, ids)),
        ("lm, 1 of 128", jax_programs.lm, (parameters, ids[:1])),
        ("lm, 1 of 32", jax_programs.lm, (parameters, ids[:1, :32])),
        ("lm, 1 of 32: several", jax_programs.lm, (parameters, ids[:1, :32])),
        ("train", jax_programs.train, (parameters, momentum, ids)),
    ):
        xla, aten = (genie_jax.remote(function, engine=engine) for engine in ("xla", "aten"))
        programs = {"jax.jit": jax.jit(function), "xla": xla, "aten": aten}
        began = time.perf_counter()
        far = jax.tree_util.tree_leaves(xla(*operands))[-1]
        far = np.asarray(far)
        first = time.perf_counter() - began
        near = np.asarray(jax.tree_util.tree_leaves(programs["jax.jit"](*operands))[-1])
        make = training if name == "train" else last_waited if name.endswith("several") else waited
        steps = {who: make(each, *operands) for who, each in programs.items()}
        slow = measure.in_turns({who: steps[who] for who in ("jax.jit", "aten")}, max(rounds // 10, 3), warm=1)
        quick = measure.in_turns({who: steps[who] for who in ("jax.jit", "xla")}, rounds, warm=2)
        times = {**quick, "aten": slow["aten"]}
        rows += [
            {"what": name, "who": who, "ms": measure.milliseconds(its), "least": 1e3 * min(its)}
            for who, its in times.items()
        ]
        result[name] = {
            "xla": measure.ratio(quick, "xla", "jax.jit"),
            "aten": measure.ratio(slow, "aten", "jax.jit"),
            "xla_least": min(quick["xla"]) / min(quick["jax.jit"]),
            "aten_least": min(slow["aten"]) / min(slow["jax.jit"]),
            "first_call_s": first,
            "largest_difference": float(np.abs(far - near).max()),
            "nodes": len(aten.latest.steps),
            "artifact_bytes": len(xla.latest.artifacts[0].data),
        }
    return rows, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--apart", action="store_true", help="the node has half of the cores for itself")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ours = theirs = sorted(os.sched_getaffinity(0))
    if options.apart:
        ours, theirs = ours[: len(ours) // 2], ours[len(ours) // 2 :]
        if not ours:
            parser.error("--apart needs two cores")
        os.sched_setaffinity(0, ours)  # before JAX counts them

    import genie_jax

    import genie
    from genie.plugins import registry

    generator = np.random.default_rng(0)
    tree = {f"layer{i}": jnp.asarray(generator.normal(size=(8,)).astype(np.float32)) for i in range(LEAVES)}
    gradients = jax.tree_util.tree_map(lambda p: p * 0.1, tree)
    layers = [
        (jnp.asarray(generator.normal(size=(512, 512)).astype(np.float32) * 0.05), jnp.zeros(512)) for _ in range(6)
    ]
    x = generator.normal(size=(256, 512)).astype(np.float32)

    with nodes.node(cores=theirs) as address:
        genie.init(nodes=[address])
        remote_update, local_update = genie_jax.remote(update, engine="aten"), jax.jit(update)
        remote_mlp, local_mlp = genie_jax.remote(mlp, engine="aten"), jax.jit(mlp)
        far, near = np.asarray(remote_mlp(layers, x)), np.asarray(local_mlp(layers, x))
        given = genie_jax.remote(update, donate_argnums=0, engine="aten")
        calls = measure.in_turns(
            {
                "remote": stepping(remote_update, tree, gradients),
                "given": stepping(given, remote_update(tree, gradients), gradients),
                "jax.jit": stepping(local_update, tree, gradients),
            },
            options.rounds,
            warm=5,
        )
        steady = measure.in_turns(
            {
                "remote": in_a_row(stepping(remote_update, tree, gradients)),
                "given": in_a_row(stepping(given, remote_update(tree, gradients), gradients)),
                "jax.jit": in_a_row(stepping(local_update, tree, gradients)),
            },
            options.rounds,
            warm=2,
        )
        remote_loop, local_loop = genie_jax.remote(loop, engine="aten"), jax.jit(loop)
        loops = measure.in_turns(
            {
                "remote": lambda: jax.block_until_ready(remote_loop(tree, gradients)),
                "jax.jit": lambda: jax.block_until_ready(local_loop(tree, gradients)),
            },
            options.rounds,
            warm=3,
        )
        before = genie.get_stats()
        whole = measure.in_turns(
            {
                "remote": lambda: np.asarray(remote_mlp(layers, x)),
                "jax.jit": lambda: np.asarray(local_mlp(layers, x)),
            },
            options.rounds,
            warm=3,
        )
        after = genie.get_stats()

    rows = [
        {"what": f"update, {LEAVES} leaves: one call alone", "who": who, "ms": measure.milliseconds(calls[who])}
        for who in calls
    ]
    rows += [
        {"what": f"update, {LEAVES} leaves: steady", "who": who, "ms": measure.milliseconds(steady[who]) / IN_A_ROW}
        for who in steady
    ]
    rows += [
        {"what": f"loop: {TURNS} updates, waited for", "who": who, "ms": measure.milliseconds(loops[who])}
        for who in loops
    ]
    rows += [{"what": "mlp: with its result", "who": who, "ms": measure.milliseconds(whole[who])} for who in whole]
    print(measure.table(rows))
    by_engine, compared = [], {}
    if "compiler" in {offer.kind for offer in registry.offers()}:
        with nodes.node(threads=len(theirs), cores=theirs) as address:
            genie.init(nodes=[address])
            by_engine, compared = engines(options.rounds)
        print(measure.table(by_engine))
    else:
        print("engine xla: not measured, genie-compiler-xla is not installed")
    result = {
        "cores": {"client": ours, "node": theirs},
        "engines": compared,
        "leaves": LEAVES,
        "call_us": 1e3 * measure.milliseconds(calls["remote"]),
        "given_call_us": 1e3 * measure.milliseconds(calls["given"]),
        "steady_call_us": 1e3 * measure.milliseconds(steady["remote"]) / IN_A_ROW,
        "steady_given_call_us": 1e3 * measure.milliseconds(steady["given"]) / IN_A_ROW,
        "call": measure.ratio(calls, "remote", "jax.jit"),
        "loop": measure.ratio(loops, "remote", "jax.jit"),
        "mlp": measure.ratio(whole, "remote", "jax.jit"),
        "largest_difference": float(np.abs(far - near).max()),
        "bytes_sent_per_mlp_call": (after["bytes_sent"] - before["bytes_sent"]) / (options.rounds + 3),
        "bytes_of_parameters": sum(int(each.nbytes) for each in jax.tree_util.tree_leaves(layers)),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
