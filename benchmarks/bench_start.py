"""What starting costs: importing Genie, and moving weights that the node has seen before.

    python benchmarks/bench_start.py [--json] [--rounds 9] [--workload smollm2]

* ``import genie`` in fresh interpreters, beside an interpreter that imports nothing; that no framework comes with it
  is checked.
* ``model.to("remote_accelerator:0")`` in one process, then in a second one with the same weights: bytes sent. Both
  fetch all weights again and compare them with the model's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from measure import table
from nodes import node

# From the requirements.
TARGET_IMPORT_SECONDS = 0.15
TARGET_SECOND_SHARE = 0.01

_IMPORT = """
import sys, time
start, used = time.perf_counter(), time.process_time()
import genie
print(time.perf_counter() - start, time.process_time() - used)
print(int(any(name in sys.modules for name in ("torch", "jax", "genie_pytorch"))))
"""


def importing(rounds: int) -> dict[str, Any]:
    """Seconds of the import alone, and of whole interpreters with and without it; medians."""
    inside, used, empty, whole, heavy = [], [], [], [], False
    for number in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True, timeout=60)
        bare = time.perf_counter() - start
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", _IMPORT], check=True, timeout=60, stdout=subprocess.PIPE)
        full = time.perf_counter() - start
        took, cpu, brought = done.stdout.split()
        heavy = heavy or bool(int(brought))
        if number:  # the first reads files from the disk
            inside.append(float(took))
            used.append(float(cpu))
            empty.append(bare)
            whole.append(full)
    return {
        "import_seconds": statistics.median(inside),
        "import_seconds_best": min(inside),
        "import_cpu_seconds": statistics.median(used),
        "empty_interpreter_seconds": statistics.median(empty),
        "interpreter_with_genie_seconds": statistics.median(whole),
        "imports_a_framework": heavy,
    }


def move(name: str) -> dict[str, Any]:
    """In a client's process: move the workload's model, and check what arrived."""
    import copy

    import torch
    import workloads

    import genie
    import genie_pytorch  # noqa: F401  (makes the device known)

    torch.set_num_threads(1)
    model = workloads.by_name(name).model()
    expected = copy.deepcopy(model)
    genie.devices()  # connected: what is timed is moving
    before = genie.get_stats()
    start = time.perf_counter()
    model.to("remote_accelerator:0")
    torch.remote_accelerator.synchronize()
    seconds = time.perf_counter() - start
    after = genie.get_stats()
    there, here = model.state_dict(), expected.state_dict()
    return {
        "seconds": seconds,
        "weight_bytes": sum(each.nbytes for each in (*expected.parameters(), *expected.buffers())),
        "bytes_sent": after["bytes_sent"] - before.get("bytes_sent", 0),
        "bytes_received": after["bytes_received"] - before.get("bytes_received", 0),
        "equal": there.keys() == here.keys() and all(torch.equal(there[key].cpu(), here[key]) for key in here),
    }


def move_in_own_process(name: str, address: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--move", name],
        env={**os.environ, "GENIE_NODES": address},
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    )
    return dict(json.loads(done.stdout))


def moving(name: str, device: str) -> dict[str, Any]:
    """The same weights from two processes, one after the other."""
    with node(device) as address:
        first, second = (move_in_own_process(name, address) for _ in range(2))
    return {
        "workload": name,
        "first": first,
        "second": second,
        "second_share": second["bytes_sent"] / second["weight_bytes"],
    }


def run(rounds: int = 9, workload: str = "smollm2", device: str = "cpu") -> dict[str, Any]:
    imports, moves = importing(rounds), moving(workload, device)
    missed = []
    if imports["import_seconds"] > TARGET_IMPORT_SECONDS or imports["imports_a_framework"]:
        missed.append(f"import genie: {imports['import_seconds']:.3f} s, target {TARGET_IMPORT_SECONDS}")
    if moves["second_share"] > TARGET_SECOND_SHARE:
        missed.append(f"second client: {moves['second_share']:.2%} of the weights, target {TARGET_SECOND_SHARE:.0%}")
    equal = moves["first"]["equal"] and moves["second"]["equal"]
    return {"import": imports, "move": moves, "equal": equal, "targets_missed": missed}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workload", default="smollm2", help="gpt2, smollm2, bert, llama")
    parser.add_argument("--device", default="cpu", help="of the node")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--move", metavar="WORKLOAD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.move:
        print(json.dumps(move(options.move)))
        return 0
    result = run(options.rounds, options.workload, options.device)
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result["import"].items():
            print(f"{key:<34}{value:>8.3f}" if isinstance(value, float) else f"{key:<34}{value!s:>8}")
        print()
        print(table([{"client": name, **result["move"][name]} for name in ("first", "second")]))
        print(f"\nthe second client sent {result['move']['second_share']:.4%} of the weights' bytes")
        for each in result["targets_missed"]:
            print(f"target missed: {each}")
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
