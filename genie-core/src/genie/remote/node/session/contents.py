"""Values of a node's session that come by the digest of their content."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from genie.errors import GenieError, LimitExceeded, ProtocolError
from genie.graph import TensorSpec
from genie.host import flat
from genie.interfaces import Session
from genie.remote.abilities import Sharing, SharingContents, Weight
from genie.remote.node.realm import Realm
from genie.remote.node.session.answers import Answer
from genie.remote.node.session.failures import Failures
from genie.wire import Kind, Limits, messages


class NodeContents:
    """The session ``name``'s end of the node's ``store``. ``known`` is told that a handle's value is the content with a
    digest."""

    def __init__(
        self,
        name: str,
        session: Session,
        store: Realm,
        limits: Limits,
        failures: Failures,
        known: Callable[[int, bytes], None],
    ) -> None:
        self._name = name
        self._session = session
        self._store = store
        self._limits = limits
        self._failures = failures
        self._known = known
        self._shared: dict[int, object] = {}  # what keeps a shared value known to the store, by handle

    def begin(self, body: memoryview) -> Answer:
        digest, size = messages.get_chunk(body)
        if size > self._limits.tensor:
            raise LimitExceeded(f"a content of {size} bytes; the limit is {self._limits.tensor}")
        held = self._store.begin(self._name, digest, size)
        return Kind.HELD, messages.put_held(held or 0, direct=held is None), None

    def commit(self, body: memoryview) -> None:
        digest, handle, spec = messages.get_commit(body)
        size = messages.spec_bytes(spec, self._limits)
        try:
            content = self._store.take(self._name, digest)
            if len(content) != size:
                raise ProtocolError(f"a content of {len(content)} bytes for a value of {size}")
            self._use(digest, handle, spec, content)
        except (GenieError, MemoryError) as error:
            self._failures.add(handle, error)
        finally:
            self._store.done(self._name, digest)

    def stage(self, body: memoryview) -> Answer:
        """A STAGE: as an offer and its commit, if the whole content is here, and nothing otherwise."""
        digest, handle, spec = messages.get_commit(body)
        size = messages.spec_bytes(spec, self._limits)
        held = self._store.claim(self._name, digest, size)
        if held:
            try:
                self._use(digest, handle, spec, self._store.take(self._name, digest))
            finally:
                self._store.done(self._name, digest)
        return Kind.HELD, messages.put_held(size if held else 0, direct=not held), None

    def _use(self, digest: bytes, handle: int, spec: TensorSpec, content: memoryview) -> None:
        """A value from content that is here: the memory others of this device have of it, or a copy."""
        session = self._session
        if isinstance(session, Sharing):
            self._share(session, digest, handle, spec, content)
        else:
            session.upload(handle, spec, content)
        if spec.stride is None:  # else the value lies in another order in its memory
            self._known(handle, digest)

    def _share(self, session: Sharing, digest: bytes, handle: int, spec: TensorSpec, content: memoryview) -> None:
        device = self._session.device
        key = (device.id, spec)
        value = self._store.value(digest, key)
        if value is not None:
            session.adopt(handle, value)
        else:
            self._session.upload(handle, spec, content)
            value = session.share_content(handle) if isinstance(session, SharingContents) else session.share(handle)
            if device.kind == "cpu":  # one memory is enough
                self._store.keep(digest, key, value)
                self._store.replace(digest, flat(self._session.fetch(handle).data))
            elif isinstance(value, Weight):
                self._store.keep_weight(digest, key, value)
            else:
                self._store.keep(digest, key, value)
        self._shared[handle] = value

    def freed(self, handles: Sequence[int]) -> None:
        if self._shared:
            for handle in handles:
                self._shared.pop(handle, None)

    def renamed(self, handles: dict[int, int]) -> None:
        """What was one handle's is another's now; of what is not named nothing is left."""
        kept = self._shared
        self._shared = {new: kept[old] for old, new in handles.items() if old in kept}

    def release(self) -> None:
        """The session ended."""
        self._shared.clear()
        self._store.release(self._name)
