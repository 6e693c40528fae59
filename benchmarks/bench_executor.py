"""The native executor beside native eager PyTorch, one thread, in one process, with equal results.

Per step: a chain of small additions, whose kernel costs as little as any, so that what is around it shows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from genie.bindings import Prediction, parameters
from genie.graph import Graph, Input, Node, Ref, ScalarTensor, TensorSpec
from genie.graph.regions import SCAN, scan
from genie.schedule import Scheduler
from genie_backend_local import LocalBackend, LocalSession

REPEATS = 30


def chain(steps: int, step: Callable[[int, Ref, Ref], Node], values: int = 2) -> Graph:
    """``steps`` nodes, each from the last value and input 1 to the next value."""
    spec = TensorSpec((16,), "float32")
    nodes = []
    last = Ref(0)
    for number in range(steps):
        nodes.append(step(number, last, Ref(1)))
        last = Ref(values + number)
    return Graph(
        values=(spec,) * (values + steps),
        inputs=tuple(Input(value) for value in range(values)),
        steps=tuple(nodes),
        outputs=(last.value,),
    )


def plan(session: LocalSession, graph: Graph) -> tuple[int, Prediction]:
    number = session.load(Scheduler(devices=[session.device]).schedule(graph))
    return number, Prediction(len(graph.inputs), parameters(graph))


def median_us(function: Callable[[], object], per: int) -> float:
    """Microseconds per step, median of the repeats after a warm-up."""
    times = []
    for repeat in range(REPEATS + 5):
        start = time.perf_counter_ns()
        function()
        if repeat >= 5:
            times.append((time.perf_counter_ns() - start) / per / 1e3)
    return statistics.median(times)


def added(x: torch.Tensor, y: torch.Tensor, steps: int) -> torch.Tensor:
    with torch.no_grad():
        for _ in range(steps):
            x = x + y
    return x


def bench_chain(session: LocalSession, steps: int) -> dict[str, float | str]:
    """Additions; ``cpp`` is the same loop in PyTorch's own interpreter (TorchScript), with no Python per operator."""
    x, y = torch.rand(16), torch.rand(16)
    graph = chain(steps, lambda n, last, other: Node(n, "aten::add", "Tensor", (last, other, 1), (2 + n,)))
    session.upload(1, TensorSpec((16,), "float32"), x.numpy().data.cast("B"))
    session.upload(2, TensorSpec((16,), "float32"), y.numpy().data.cast("B"))
    number, prediction = plan(session, graph)
    words = [0, 1, 2, *parameters(graph)]
    next_handle = iter(range(1000, 1 << 40))

    def remote() -> None:
        words[0] = next(next_handle)
        session.execute(number, prediction.encode(words))
        session.free([words[0]])

    def eager() -> torch.Tensor:
        return added(x, y, steps)

    @torch.jit.script
    def scripted(a: torch.Tensor, b: torch.Tensor, n: int) -> torch.Tensor:
        for _ in range(n):
            a = a + b
        return a

    words[0] = 999
    session.execute(number, prediction.encode(words))
    fetched = session.fetch(999)
    equal = bytes(fetched.data) == bytes(eager().numpy().data.cast("B"))
    session.free([999])
    results: dict[str, float | str] = {"case": f"add x {steps}", "executor": median_us(remote, steps)}
    with torch.no_grad():
        results["cpp"] = median_us(lambda: scripted(x, y, steps), steps)
    results["eager"] = median_us(eager, steps)
    results["equal"] = "yes" if equal else "NO"
    session.free([1, 2])
    return results


def bench_scan(session: LocalSession, steps: int) -> dict[str, float | str]:
    """The same additions as one node: a scan whose body is one of them."""
    x, y = torch.rand(16), torch.rand(16)
    spec = TensorSpec((16,), "float32")
    body = chain(1, lambda n, last, other: Node(n, "aten::add", "Tensor", (last, other, 1), (2,)))
    graph = Graph(
        values=(spec,) * 3,
        inputs=(Input(0), Input(1)),
        steps=(Node(0, SCAN, "", scan(body, [Ref(0)], [], [Ref(1)], length=steps), (2,)),),
        outputs=(2,),
    )
    session.upload(1, spec, x.numpy().data.cast("B"))
    session.upload(2, spec, y.numpy().data.cast("B"))
    number, prediction = plan(session, graph)
    handles = iter(range(1 << 44, 1 << 45))

    def remote() -> int:
        first = next(handles)
        session.execute(number, prediction.encode([first, 1, 2, *parameters(graph)]))
        return first

    def freed() -> None:
        session.free([remote()])

    def eager() -> torch.Tensor:
        return added(x, y, steps)

    equal = bytes(session.fetch(remote()).data) == bytes(eager().numpy().data.cast("B"))
    results: dict[str, float | str] = {"case": f"add x {steps}, scanned", "executor": median_us(freed, steps)}
    results["eager"] = median_us(eager, steps)
    results["equal"] = "yes" if equal else "NO"
    session.free([1, 2])
    return results


def bench_scalars(session: LocalSession, steps: int) -> dict[str, float | str]:
    """A multiplication by a Python number that changes at every execution and every step."""
    x = torch.rand(16)
    graph = chain(
        steps,
        lambda n, last, other: Node(n, "aten::mul", "Tensor", (last, ScalarTensor("int64", n % 3 + 1, True)), (2 + n,)),
    )
    session.upload(1, TensorSpec((16,), "float32"), x.numpy().data.cast("B"))
    number, prediction = plan(session, graph)
    own = parameters(graph)
    handles = iter(range(1 << 41, 1 << 42))
    turn = 0

    def remote() -> None:
        nonlocal turn
        turn += 1
        first = next(handles)
        factors = own if turn % 2 else [word + 1 for word in own]
        session.execute(number, prediction.encode([first, 1, 1, *factors]))
        session.free([first])

    def eager() -> torch.Tensor:
        with torch.no_grad():
            z = x
            for n in range(steps):
                z = z * (n % 3 + 1)
        return z

    session.execute(number, prediction.encode([998, 1, 1, *own]))
    equal = bytes(session.fetch(998).data) == bytes(eager().numpy().data.cast("B"))
    session.free([998])
    encoding = median_us(lambda: Prediction(2, own).encode([0, 1, 1, *(word + 1 for word in own)]), steps)
    results: dict[str, float | str] = {"case": f"mul by changing number x {steps}"}
    results["executor"] = median_us(remote, steps) - encoding
    results["eager"] = median_us(eager, steps)
    results["equal"] = "yes" if equal else "NO"
    session.free([1])
    return results


def bench_call(session: LocalSession) -> list[dict[str, float | str]]:
    """What one call costs, whatever it does."""
    spec = TensorSpec((1,), "float32")
    graph = Graph(
        values=(spec, spec),
        inputs=(Input(0),),
        steps=(Node(0, "aten::neg", "", (Ref(0),), (1,)),),
        outputs=(1,),
    )
    session.upload(1, spec, bytes(4))
    number, prediction = plan(session, graph)
    handles = iter(range(1 << 43, 1 << 44))
    loops = 1000
    messages: list[tuple[int, bytes]] = []

    def prepare() -> None:
        messages.clear()
        for _ in range(loops):
            first = next(handles)
            messages.append((first, prediction.encode([first, 1])))

    def timed(look: bool) -> float:
        times = []
        for _ in range(REPEATS):
            prepare()
            start = time.perf_counter_ns()
            for first, message in messages:
                session.execute(number, message)
                if look:
                    session.fetch(first)
            times.append((time.perf_counter_ns() - start) / loops / 1e3)
            session.free([first for first, _ in messages])
        return statistics.median(times)

    execute = timed(False)
    both = timed(True)
    size = len(messages[-1][1])
    with torch.no_grad():
        x = torch.zeros(1)
        eager = median_us(lambda: [torch.neg(x) for _ in range(loops)], loops)
    session.free([1])
    return [
        {"case": f"execute of one neg ({size} bytes of bindings)", "executor": execute, "eager": eager, "equal": "-"},
        {"case": "… and fetch", "executor": both, "equal": "-"},
    ]


def bench_load(session: LocalSession) -> dict[str, float | str]:
    """A plan of 64 steps, verified and scheduled before: load alone."""
    scheduler = Scheduler(devices=[session.device])

    def adding(alpha: int) -> Graph:
        return chain(64, lambda n, last, other: Node(n, "aten::add", "Tensor", (last, other, alpha), (2 + n,)))

    plans = iter([scheduler.schedule(adding(alpha)) for alpha in range(2, 2 + REPEATS + 5)])
    return {"case": "load of 64 steps", "executor": median_us(lambda: session.load(next(plans)), 1), "equal": "-"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    backend = LocalBackend(threads=1)
    session = backend.connect(next(device for device in backend.devices() if device.id == "cpu"))
    rows = [
        bench_chain(session, options.steps),
        bench_scan(session, options.steps),
        bench_scalars(session, options.steps),
    ]
    rows += [*bench_call(session), bench_load(session)]
    backend.close()
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'µs per step or call':44} {'executor':>9} {'C++':>9} {'eager':>9}  equal")
    for row in rows:
        numbers = "".join(f" {row[key]:9.3f}" if key in row else f" {'':9}" for key in ("executor", "cpp", "eager"))
        print(f"{row['case']:44}{numbers}  {row['equal']}")


if __name__ == "__main__":
    main()
