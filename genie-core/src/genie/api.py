"""The verbs. Each is capture → annotate → schedule → execute, or a part of it, over the process's runtime."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from genie import config, latest, runtime, tracing
from genie.device import Cluster, Device
from genie.errors import CaptureError, ConfigError
from genie.graph import Graph, TensorSpec
from genie.host import HostValue, flat, host_value
from genie.interfaces import (
    Backend,
    CostModel,
    Engine,
    Frontend,
    Generating,
    Launches,
    PatternMatcher,
    PlacementStrategy,
    Policy,
    Transport,
)
from genie.plan import ExecutionPlan
from genie.plan import verify as verify_plan
from genie.plugins import registry

_T = TypeVar("_T")

# There before they happen.
_COUNTED_FROM_ZERO = ("copies_dropped", "loop_iterations", "replans", "values_carried", "values_moved")

# --- the runtime ---------------------------------------------------------------------------------


def init(**settings: Any) -> None:
    """Connect, with settings by call > environment > file (fields of :class:`genie.config.Settings`).

    Optional: the first use connects too. Again with the same settings it does nothing; with others it raises
    :class:`ConfigError`.

    >>> genie.init(nodes=["10.0.0.10:8888"], timeout=30)  # doctest: +SKIP
    """
    runtime.start(settings)


def init_cluster(config: str | Path | Cluster = "cluster.yaml", rdma: bool = False, **settings: Any) -> None:
    """:func:`init` with the cluster a file describes, and ``settings`` as there. ``rdma`` insists on the kernel-bypass
    backend, ``dpdk``."""
    if not isinstance(rdma, bool):
        raise ConfigError(f"rdma must be True or False, not {rdma!r}")
    if "cluster" in settings:
        raise ConfigError("init_cluster() is given two clusters", hint="the first argument is the cluster")
    if rdma and settings.setdefault("backend", "dpdk") != "dpdk":
        raise ConfigError(f"rdma insists on the backend 'dpdk', backend={settings['backend']!r} on another")
    init(cluster=config, **settings)


def shutdown() -> None:
    """End all sessions. Values on devices are gone; the next use starts anew."""
    runtime.shutdown()
    _compiled.clear()


def cancel() -> None:
    """Take back what nodes were asked and have not done: they stop before their next operator. Ctrl-C alone gives the
    prompt back and lets them go on. Values that are not made then raise :class:`genie.errors.Cancelled` when they are
    looked at, and so do those that were to be written to, a model's parameters perhaps. Sessions go on.

    To be called by the thread that looks at values, after Ctrl-C: another one waits for a look to end.
    """
    runtime.cancel()


def on_shutdown(callback: Callable[[], None]) -> None:
    """Have ``callback`` called at every shutdown, before sessions end."""
    runtime.on_shutdown(callback)


def set_backend(name: str) -> None:
    """Choose the backend (``"local"``, ``"tcp"``, ``"dpdk,tcp"``, …) before the first use."""
    for each in name.split(","):
        registry.check("backend", each.strip())
    runtime.change(backend=name)


def set_log_level(level: str) -> None:
    """``"DEBUG"``, ``"INFO"``, ``"WARNING"``, ``"ERROR"`` or ``"CRITICAL"``; at any time."""
    runtime.set_log_level(level)


def settings() -> config.Settings:
    """The settings in force."""
    return runtime.current().settings


def get_stats() -> dict[str, Any]:
    """Counters of this process: operators, graph nodes, syncs, bytes, plan hits, ns per operator. ``transports`` says
    of each session with a node what carries it: ``node``, ``device``, ``transport``, ``protection``, what keeps others
    from its data, and ``passed_over``, which better ones do not, and why."""
    now = runtime.current()
    carried = [msgspec.to_builtins(each) for each in now.carried()]
    return {**dict.fromkeys(_COUNTED_FROM_ZERO, 0), **now.stats(), "transports": carried}


def device_count() -> int:
    """How many devices ``remote_accelerator:i`` counts."""
    return len(devices())


def devices() -> tuple[Device, ...]:
    return runtime.current().devices()


def engine(index: int | None = None, *, backend: str | None = None) -> Engine:
    """For frontends: the stages composed for device ``index``; connects on first use. ``None``, and the number of
    devices, is all of them: the scheduler chooses. ``backend``, by default the setting, as for :func:`run`."""
    return runtime.current().engine(index, _named("backend", backend))


def use_frontend(name: str) -> None:
    """For frontends that a program may import by themselves: :func:`get_graph` then asks the one named, too."""
    runtime.use_frontend(name)


# --- capture -------------------------------------------------------------------------------------

_thread = threading.local()


@contextlib.contextmanager
def capture() -> Iterator[Any]:
    """Capture this thread's operators, on no device in particular. Nests; ends on exceptions too."""
    with runtime.capturing().capture() as captured:
        _thread.depth = getattr(_thread, "depth", 0) + 1
        try:
            yield captured
        finally:
            _thread.depth -= 1


def is_capturing() -> bool:
    """Whether this thread is inside :func:`capture`."""
    return getattr(_thread, "depth", 0) > 0


def get_graph() -> Graph:
    """The latest graph this thread captured, whichever way. Raises :class:`CaptureError` if there is none."""
    if (graph := latest.graph()) is not None:
        return graph
    raise CaptureError("this thread has captured no graph", hint="run something inside `with genie.capture():`")


# --- the stages ----------------------------------------------------------------------------------


def annotate(graph: Graph) -> Graph:
    """A new graph that says what its nodes mean, by all installed patterns."""
    return runtime.current().annotated(graph)


def execute_local(plan: ExecutionPlan, inputs: Sequence[Any], frontend: str | None = None) -> list[Any]:
    """Run a plan in this process. ``inputs`` as for :func:`execute`."""
    runtime.current()
    with tracing.call("genie.execute_local"):
        return _execute(plan, inputs, frontend, "local")


def execute(plan: ExecutionPlan, inputs: Sequence[Any], frontend: str | None = None) -> list[Any]:
    """Run a plan on the cluster and fetch its outputs.

    An input is a framework's tensor, a :class:`HostValue`, a pair of :class:`TensorSpec` and bytes, or anything
    with the buffer protocol. Outputs are tensors of the inputs' framework (or of the one named), else
    :class:`HostValue`.
    """
    runtime.current()
    with tracing.call("genie.execute"):
        return _execute(plan, inputs, frontend, "")


def run(
    program: Callable[..., _T],
    *args: Any,
    backend: str | None = None,
    devices: Sequence[Device] | None = None,
    policy: str | None = None,
    frontend: str | None = None,
    **kwargs: Any,
) -> _T:
    """Capture → annotate → schedule → execute in one call; the next call with like arguments reuses the plan."""
    runtime.current()  # settings say whether it is traced
    with tracing.call("genie.run", program=type(program).__name__):
        return compile(program, backend=backend, devices=devices, policy=policy, frontend=frontend)(*args, **kwargs)


def map(
    program: Callable[..., _T],
    inputs: Iterable[Any],
    *,
    in_flight: int | None = None,
    backend: str | None = None,
    devices: Sequence[Device] | None = None,
    policy: str | None = "max_throughput",
    frontend: str | None = None,
) -> Iterator[_T]:
    """The program over a stream of inputs: its results, in order, while later inputs are under way.

    An input is the program's one argument, or a tuple of all. Up to ``in_flight`` calls (default: two per device) are
    under way at once: where the plan has stages on several devices, those work side by side. A call that fails, or an
    input that cannot be had, raises when its result is due, after those before it; what is behind it is dropped.

    >>> for scores in genie.map(model, batches):  # doctest: +SKIP
    ...     print(scores.argmax(-1))
    """
    its = runtime.frontend(frontend or "", program)
    called = compile(program, backend=backend, devices=devices, policy=policy, frontend=frontend)
    if not isinstance(its, Launches):
        raise CaptureError(f"the frontend {its.name!r} waits for each result", hint="call the program in a loop")
    most = in_flight if in_flight is not None else 2 * max(len(devices or runtime.current().devices(backend or "")), 1)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigError(f"in_flight must be a number from 1 on, not {in_flight!r}")
    return _mapped(its, called, inputs, most)


def _mapped(its: Launches, called: Callable[..., _T], inputs: Iterable[Any], most: int) -> Iterator[_T]:
    under_way: deque[Callable[[], _T]] = deque()
    more = iter(inputs)
    failure: Exception | None = None
    while failure is None:
        try:
            each = next(more)
            under_way.append(its.launch(called, *(each if isinstance(each, tuple) else (each,))))
        except StopIteration:
            break
        except Exception as error:  # its turn comes after those under way
            failure = error
        if len(under_way) >= most:
            yield under_way.popleft()()
    while under_way:
        yield under_way.popleft()()
    if failure is not None:
        raise failure


def compile(
    program: Callable[..., _T],
    *,
    backend: str | None = None,
    devices: Sequence[Device] | None = None,
    policy: str | None = None,
    frontend: str | None = None,
) -> Callable[..., _T]:
    """The program captured whole, to be called like it. The same program again is the same compiled one."""
    if not callable(program):
        raise ConfigError(f"the program is not to be called: {program!r}", hint="a module or a function")
    its = runtime.frontend(frontend or "", program)
    target = _target(backend, devices, policy)
    key = (_identity(program), its.name, id(target))
    with _compiling:
        if key not in _compiled:
            while len(_compiled) >= _LARGEST_COMPILED:
                del _compiled[next(iter(_compiled))]
            _compiled[key] = (program, its.compile(program, target))
        return _compiled[key][1]


def generate(
    program: Any,
    ids: Any,
    *,
    offload: bool | None = None,
    stream: bool = False,
    backend: str | None = None,
    devices: Sequence[Device] | None = None,
    policy: str | None = None,
    frontend: str | None = None,
    **options: Any,
) -> Any:
    """Tokens of a language model, with the loop over them on the node: it runs step after step by itself and sends
    each token as it is made, so that a slow link does not cost a round trip per token.

    ``program`` is a model of Hugging Face's, whose own ``generate`` prepares everything and whose result this is, or
    a callable that gives logits for ids of shape (batch, length). It may be on the CPU or on the device already. The
    result is where ``ids`` are. ``options`` are those of the model's ``generate`` (``max_new_tokens``, ``do_sample``,
    ``temperature``, ``top_k``, ``top_p``, ``repetition_penalty``, ``eos_token_id``, ``pad_token_id``, ``streamer`` …;
    for a callable, these). With ``stream`` the result is an iterator that gives the tokens of each step as they come.
    ``offload=False`` (default: the setting ``decode_loop``) runs step by step, and so does what cannot be looped,
    which is logged with the reason; tokens are the same. Raises :class:`ConfigError` for options out of range.

    >>> genie.generate(model, ids, max_new_tokens=64, do_sample=True, top_p=0.9)  # doctest: +SKIP
    """
    its = runtime.frontend(frontend or "", program)
    if not isinstance(its, Generating):
        raise ConfigError(f"the frontend {its.name!r} generates no tokens")
    target = _target(backend, devices, policy)
    loops = runtime.current().settings.decode_loop if offload is None else offload
    with tracing.call("genie.generate", program=type(program).__name__):
        return its.generate(program, ids, target, offload=loops, stream=stream, options=options)


# --- extension -----------------------------------------------------------------------------------


def register_pattern(pattern: PatternMatcher, name: str | None = None) -> None:
    """Have ``pattern`` run on every graph from now on."""
    registry.register("pattern", name or getattr(pattern, "name", "") or type(pattern).__name__, lambda _: pattern)


def register_backend(name: str, factory: Callable[[config.Settings], Backend]) -> None:
    registry.register("backend", name, factory)


def register_transport(name: str, factory: Callable[[config.Settings], Transport]) -> None:
    registry.register("transport", name, factory)


def register_frontend(name: str, factory: Callable[[config.Settings], Frontend]) -> None:
    registry.register("frontend", name, factory)
    runtime.forget_frontend(name)


def register_cost_model(name: str, factory: Callable[[config.Settings], CostModel]) -> None:
    registry.register("cost_model", name, factory)


def register_placement_strategy(name: str, factory: Callable[[config.Settings], PlacementStrategy]) -> None:
    registry.register("placement_strategy", name, factory)


def register_policy(name: str, factory: Callable[[config.Settings], Policy]) -> None:
    registry.register("policy", name, factory)


# --- helpers -------------------------------------------------------------------------------------

# Strong references keep identities from being reused, so the number of programs kept is bounded.
_LARGEST_COMPILED = 16
_compiled: dict[Any, tuple[Any, Callable[..., Any]]] = {}
_compiling = threading.RLock()


def _identity(program: object) -> tuple[int, ...]:
    owner, function = getattr(program, "__self__", None), getattr(program, "__func__", None)
    # A bound method is a new object at each look.
    return (id(owner), id(function)) if owner is not None and function is not None else (id(program),)


def _target(backend: object, devices: object, policy: object) -> Engine:
    """The engine of ``devices`` (default: all there are)."""
    its, wanted = _named("backend", backend), _named("policy", policy)
    now = runtime.current()
    if devices is None:
        return now.engine(None, its, wanted)
    if isinstance(devices, str | Device) or not isinstance(devices, Sequence):
        raise ConfigError(f"devices= must be a list of devices, not {devices!r}", hint="a device is one, or its id")
    if not devices:
        raise ConfigError("devices= names no device", hint="leave it out to use the configured ones")
    if (
        not now.connected
        and not now.settings.nodes
        and all(isinstance(each, Device) and each.address for each in devices)
    ):
        now = runtime.change(cluster=Cluster(devices=tuple(devices), backend=its or "tcp"))
    indices = dict.fromkeys(now.index_of(_device(device, now, its), its) for device in devices)
    return now.spread(tuple(indices), its, wanted)


def _named(kind: Literal["backend", "policy"], name: object) -> str:
    """What a call chooses by name; "" leaves it to the settings."""
    if isinstance(name, str):
        return name
    if name is not None:
        registry.check(kind, name)  # which refuses it
    return ""


def _device(device: object, now: runtime.Runtime, backend: str) -> Device:
    """A device of the call, which may be named by its id."""
    if isinstance(device, Device):
        return device
    here = now.devices(backend)
    found = next((each for each in here if each.id == device), None)
    if found is None:
        names = ", ".join(each.id for each in here)
        raise ConfigError(f"devices= has {device!r}, which is no device", hint=f"devices: {names}")
    return found


def _execute(plan: ExecutionPlan, inputs: Sequence[Any], frontend: str | None, backend: str) -> list[Any]:
    verify_plan(plan)
    now = runtime.current()
    used = {made.device for made in plan.decisions} or {0}
    devices = [plan.devices[number] for number in sorted(used)] if plan.devices else [None]
    # A plan for several devices needs the very ones: what was decided holds for no others. So does one that was made
    # for some that are here and some that are not: the program means these.
    exact = len(devices) > 1 or any(now.has(device, backend) for device in plan.devices)
    indices = tuple(now.index_of(device, backend, exact) for device in devices)
    given = [_to_host(value) for value in inputs]
    values = now.executor(indices, backend).run(plan, [value for value, _ in given])
    its = runtime.frontend(frontend) if frontend else next((its for _, its in given if its is not None), None)
    return [its.from_host(value.spec, value.data) for value in values] if its is not None else list(values)


def _to_host(value: object) -> tuple[HostValue, Frontend | None]:
    match value:
        case HostValue():
            return value, None
        case (TensorSpec() as spec, bytes() | bytearray() | memoryview() as data):
            return HostValue(spec, flat(data)), None
    its = next((its for its in runtime.loaded_frontends() if its.accepts(value)), None)
    if its is None:
        try:
            memoryview(value)  # type: ignore[arg-type]
        except TypeError:
            its = runtime.frontend(program=value)
        else:
            return host_value(value), None
    spec, data = its.to_host(value)
    return HostValue(spec, flat(data)), its
