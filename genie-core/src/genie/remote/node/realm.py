"""A node's contents as one tenant sees them: those of its own, or of all that share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from genie.remote.abilities import Weight
from genie.remote.node.content_store import ContentStore


class Realm:
    """Of ``store`` what belongs to ``tenant``; "" is the realm of those that share. Nobody learns from an offer what is
    kept in another one."""

    def __init__(self, store: ContentStore, tenant: str) -> None:
        self._store = store
        self._prefix = tenant.encode() + b"\0" if tenant else b""

    def begin(self, session: str, digest: bytes, size: int) -> int | None:
        return self._store.begin(session, self._prefix + digest, size)

    def claim(self, session: str, digest: bytes, size: int) -> bool:
        return self._store.claim(session, self._prefix + digest, size)

    def room(self, session: str, digest: bytes, offset: int, size: int) -> memoryview:
        return self._store.room(session, self._prefix + digest, offset, size)

    def received(self, session: str, digest: bytes, size: int) -> None:
        self._store.received(session, self._prefix + digest, size)

    def take(self, session: str, digest: bytes) -> memoryview:
        return self._store.take(session, self._prefix + digest)

    def value(self, digest: bytes, key: Hashable) -> object | None:
        return self._store.value(self._prefix + digest, key)

    def keep(self, digest: bytes, key: Hashable, value: object) -> None:
        self._store.keep(self._prefix + digest, key, value)

    def keep_weight(self, digest: bytes, key: Hashable, value: Weight) -> None:
        self._store.keep_weight(self._prefix + digest, key, value)

    def replace(self, digest: bytes, data: memoryview) -> None:
        self._store.replace(self._prefix + digest, data)

    def done(self, session: str, digest: bytes) -> None:
        self._store.done(session, self._prefix + digest)

    def release(self, session: str) -> None:
        self._store.release(session)

    def stats(self) -> Mapping[str, int]:
        return self._store.stats()
