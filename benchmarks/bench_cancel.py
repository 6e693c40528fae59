"""What it costs that work can be stopped: small operators with and without a limit of an execution's time.

    python benchmarks/bench_cancel.py [--steps 2000] [--rounds 41] [--json]

Both sessions are of one process and take turns; the operators work on two floats, so that what is around them weighs
most. Besides, how long it takes from asking to the end of an execution whose operators take some milliseconds each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time

from measure import Result, in_turns, ratio, table

from genie.bindings import Prediction, parameters
from genie.graph import Graph, Input, Node, Ref, TensorSpec
from genie.schedule import Scheduler
from genie_backend_local import LocalBackend, LocalSession

_MOST_SECONDS = 60.0  # until work begins


def chain(target: str, steps: int, shape: tuple[int, ...], binary: bool) -> Graph:
    operation, _, overload = target.partition(".")
    values = (TensorSpec(shape, "float32"),) * (steps + 1)
    made = tuple(
        Node(step, operation, overload, (Ref(step), Ref(0)) if binary else (Ref(step),), (step + 1,))
        for step in range(steps)
    )
    return Graph(values, (Input(0),), made, (steps,))


class Client:
    def __init__(self, session: LocalSession, graph: Graph) -> None:
        self.session = session
        session.profile(0.0)  # nothing is timed
        spec = graph.values[0]
        session.upload(1, spec, bytes(4 * spec.shape[0] * (spec.shape[1] if len(spec.shape) > 1 else 1)))
        self._plan = session.load(Scheduler(devices=[session.device]).schedule(graph))
        self._words = parameters(graph)
        self._next = 2

    def execute(self) -> None:
        handle, self._next = self._next, self._next + 1
        bindings = Prediction(1, self._words).encode([handle, 1, *self._words], anew=True)
        self.session.execute(self._plan, bindings)
        self.session.free([handle])


def measure(steps: int, rounds: int) -> Result:
    small = chain("aten::neg", steps, (2,), binary=False)
    backends = {"no limit": LocalBackend(batching=False), "limit": LocalBackend(batching=False, execution_seconds=3600)}
    clients = {name: Client(backend.connect(backend.devices()[-1]), small) for name, backend in backends.items()}
    times = in_turns({name: client.execute for name, client in clients.items()}, rounds, warm=3)
    result: Result = {f"{name}, ns per operator": statistics.median(each) / steps * 1e9 for name, each in times.items()}
    result["limit to none"] = ratio(times, "limit", "no limit")
    result["ms from asking to the end"] = statistics.median(stop(backends["no limit"]) for _ in range(5)) * 1e3
    for backend in backends.values():
        backend.close()
    return result


def stop(backend: LocalBackend) -> float:
    """Seconds."""
    client = Client(backend.connect(backend.devices()[-1]), chain("aten::mm", 5000, (512, 512), binary=True))
    thread = threading.Thread(target=client.execute)
    thread.start()
    _computed(thread, 0.1)
    asked = time.perf_counter()
    client.session.cancel("measured")
    thread.join()
    return time.perf_counter() - asked


def _computed(thread: threading.Thread, seconds: float) -> None:
    """Wait until the thread has had so much of a core: it is among its operators then."""
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    deadline = time.monotonic() + _MOST_SECONDS
    while time.clock_gettime(clock) < seconds:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the work that was to be stopped had ended, or did not begin")
        time.sleep(0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.steps, options.rounds)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    pairs = result["limit to none"]
    shown = {
        **result,
        "limit to none": f"{pairs['ratio']:.3f} ({pairs['pair_ratio_low']:.3f}–{pairs['pair_ratio_high']:.3f})",
    }
    print(table([{"": name, "median": value} for name, value in shown.items()]))


if __name__ == "__main__":
    main()
