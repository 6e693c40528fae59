"""Where a node's clients come in: within their tenant's quota, in their turn, and to the session that is theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from genie.device import Device
from genie.errors import GenieError
from genie.interfaces import Backend, Connection, Session, Watched
from genie.security import Identity
from genie.tenancy.accounts import Account, Tenancy
from genie.tenancy.admission import Admission, Place
from genie.tenancy.pace import Pace
from genie.tenancy.quotas import SHARES, priority_of
from genie.tenancy.seats import Seat, Tenanting, Usage
from genie.wire import Dialogue, Kind, frames, messages
from genie.wire.messages import Hello, Waiting


class Reception:
    """Of one node: ``most`` sessions on ``backend``. A client waits for at most ``seconds``, or what it says itself."""

    def __init__(
        self,
        backend: Backend,
        tenancy: Tenancy,
        *,
        most: Callable[[], int],
        seconds: float,
    ) -> None:
        self.tenancy = tenancy
        self.admission = Admission(tenancy, most)
        self._backend = backend
        self._seconds = seconds
        self.waiting: set[Connection] = set()  # for a place: their number is the queue's to bound
        tenancy.told = self._adjust

    def admit(self, connection: Connection, dialogue: Dialogue, hello: Hello, owner: Identity) -> Pace:
        """Returns when there is a place for a session of the client's, which :meth:`leave` gives back. Raises what
        :meth:`Admission.enter` does, or :class:`ConfigError` for a priority that there is not."""
        account = self.tenancy.account(owner)
        priority = priority_of(account.quota, hello.priority)

        def tell(place: Place) -> None:
            dialogue.say(Kind.WAIT)
            said = messages.put_struct(Waiting(position=place.position, waiting=place.waiting, reason=place.reason))
            connection.send(frames.one(max(dialogue.seq, 0), Kind.WAIT, said))

        def gone() -> bool:
            return isinstance(connection, Watched) and connection.hung_up()

        willing = hello.waits if hello.waits > 0.0 else 0.0
        self.waiting.add(connection)
        try:
            self.admission.enter(account, priority, min(willing, self._seconds), tell, gone)
        finally:
            self.waiting.discard(connection)
        return Pace(self.tenancy, account, priority)

    def connect(self, device: Device, name: str, client: str, pace: Pace) -> Session:
        """The backend's session, in the tenant's account where there are quotas."""
        backend, quota = self._backend, pace.account.quota
        if not self.tenancy.enforced or not isinstance(backend, Tenanting):
            return backend.connect(device)
        seat = Seat(
            tenant=pace.account.tenant,
            label=f"{name} ({client})" if client else name,
            memory_bytes=quota.memory,
            weight=quota.weight,
            level=pace.priority.value,
            level_weight=SHARES[pace.priority],
        )
        return backend.connect_as(device, seat)

    def realm(self, pace: Pace) -> str:
        """Whose contents a session is offered: its tenant's, or those of all that share."""
        account = pace.account
        return "" if account.quota.share_weights else account.tenant

    def leave(self, pace: Pace) -> None:
        self.admission.leave(pace.account)

    def devices(self, named: Sequence[Device], owner: Identity) -> tuple[Device, ...]:
        """As the tenant may use them: with no more memory than its quota, so that programs are planned for it."""
        most = self.tenancy.account(owner).quota.memory
        return tuple(
            msgspec.structs.replace(device, memory_gb=most / (1 << 30)) if 0 < most < device.memory_bytes else device
            for device in named
        )

    def housekeep(self) -> None:
        self.tenancy.refresh()

    def close(self, reason: GenieError) -> None:
        self.admission.close(reason)

    def usage(self) -> Mapping[str, Usage]:
        """By tenant, where the backend keeps it."""
        return self._backend.usage() if isinstance(self._backend, Tenanting) else {}

    def _adjust(self, account: Account) -> None:
        if isinstance(self._backend, Tenanting):
            quota = account.quota
            self._backend.adjust(account.tenant, memory_bytes=quota.memory, weight=quota.weight)
        self.admission.look()
