"""The backend ``local``: sessions on this machine's devices."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping

from genie.device import Device
from genie.errors import BackendUnavailable, ConfigError
from genie.tenancy.seats import Seat, Usage
from genie_backend_local import hardware, native
from genie_backend_local.engines import Engines
from genie_backend_local.native import NativeAccount, NativeBudget, NativeFlow
from genie_backend_local.session import LocalSession
from genie_backend_local.tenants import Tenants

_IDLE_SECONDS = 20.0
_PATIENCE_SECONDS = 1e-2  # at most, and at most half of what an execution takes: see docs/batching.md


class LocalBackend:
    """Backend ``local``; see :class:`genie.interfaces.Backend`.

    ``threads`` sets the intra-op threads of the whole process (0: leave them). ``memory_limit_gb`` bounds each
    session (0: the device's memory). With ``batching`` sessions that decode with one model at the same time share the
    reading of its weights; unless it is ``exact``, also the products, whose last bits may then differ. An execution
    that takes longer than ``execution_seconds`` (0: no limit) ends before its next operator.

    Idle values leave a device when its memory is short, and after ``swap_idle_seconds`` (0: never), and come back when
    they are used: to ``swap_bytes`` of host memory (0: they stay; ``None``: a quarter of the host's), or of files in
    ``swap_directory``. The CPU's own values leave only where there is a directory.

    ``engines`` compile plans that come with an artifact.
    """

    name = "local"

    def __init__(
        self,
        threads: int = 0,
        memory_limit_gb: float = 0.0,
        *,
        batching: bool = True,
        exact: bool = True,
        execution_seconds: float = 0.0,
        swap_bytes: int | None = None,
        swap_directory: str = "",
        swap_idle_seconds: float = 300.0,
        engines: Engines | None = None,
    ) -> None:
        self._native = native.load()
        self._limit = int(memory_limit_gb * (1 << 30))
        self._execution_seconds = execution_seconds
        if threads:
            self._native.set_threads(threads)
        self._batcher = (
            self._native.Batcher(exact=exact, lanes=0, fewest=1, patience=_PATIENCE_SECONDS) if batching else None
        )
        self._tenants = Tenants(self._native)
        self._engines = engines
        self._devices = hardware.devices() if engines is None else engines.offered(hardware.devices())
        if swap_directory:
            _check_directory(swap_directory)
        most = _quarter_of_memory() if swap_bytes is None else swap_bytes
        self._swap = self._native.Swap(most, swap_directory) if most else None
        self._swap_asked = swap_bytes is not None  # else a device is as small as it says: see `stand_in`
        self._swap_apart = bool(swap_directory)
        self._idle_seconds = swap_idle_seconds
        self._budgets: dict[str, NativeBudget] = {}
        self._sessions: weakref.WeakSet[LocalSession] = weakref.WeakSet()
        self._lock = threading.Lock()

    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def connect(self, device: Device) -> LocalSession:
        known = self._known(device)
        return self._session(known, None, None, "")

    def connect_as(self, device: Device, seat: Seat) -> LocalSession:
        """A session of a tenant: see :class:`genie.tenancy.seats.Tenanting`."""
        known = self._known(device)
        account, flow = self._tenants.seat(known, seat)
        return self._session(known, flow, account, seat.label)

    def _session(
        self, known: Device, flow: NativeFlow | None, account: NativeAccount | None, label: str
    ) -> LocalSession:
        native = self._native.Session(
            known.id,
            known.id,
            self._limit_on(known),
            self._budget_of(known),
            self._batcher,
            flow,
            account,
            label,
        )
        native.limit_executions(self._execution_seconds)
        return self._kept(LocalSession(known, native, self._engines))

    def adjust(self, tenant: str, *, memory_bytes: int, weight: float) -> None:
        self._tenants.adjust(tenant, memory_bytes=memory_bytes, weight=weight)

    def usage(self) -> Mapping[str, Usage]:
        return self._tenants.usage()

    def stand_in(self, real: Device, stated: Device) -> StandIn:
        """See :class:`genie.interfaces.Hosting`. Nothing of it is batched: what it takes must be its own doing."""
        known = self._known(real)
        budget = self._native.Budget(stated.memory_bytes, self._swap if self._swap_asked else None)

        def connect() -> LocalSession:
            native = self._native.Session(known.id, stated.id, self._limit_on(known), budget)
            return self._kept(LocalSession(stated, native))

        return StandIn(stated, connect, budget)

    def _budget_of(self, device: Device) -> NativeBudget:
        with self._lock:
            if device.id not in self._budgets:
                # Values of the CPU gain nothing by lying elsewhere in the same memory.
                swap = self._swap if device.kind != "cpu" or self._swap_apart else None
                self._budgets[device.id] = self._native.Budget(device.memory_bytes, swap)
            return self._budgets[device.id]

    def _known(self, device: Device) -> Device:
        known = next((mine for mine in self._devices if mine.id == device.id), None)
        if known is None:
            names = ", ".join(mine.id for mine in self._devices)
            raise BackendUnavailable(f"this machine has no device {device.id!r}", hint=f"it has {names}")
        return known

    def _limit_on(self, device: Device) -> int:
        return self._limit or device.memory_bytes

    def _kept(self, session: LocalSession) -> LocalSession:
        with self._lock:
            self._sessions.add(session)
        return session

    def trim(self) -> None:
        """Give back host memory that is kept for uploads and was not used for a while; let idle values leave."""
        self._native.forget_blocks(_IDLE_SECONDS)
        with self._lock:
            budgets = list(self._budgets.values())
        for budget in budgets:
            budget.put_idle_out(self._idle_seconds)

    def memory(self) -> Mapping[str, Mapping[str, int]]:
        """Of each device that was used, by its id: what :class:`genie.remote.abilities.Accounting` says."""
        with self._lock:
            budgets = dict(self._budgets)
        return {name: {**budget.stats(), **self._native.allocator_stats(name)} for name, budget in budgets.items()}

    def close(self) -> None:
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()
        if self._engines is not None:
            self._engines.close()


class StandIn:
    """One device of this machine under another's name and with its memory."""

    name = "local"

    def __init__(self, device: Device, connect: Callable[[], LocalSession], budget: NativeBudget) -> None:
        self._device = device
        self._connect = connect
        self._budget = budget
        self._sessions: weakref.WeakSet[LocalSession] = weakref.WeakSet()

    def devices(self) -> tuple[Device, ...]:
        return (self._device,)

    def connect(self, device: Device) -> LocalSession:
        session = self._connect()
        self._sessions.add(session)
        return session

    def memory(self) -> Mapping[str, Mapping[str, int]]:
        """See :meth:`LocalBackend.memory`."""
        return {self._device.id: self._budget.stats()}

    def close(self) -> None:
        for session in list(self._sessions):
            session.close()


def _check_directory(path: str) -> None:
    """A file without a name can be made there."""
    try:
        os.close(os.open(path, os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigError(
            f"values cannot be swapped to {path!r}: {error.strerror}",
            where="swap_directory",
            hint="name a directory this user may write to, on a file system that has unnamed files",
        ) from error


def _quarter_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
