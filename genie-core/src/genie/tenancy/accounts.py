"""What tenants have at the moment, beside what they may have."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from genie.security import Identity
from genie.tenancy.bucket import Bucket
from genie.tenancy.quotas import Quota, Tenants, TenantsFile

_LOOK_SECONDS = 1.0  # between two looks at the file by sessions at work


def tenant_of(identity: Identity) -> str:
    """Whom quotas are counted for: the token's tenant, or the name in the certificate. Without either all clients are
    one tenant: a name that a client gives itself is nobody's."""
    return identity.tenant or identity.certificate


class Account:
    """One tenant's. Any thread may ask; what it counts changes under ``changed``."""

    def __init__(self, tenant: str, quota: Quota) -> None:
        self.tenant = tenant
        self.quota = quota
        self.changed = threading.Condition()
        self.sessions = 0  # counted by the admission
        self.at_work = 0  # messages
        self.plans = 0
        self.plan_bytes = 0
        self.delayed = 0.0  # seconds its messages were held back
        self.receive = Bucket(quota.receive)
        self.send = Bucket(quota.send)

    def set_quota(self, quota: Quota) -> None:
        with self.changed:
            self.quota = quota
            self.receive.set_rate(quota.receive)
            self.send.set_rate(quota.send)
            self.changed.notify_all()

    @property
    def title(self) -> str:
        """For messages: whose quota it is."""
        return f"the tenant {self.tenant!r}" if self.tenant else "everybody without a name"


class Tenancy:
    """All tenants of a node. Without a ``file`` nobody has a quota. ``told`` hears of accounts whose quota changed."""

    def __init__(self, file: TenantsFile | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._tenants = file.get() if file is not None else Tenants()
        self._accounts: dict[str, Account] = {}
        self._looked = time.monotonic()
        self.told: Callable[[Account], None] | None = None

    @property
    def enforced(self) -> bool:
        """Whether somebody has said what tenants may have: only then devices take turns."""
        return self._file is not None

    @property
    def tenants(self) -> Tenants:
        return self._tenants

    def account(self, identity: Identity) -> Account:
        self.refresh()
        tenant = tenant_of(identity)
        with self._lock:
            account = self._accounts.get(tenant)
            if account is None:
                account = self._accounts[tenant] = Account(tenant, self._tenants.of(tenant))
            return account

    def accounts(self) -> tuple[Account, ...]:
        with self._lock:
            return tuple(account for _, account in sorted(self._accounts.items()))

    def now_and_then(self) -> None:
        """As :meth:`refresh`, by whoever comes often: at most once a second."""
        if self._file is not None and time.monotonic() - self._looked >= _LOOK_SECONDS:
            self.refresh()

    def refresh(self) -> None:
        """What the file says now holds from now on, for those who are here, too."""
        if self._file is None:
            return
        self._looked = time.monotonic()
        tenants = self._file.get()
        with self._lock:
            if tenants is self._tenants:
                return
            self._tenants = tenants
            changed = [account for account in self._accounts.values() if account.quota != tenants.of(account.tenant)]
        for account in changed:
            account.set_quota(tenants.of(account.tenant))
            if self.told is not None:
                self.told(account)
