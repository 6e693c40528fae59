"""A session's values on a node: received where they stay, looked at, freed."""

from __future__ import annotations

import structlog

from genie.errors import GenieError, NodeError, OutOfMemory, ProtocolError
from genie.graph import TensorSpec
from genie.host import flat
from genie.interfaces import Buffer, Session
from genie.remote.abilities import Allocating, Allocation
from genie.remote.memory import room
from genie.remote.node.session.answers import Answer, valued
from genie.remote.node.session.contents import NodeContents
from genie.remote.node.session.failures import Failures
from genie.wire import Kind, Limits, messages

log = structlog.get_logger("genie.node")


class NodeValues:
    """Of one session, whose device has memory for ``capacity`` bytes."""

    def __init__(
        self, session: Session, limits: Limits, capacity: int, failures: Failures, contents: NodeContents
    ) -> None:
        self._session = session
        self._limits = limits
        self._capacity = capacity
        self._failures = failures
        self._contents = contents
        self._allocation: Allocation | None = None  # what is being received into, if the backend offered it

    # --- received -----------------------------------------------------------------------------------

    def await_none(self) -> None:
        """Of what was being received, nothing will come."""
        self._allocation = None

    def memory_of(self, spec: TensorSpec, size: int) -> memoryview:
        """Where the bytes of a value to come go. Raises what the session has no room for."""
        if isinstance(self._session, Allocating) and spec.stride is None:
            self._allocation = self._session.allocate(spec)
            return self._allocation.data
        if size > self._capacity:
            raise OutOfMemory(
                f"a value of {size} bytes does not fit: the device has memory for {self._capacity}",
                device=self._session.device.id,
                kind="OutOfMemory",
            )
        return room(size)

    def hold(self, handle: int, spec: TensorSpec, data: Buffer) -> None:
        """What was received, where :meth:`memory_of` said, is the value ``handle``."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.commit(handle)
        else:
            self._session.upload(handle, spec, data)

    def upload(self, body: memoryview) -> None:
        """An UPLOAD whose few bytes are in the record."""
        handle, spec, data = messages.get_value(body)
        if messages.spec_bytes(spec, self._limits) != len(data):
            raise ProtocolError(f"{len(data)} bytes of data for a value of shape {spec.shape}, {spec.dtype}")
        self.take(handle, spec, data)

    def take(self, handle: int, spec: TensorSpec, data: Buffer) -> None:
        try:
            self.hold(handle, spec, data)
        except (GenieError, MemoryError) as error:
            self._failures.add(handle, error)

    def free(self, body: memoryview) -> None:
        handles = messages.get_handles(body)
        self._contents.freed(handles)
        self._failures.drop(handles)
        try:
            self._session.free(handles)
        except GenieError as error:  # what was never made, because a step before it failed, need not be freed
            log.debug("not freed", reason=error.message)

    # --- looked at ----------------------------------------------------------------------------------

    def fetch(self, body: memoryview) -> Answer:
        handle, wanted = messages.get_fetch(body)
        self._failures.look(handle)
        value = self._session.fetch(handle)
        data = memoryview(value.data)
        if wanted not in (messages.ANY_SIZE, data.nbytes):
            raise NodeError(f"the value has {data.nbytes} bytes, the memory for it {wanted}", where=f"handle {handle}")
        spec = value.spec if value.spec.stride is None else TensorSpec(tuple(value.spec.shape), value.spec.dtype)
        if data.ndim != 1 or data.format != "B":
            data = flat(data)
        return valued(spec, data)

    def describe(self, body: memoryview) -> Answer:
        handle = messages.get_handle(body, "DESCRIBE")
        self._failures.look(handle)
        return Kind.SPEC, messages.put_struct(self._session.describe(handle)), None
