"""The backend ``local``: sessions on this machine's devices."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping

from genie.device import Device
from genie.errors import BackendUnavailable
from genie.tenancy.seats import Seat, Usage
from genie_backend_local import hardware, native
from genie_backend_local.session import LocalSession
from genie_backend_local.tenants import Tenants

_IDLE_SECONDS = 20.0
_PATIENCE_SECONDS = 1e-2  # at most, and at most half of what an execution takes: see docs/batching.md


class LocalBackend:
    """Backend ``local``; see :class:`genie.interfaces.Backend`.

    ``threads`` sets the intra-op threads of the whole process (0: leave them). ``memory_limit_gb`` bounds each
    session (0: the device's memory). With ``batching`` sessions that decode with one model at the same time share the
    reading of its weights; unless it is ``exact``, also the products, whose last bits may then differ.
    """

    name = "local"

    def __init__(
        self, threads: int = 0, memory_limit_gb: float = 0.0, *, batching: bool = True, exact: bool = True
    ) -> None:
        self._native = native.load()
        self._limit = int(memory_limit_gb * (1 << 30))
        if threads:
            self._native.set_threads(threads)
        self._batcher = (
            self._native.Batcher(exact=exact, lanes=0, fewest=1, patience=_PATIENCE_SECONDS) if batching else None
        )
        self._tenants = Tenants(self._native)
        self._devices = hardware.devices()
        self._sessions: weakref.WeakSet[LocalSession] = weakref.WeakSet()
        self._lock = threading.Lock()

    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def connect(self, device: Device) -> LocalSession:
        known = self._known(device)
        native = self._native.Session(known.id, known.id, self._limit_on(known), None, self._batcher)
        return self._kept(LocalSession(known, native))

    def connect_as(self, device: Device, seat: Seat) -> LocalSession:
        """A session of a tenant: see :class:`genie.tenancy.seats.Tenanting`."""
        known = self._known(device)
        account, flow = self._tenants.seat(known, seat)
        native = self._native.Session(
            known.id, known.id, self._limit_on(known), None, self._batcher, flow, account, seat.label
        )
        return self._kept(LocalSession(known, native))

    def adjust(self, tenant: str, *, memory_bytes: int, weight: float) -> None:
        self._tenants.adjust(tenant, memory_bytes=memory_bytes, weight=weight)

    def usage(self) -> Mapping[str, Usage]:
        return self._tenants.usage()

    def stand_in(self, real: Device, stated: Device) -> StandIn:
        """See :class:`genie.interfaces.Hosting`. Nothing of it is batched: what it takes must be its own doing."""
        known = self._known(real)
        budget = self._native.Budget(stated.memory_bytes)

        def connect() -> LocalSession:
            native = self._native.Session(known.id, stated.id, self._limit_on(known), budget)
            return self._kept(LocalSession(stated, native))

        return StandIn(stated, connect)

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
        """Give back host memory that is kept for uploads and was not used for a while."""
        self._native.forget_blocks(_IDLE_SECONDS)

    def close(self) -> None:
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()


class StandIn:
    """One device of this machine under another's name and with its memory."""

    name = "local"

    def __init__(self, device: Device, connect: Callable[[], LocalSession]) -> None:
        self._device = device
        self._connect = connect
        self._sessions: weakref.WeakSet[LocalSession] = weakref.WeakSet()

    def devices(self) -> tuple[Device, ...]:
        return (self._device,)

    def connect(self, device: Device) -> LocalSession:
        session = self._connect()
        self._sessions.add(session)
        return session

    def close(self) -> None:
        for session in list(self._sessions):
            session.close()
