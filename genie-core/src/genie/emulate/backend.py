"""The backend ``emulated``: the devices of a cluster file, on this machine."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence

import attrs
import msgspec

from genie import telemetry
from genie.config import Settings
from genie.device import CLIENT, Cluster, Device
from genie.emulate.ledger import Ledger
from genie.emulate.report import Report
from genie.emulate.session import EmulatedSession, Estimated, Place
from genie.errors import BackendUnavailable, ConfigError, SchedulingError
from genie.graph import Node
from genie.interfaces import Appraising, Backend, CostModel, Hosting
from genie.plan import ExecutionPlan
from genie.plugins import registry
from genie.schedule.stated import stated

_HINT = 'say `backend: emulated` and the devices in a cluster file: genie.init_cluster("emulated.yaml")'

_latest: weakref.ref[EmulatedBackend] | None = None


class EmulatedBackend:
    """Every device of ``cluster`` is one of ``local()``'s by another name: the first of its type, else the last.

    Work and values are real. Memory is the stated one; times are ``cost``'s estimates for the stated devices, or,
    with ``emulation: {time: measured}``, measured ones scaled by those.
    """

    name = "emulated"

    def __init__(
        self, cluster: Cluster | None, local: Callable[[], Backend], cost: CostModel, timeout: float = 60.0
    ) -> None:
        self._cluster = cluster
        self._make_local = local
        self._cost = cost
        self._timeout = timeout
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._sessions: list[EmulatedSession] = []

    @classmethod
    def from_settings(cls, settings: Settings) -> EmulatedBackend:
        cost = registry.make("cost_model", settings.cost_model, settings)
        return cls(settings.cluster, lambda: registry.make("backend", "local", settings), cost, settings.timeout)

    def devices(self) -> tuple[Device, ...]:
        """Raises :class:`ConfigError` when there is nothing to emulate, or nothing to do it with."""
        return self._open().devices

    def _open(self) -> _Opened:
        global _latest
        with self._lock:
            if self._opened is None:
                self._opened = self._made()
                mine = _latest = weakref.ref(self)

                def counters() -> Mapping[str, float]:
                    return _counted(backend.report()) if (backend := mine()) is not None else {}

                telemetry.counters.add_source(f"emulation {id(self)}", counters)
            return self._opened

    def _made(self) -> _Opened:
        if self._cluster is None:
            raise ConfigError("the backend 'emulated' has no cluster to emulate", hint=_HINT)
        if not self._cluster.devices:
            raise ConfigError("key 'cluster.devices' names no device to emulate", hint=_HINT)
        local = self._make_local()
        if not isinstance(local, Hosting):
            raise ConfigError(
                f"the backend {getattr(local, 'name', 'local')!r} cannot stand in for other devices",
                hint="emulation needs genie-backend-local, or a backend with `stand_in`",
            )
        devices = tuple(_at_an_address(device, number) for number, device in enumerate(self._cluster.devices))
        by_id = {device.id: device for device in devices}
        transfers = stated(self._cluster.links)

        def line(source: str, target: str) -> tuple[float, float]:
            if CLIENT in (source, target):
                return transfers.reach(source, target, by_id[target if source == CLIENT else source])
            return transfers.line(by_id[source], by_id[target])

        ledger = Ledger(tuple(by_id), line, self._timeout)
        here = local.devices()
        measured = self._cluster.emulation.time == "measured"
        places, hosts = {}, {}
        for device in devices:
            real = next((each for each in here if each.kind == device.kind), here[-1])
            places[device.id] = self._place(device, real, ledger, measured)
            hosts[device.id] = local.stand_in(real, device)
        return _Opened(devices, places, hosts, ledger, local)

    def _place(self, device: Device, real: Device, ledger: Ledger, measured: bool) -> Place:
        def estimate(plan: ExecutionPlan) -> Estimated:
            nodes = plan.graph.nodes()
            seconds = self._seconds(nodes, device)
            here = self._seconds(nodes, real) if measured else 0.0
            return Estimated(seconds, seconds / here if here else 1.0, _named(plan))

        return Place(device, real, ledger, estimate, measured)

    def _seconds(self, nodes: Sequence[Node], device: Device) -> float:
        try:
            if isinstance(self._cost, Appraising):
                return sum([float(each.seconds) for each in self._cost.appraise(nodes, device)], 0.0)
            return sum([float(self._cost.estimate_compute(node, device)) for node in nodes], 0.0)
        except Exception as error:  # a plugin may raise anything
            raise SchedulingError(
                f"the cost model {getattr(self._cost, 'name', self._cost)!r} gives no times: "
                f"{type(error).__name__}: {error}",
                where=device.id,
            ) from error

    def connect(self, device: Device) -> EmulatedSession:
        opened = self._open()
        place = opened.places.get(device.id)
        if place is None:
            names = ", ".join(opened.places)
            raise BackendUnavailable(f"no device {device.id!r} is emulated", hint=f"there are {names}")
        session = EmulatedSession(place, opened.hosts[device.id].connect(place.device))
        with self._lock:
            self._sessions = [known for known in self._sessions if not known.closed]
            self._sessions.append(session)
        return session

    def report(self) -> Report:
        return self._open().ledger.report()

    def restart(self) -> None:
        self._open().ledger.restart()

    def close(self) -> None:
        global _latest
        if _latest is not None and _latest() is self:
            _latest = None
        telemetry.counters.remove_source(f"emulation {id(self)}")
        with self._lock:
            sessions, self._sessions = self._sessions, []
            opened, self._opened = self._opened, None
        for session in sessions:
            session.close()
        if opened is not None:
            opened.local.close()


@attrs.frozen
class _Opened:
    """``places`` and ``hosts``, which do the work, by the devices' ids."""

    devices: tuple[Device, ...]
    places: Mapping[str, Place]
    hosts: Mapping[str, Backend]
    ledger: Ledger
    local: Backend


def _counted(report: Report) -> Mapping[str, float]:
    counters: dict[str, float] = {"emulated_seconds": report.seconds}
    counters |= {f"emulated_busy_seconds {device}": busy for device, busy in report.busy.items()}
    counters |= {f"emulated_bytes {a} to {b}": its.bytes for (a, b), its in report.traffic.items()}
    return counters


def current() -> EmulatedBackend:
    """The emulation made last. Raises :class:`ConfigError` if there is none."""
    backend = _latest() if _latest is not None else None
    if backend is None:
        raise ConfigError("nothing is emulated", hint=_HINT)
    return backend


def _at_an_address(device: Device, number: int) -> Device:
    """Devices without an address are nodes of their own, linked by their networks and not by one machine's bus."""
    return device if device.address is not None else msgspec.structs.replace(device, address=f"emulated/{number}")


def _named(plan: ExecutionPlan) -> str:
    """What a plan does, in few words."""
    graph = plan.graph
    if not graph.steps:
        return "nothing"
    modules = dict.fromkeys(graph.modules[node.module].path for node in graph.steps if node.module >= 0)
    names = [path for path in modules if path] or [node.target for node in graph.steps]
    first, last = names[0], names[-1]
    count = "1 operator" if len(graph.steps) == 1 else f"{len(graph.steps)} operators"
    return f"{first if first == last else f'{first} … {last}'} ({count})"
