"""The process's runtime: settings in force, backends made, an engine per device. ``api`` is five-line calls over it."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genie import config, telemetry, tracing
from genie.annotate import annotate
from genie.device import Device
from genie.engines import DeviceEngine, SpreadEngine, everything
from genie.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    PluginError,
)
from genie.execute import Executor
from genie.graph import Graph
from genie.interfaces import Backend, Captures, CostModel, Frontend, Learning, PatternMatcher, Recalling, Session
from genie.plugins import Registry, registry
from genie.schedule import Scheduler
from genie.spread import SpreadSession
from genie.ways import Carried, Carrying

log = telemetry.get_logger("genie.runtime")

# What it takes client and nodes to have one value sent from node to node, besides its way over the network, and to run
# a stage for it: from both ends' Python.
_MESSAGE_MS = 1.0
_THRIFT = 0.1


class Runtime:
    """Everything made under one set of settings. Any thread may call."""

    def __init__(self, resolved: config.Resolved, plugins: Registry) -> None:
        self.resolved = resolved
        self._plugins = plugins
        self._lock = threading.RLock()
        self._backends: dict[str, Backend] = {}
        self._devices: dict[str, tuple[Device, ...]] = {}
        self._engines: dict[tuple[str, tuple[Device, ...], str], DeviceEngine] = {}
        self._asked: dict[tuple[int | None, str, str], DeviceEngine] = {}  # what was asked for before, and what it was
        self._executors: dict[tuple[str, tuple[Device, ...]], Executor] = {}
        self._cost_model: CostModel | None = None
        self._patterns: tuple[int, tuple[PatternMatcher, ...]] = (-1, ())
        self._default = ""

    @property
    def settings(self) -> config.Settings:
        return self.resolved.settings

    @property
    def connected(self) -> bool:
        """Whether the backend was chosen and opened: from then on the settings are fixed."""
        return bool(self._default)

    def backend_name(self) -> str:
        """The first backend of the settings' list that can be opened; the last one's error if none can."""
        with self._lock:
            if not self._default:
                self._default = self._choose()
            return self._default

    def _choose(self) -> str:
        *preferred, last = self.settings.backends
        for name in preferred:
            try:
                self._open(name)
            except (PluginError, BackendUnavailable) as error:
                log.warning("backend passed over", backend=name, error=error.message)
            else:
                return name
        self._open(last)
        return last

    def devices(self, backend: str = "") -> tuple[Device, ...]:
        """The backend's devices, in the order ``remote_accelerator:i`` counts them."""
        return self._open(backend or self.backend_name())

    def device(self, index: int | None, backend: str = "") -> Device:
        name = backend or self.backend_name()
        devices = self._open(name)
        number = 0 if index is None else index
        if not 0 <= number < len(devices):
            raise ConfigError(
                f"there is no device {number}: the backend {name!r} has {len(devices)} "
                f"({', '.join(device.id for device in devices)})",
                where=self.resolved.origin("nodes") if self.settings.nodes else "",
                hint=f"{', '.join(f'{number} is {each.id}' for number, each in enumerate(devices))}; "
                f"{len(devices)}, or no number, is all of them",
            )
        return devices[number]

    def index_of(self, device: Device | None, backend: str = "", exact: bool = True) -> int:
        """The number of ``device`` here, by id or by address; unless ``exact``, else the first of its type, else 0."""
        here = self.devices(backend)
        if device is not None:
            if (number := self._number(device, here)) >= 0:
                return number
            if exact:
                raise ConfigError(
                    f"device {device.id!r} is not one of this runtime's: {', '.join(each.id for each in here)}",
                    hint="configure it with genie.init_cluster(), or call genie.shutdown() to start anew",
                )
        alike = (number for number, each in enumerate(here) if device is not None and each.type == device.type)
        return next(alike, 0)

    def has(self, device: Device, backend: str = "") -> bool:
        return self._number(device, self.devices(backend)) >= 0

    def _number(self, device: Device, here: Sequence[Device]) -> int:
        """Of the one with that id or address; -1 if there is none."""
        for number, each in enumerate(here):
            if each.id == device.id or (each.address and (each.address, each.index) == (device.address, device.index)):
                return number
        return -1

    def engine(self, index: int | None = None, backend: str = "", policy: str = "") -> DeviceEngine:
        """The engine of a device, with a session of its own, made now if need be. ``None``, and the index after the
        last device's, is all of them: the scheduler chooses."""
        known = self._asked.get((index, backend, policy))  # at every call of a program
        if known is None:
            name = backend or self.backend_name()
            count = len(self._open(name))
            indices = range(count) if index is None or index == count else (index,)
            with self._lock:
                known = self._asked[index, backend, policy] = self.spread(indices, name, policy)
        return known

    def spread(self, indices: Sequence[int], backend: str = "", policy: str = "") -> DeviceEngine:
        """The engine of several devices."""
        name = backend or self.backend_name()
        devices = tuple(self.device(index, name) for index in indices)
        if len(devices) > 1:
            devices = tuple(sorted(devices, key=lambda device: -device.compute_tflops))
        key = (name, devices, policy or self.settings.policy)
        with self._lock:
            if key not in self._engines:
                sessions = self._connected(name, devices)
                scheduler = self.scheduler(devices, key[2])
                self._engines[key] = (
                    DeviceEngine(devices[0], sessions[0], scheduler, self.annotated, self._learning())
                    if len(devices) == 1
                    else SpreadEngine(
                        sessions, scheduler, self.annotated, self._learning(), prefetch=self.settings.prefetch
                    )
                )
            return self._engines[key]

    def _connected(self, backend: str, devices: Sequence[Device]) -> list[Session]:
        its = self._backends[backend]
        if not self.settings.recovery:
            return _connect(its, devices)
        # They take longer to import than all that connects without.
        from genie.lineage import Terms, elsewhere, guarded

        terms = Terms.from_settings(self.settings)
        try:
            sessions = _connect(its, devices)
        except (BackendUnavailable, ConnectionLost, DeadlineExceeded) as error:
            sessions = elsewhere(devices, its, terms, error)
        return guarded(sessions, its, terms, devices)

    def executor(self, indices: Sequence[int] = (0,), backend: str = "") -> Executor:
        """Runs whole plans on devices, in sessions apart from the frontends'."""
        name = backend or self.backend_name()
        devices = tuple(self.device(index, name) for index in indices)
        with self._lock:
            executor = self._executors.get((name, devices))
            if executor is None or executor.closed:
                sessions = self._connected(name, devices)
                session = (
                    sessions[0] if len(sessions) == 1 else SpreadSession(everything(devices), sessions, None, devices)
                )
                executor = self._executors[name, devices] = Executor(session)
            return executor

    def scheduler(self, devices: Sequence[Device], policy: str = "") -> Scheduler:
        settings = self.settings
        name = policy or settings.policy
        scheduler = Scheduler(
            devices=devices,
            policy=self._plugins.make("policy", name, settings),
            recompute_ms=settings.recomputation_threshold_ms,
            message_ms=_MESSAGE_MS if any(device.address for device in devices) else 0.0,
            thrift=_THRIFT,
        )
        scheduler.set_cost_model(self.cost_model())
        scheduler.set_placement_strategy(self._plugins.make("placement_strategy", settings.placement, settings))
        return scheduler

    def cost_model(self) -> CostModel:
        """One for all schedulers: what one engine learns, all know."""
        with self._lock:
            if self._cost_model is None:
                model: CostModel = self._plugins.make("cost_model", self.settings.cost_model, self.settings)
                self._cost_model = model
            return self._cost_model

    def _learning(self) -> Learning | None:
        model: object = self.cost_model()
        return model if isinstance(model, Learning) else None

    def patterns(self) -> tuple[PatternMatcher, ...]:
        """All patterns there are. One that can't be made is reported, once, and left out: it is no one's request."""
        version, patterns = self._patterns
        if version == self._plugins.version:
            return patterns
        with self._lock:
            version, made = self._plugins.version, []
            for name in self._plugins.names("pattern"):
                try:
                    made.append(self._plugins.make("pattern", name, self.settings))
                except GenieError as error:
                    log.warning("pattern left out", pattern=name, error=error.message)
            self._patterns = (version, tuple(made))
            return self._patterns[1]

    def annotated(self, graph: Graph) -> Graph:
        """The graph annotated by all patterns; with ``analyzer_debug`` what they matched is logged."""
        with tracing.span("genie.annotate", nodes=len(graph.steps)):
            annotated = annotate(graph, self.patterns())
        if self.settings.analyzer_debug:
            for node in annotated.steps:
                for found in node.semantics.evidence if node.semantics is not None else ():
                    facts = {"label": found.label, "source": found.source, "reason": found.reason}
                    log.info("label", node=node.id, operation=node.target, **facts)
        return annotated

    def sessions(self) -> list[Session]:
        with self._lock:
            return [*(e.session for e in self._engines.values()), *(e.session for e in self._executors.values())]

    def stats(self) -> dict[str, telemetry.Number]:
        """The process's counters and those of all sessions; equal names add up. ``devices_<backend>`` tells which of
        the backends listed by preference is in use."""
        total = telemetry.counters.snapshot()
        with self._lock:  # which of the backends that were listed is in use
            total |= {f"devices_{name}": len(found) for name, found in self._devices.items()}
        for session in self.sessions():
            for name, number in session.stats().items():
                total[name] = total.get(name, 0) + number
        return total

    def carried(self) -> list[Carried]:
        """What carries each session with a node."""
        with self._lock:
            backends = list(self._backends.values())
        return [each for backend in backends if isinstance(backend, Carrying) for each in backend.carried()]

    def cancel(self) -> None:
        """Every session takes back what it asked, as far as it can; what one that ended had asked is lost anyway."""
        for session in self.sessions():
            if isinstance(session, Recalling):
                try:
                    session.cancel_work()
                except BackendError:
                    if not getattr(session, "closed", False):
                        raise

    def close(self) -> None:
        """End every session and backend. What can't be ended in an orderly way is reported, not raised."""
        with self._lock:
            for engine in self._engines.values():
                engine.rest()
            closing: list[Any] = [*self._executors.values(), *(e.session for e in self._engines.values())]
            closing += self._backends.values()
            self._executors, self._engines, self._asked, self._backends, self._devices = {}, {}, {}, {}, {}
            self._default = ""
        learning = self._learning() if self._cost_model is not None else None
        if learning is not None:
            try:
                learning.save()
            except GenieError as error:
                log.warning("what was learned is not kept", error=error.message)
        for each in closing:
            try:
                each.close()
            except Exception as error:
                log.warning("not closed in order", what=type(each).__name__, error=str(error))

    def _open(self, name: str) -> tuple[Device, ...]:
        with self._lock:
            if name not in self._devices:
                backend = self._plugins.make("backend", name, self.settings)
                try:
                    devices = tuple(backend.devices())
                    if not devices:
                        raise BackendUnavailable(f"the backend {name!r} has no device")
                except BaseException:
                    backend.close()
                    raise
                self._backends[name], self._devices[name] = backend, devices
            return self._devices[name]


def _connect(backend: Backend, devices: Sequence[Device]) -> list[Session]:
    sessions: list[Session] = []
    try:
        for device in devices:
            sessions.append(backend.connect(device))
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return sessions


# --- the one of this process ---------------------------------------------------------------------

_lock = threading.RLock()
_current: Runtime | None = None
_frontends: dict[str, Frontend] = {}
_used_frontends: dict[str, None] = {}
_WHICH = "set `frontend` (GENIE_FRONTEND)"
_at_shutdown: list[Callable[[], None]] = []


def current() -> Runtime:
    """The runtime in force; one by environment and file is started if there is none."""
    runtime = _current
    if runtime is not None:
        return runtime
    with _lock:
        return _current or _install(Runtime(config.resolve(), registry))


def start(call: Mapping[str, Any]) -> Runtime:
    """Start a runtime and connect it. While one is in force, the settings named in ``call`` must be its own."""
    with _lock:
        if _current is not None and _current.connected:
            return _same(_current, config.convert(call))
        runtime = Runtime(config.resolve(call), registry)
        try:
            runtime.devices()
        except BaseException:
            runtime.close()
            raise
        return _install(runtime)


def change(**changes: Any) -> Runtime:
    """Change settings that are not in use yet; :class:`ConfigError` if they are."""
    with _lock:
        runtime = current()
        if runtime.connected:
            return _same(runtime, config.convert(changes))
        return _install(Runtime(config.replace(runtime.resolved, **changes), registry))


def set_log_level(level: str) -> None:
    """The one setting that may change at any time."""
    with _lock:
        runtime = current()
        runtime.resolved = config.replace(runtime.resolved, log_level=level)
        _configure_logs(runtime.settings)


def shutdown() -> None:
    """End the runtime in force, if any: frontends are told first, then sessions end. The next use starts anew."""
    global _current
    with _lock:
        runtime, _current = _current, None
        callbacks = list(_at_shutdown)
    if runtime is None:
        return
    for callback in callbacks:
        try:
            callback()
        except Exception as error:
            log.warning("shutdown callback failed", callback=repr(callback), error=str(error))
    runtime.close()


def cancel() -> None:
    """Of the runtime in force, if any."""
    runtime = _current
    if runtime is not None:
        runtime.cancel()


def on_shutdown(callback: Callable[[], None]) -> None:
    """Have ``callback`` called at each shutdown, before sessions end (a frontend drops its engines)."""
    with _lock:
        if callback not in _at_shutdown:
            _at_shutdown.append(callback)


def frontend(name: str = "", program: object = None) -> Frontend:
    """By name; else the one that accepts ``program``, that of the settings first; else that one; else the only one."""
    with _lock:
        settings = current().settings
        names = registry.names("frontend")
        name = name or (settings.frontend if program is None else "")
        if name:
            return _frontend(name, settings)
        if program is not None:
            for candidate in sorted(names, key=lambda each: each != settings.frontend):
                if (made := _frontend(candidate, settings)).accepts(program):
                    return made
            raise ConfigError(
                f"no frontend accepts a {type(program).__module__}.{type(program).__qualname__}",
                hint=f"installed frontends: {', '.join(names) or 'none (pip install genie-pytorch)'}",
            )
        if len(names) != 1:
            raise ConfigError(
                f"which frontend? installed: {', '.join(names) or 'none'}",
                hint=_WHICH if names else "pip install genie-pytorch",
            )
        return _frontend(names[0], settings)


def capturing() -> Captures:
    """The frontend whose operators are captured as they run: that of the settings; else the only one, of those that the
    program has imported or else of all."""
    with _lock:
        settings = current().settings
        names = registry.names("frontend")
        if settings.frontend:
            made = _frontend(settings.frontend, settings)
            if isinstance(made, Captures):
                return made
            raise ConfigError(
                f"the frontend {settings.frontend!r} captures programs whole, not operator by operator",
                hint="run the program by genie.run(program, …), or set another `frontend`",
            )
        for some in ([name for name in names if name in _used_frontends], names):
            found = {name: made for name in some if isinstance(made := _frontend(name, settings), Captures)}
            if len(found) == 1:
                return next(iter(found.values()))
            if found:
                raise ConfigError(f"which frontend? installed: {', '.join(found)}", hint=_WHICH)
        raise ConfigError(
            f"no frontend captures operator by operator; installed: {', '.join(names) or 'none'}",
            hint="pip install genie-pytorch",
        )


def use_frontend(name: str) -> None:
    """The program uses this frontend without having asked for it here: by importing it."""
    with _lock:
        _used_frontends[name] = None


def loaded_frontends() -> tuple[Frontend, ...]:
    """Those made so far, and those the program is known to use."""
    with _lock:
        for name in _used_frontends:
            if name not in _frontends and name in registry.names("frontend"):
                _frontend(name, current().settings)
        return tuple(_frontends.values())


def forget_frontend(name: str) -> None:
    """A name was registered anew: its next use makes the new one."""
    with _lock:
        _frontends.pop(name, None)


def forget_frontends() -> None:
    """Make every frontend anew on its next use."""
    with _lock:
        _frontends.clear()


def _frontend(name: object, settings: config.Settings) -> Frontend:
    if not isinstance(name, str):
        name = registry.check("frontend", name).name  # which refuses it
    # Kept for the life of the process, over every shutdown: a framework can be hooked once.
    if name not in _frontends:
        _frontends[name] = registry.make("frontend", name, settings)
    return _frontends[name]


def _install(runtime: Runtime) -> Runtime:
    global _current
    _hook_process()
    _configure_logs(runtime.settings)
    try:
        tracing.configure(runtime.settings.trace_ratio)
    except ConfigError:
        runtime.close()  # it may have connected
        raise
    before, _current = _current, runtime
    if before is not None:
        before.close()
    return runtime


def _configure_logs(settings: config.Settings) -> None:
    # Who asks for a log must see it.
    asked = settings.log_intercepts or settings.analyzer_debug
    level = "INFO" if asked and settings.log_level != "DEBUG" else settings.log_level
    telemetry.configure(level, settings.log_json)


def _same(runtime: Runtime, wanted: Mapping[str, Any]) -> Runtime:
    other = {key: value for key, value in wanted.items() if getattr(runtime.settings, key) != value}
    if other:
        key = next(iter(other))
        raise ConfigError(
            f"Genie is already running with {key}={getattr(runtime.settings, key)!r}, not {other[key]!r}"
            + (f" (also different: {', '.join(list(other)[1:])})" if len(other) > 1 else ""),
            where=runtime.resolved.origin(key),
            hint="call genie.shutdown() first; tensors on the device do not survive it",
        )
    return runtime


# --- the process: its end and its forks ----------------------------------------------------------

_orphans: list[Runtime] = []
_hooked = False


def _hook_process() -> None:
    global _hooked
    if not _hooked:  # with the first runtime, not at import: that has no effects
        _hooked = True
        atexit.register(shutdown)
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    """A child shares its parent's sockets: it must neither use nor close them, so it keeps them out of reach."""
    global _current, _lock
    _lock = threading.RLock()
    if _current is not None:
        _orphans.append(_current)
        _current = None
