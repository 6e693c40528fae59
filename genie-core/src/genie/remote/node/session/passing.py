"""Values that a session passes to other nodes' sessions, and takes from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from genie.errors import DeadlineExceeded, GenieError
from genie.host import HostValue
from genie.interfaces import Poisoning, Session
from genie.remote.abilities import Sharing
from genie.remote.channels.ends import Channels
from genie.remote.node.session.answers import Answer
from genie.remote.node.session.failures import Failures
from genie.remote.node.session.state import NodeState
from genie.remote.node.session.values import NodeValues
from genie.tenancy.pace import Pace
from genie.wire import Kind, channels, snapshots


class Passing:
    """By one session's ends of ``channels``. While it waits for others, its tenant's other sessions are let in
    (``pace``), and no longer than until its own client is ``gone``."""

    def __init__(
        self,
        session: Session,
        channels: Channels,
        values: NodeValues,
        state: NodeState,
        failures: Failures,
        pace: Pace,
        gone: Callable[[], bool],
    ) -> None:
        self._session = session
        self._channels = channels
        self._values = values
        self._state = state
        self._failures = failures
        self._pace = pace
        self._gone = gone
        channels.told = failures.defer

    def outlet(self, body: memoryview) -> None:
        opened = channels.get_outlet(body)
        self._channels.connect(opened.number, opened.target)

    def inlet(self, body: memoryview) -> Answer:
        opening = channels.get_opening(body)
        return Kind.INLET_OPEN, channels.put(self._channels.open(opening.number, opening.source)), None

    def send(self, body: memoryview) -> None:
        number, handle = channels.get_send(body)
        try:
            with self._pace.elsewhere():
                self._channels.send(number, lambda: self._sent(handle), self._gone)
        except DeadlineExceeded as error:  # the receiver is told, too: the session goes on without that channel
            self._failures.defer(error)

    def send_memory(self, body: memoryview) -> None:
        number, id, version = snapshots.get_send(body)
        with contextlib.suppress(DeadlineExceeded), self._pace.elsewhere():
            # Where it is late the receiver is told: it is no affair of the program's.
            self._channels.send(number, lambda: self._state.sent(id, version), self._gone)

    def _sent(self, handle: int) -> HostValue:
        try:
            spec = self._session.describe(handle)  # strides and all: what is computed there must be laid out as here
            data = memoryview(self._session.fetch(handle).data)
            # It leaves later: of what is not shared, later work might write to it before.
            return HostValue(spec, data if isinstance(self._session, Sharing) else memoryview(bytes(data)))
        except GenieError as error:
            raise self._failures.cause(handle, error) from None

    def receive(self, body: memoryview) -> None:
        number, position, handle = channels.get_receive(body)
        inlet = self._channels.inlet(number)
        inlet.check(position)
        self._values.await_none()
        try:
            with self._pace.elsewhere():
                value = inlet.take(position, self._values.memory_of, self._gone)
            self._values.hold(handle, value.spec, value.data)
        except (GenieError, MemoryError) as error:
            self._values.await_none()
            if isinstance(self._session, Poisoning) and isinstance(error, GenieError):
                self._poison(self._session, handle, error)
            else:
                self._failures.add(handle, error)

    def _poison(self, session: Poisoning, handle: int, error: GenieError) -> None:
        try:
            session.poison(handle, error)
        except GenieError as refused:  # the handle is another value's, or none
            self._failures.defer(refused)

    def settle(self) -> None:
        """Wait until all that is to be sent has somebody to take it. Raises why that can't be."""
        if not self._channels.sends():
            return
        with self._pace.elsewhere():
            failure = self._channels.settle()
        if failure is not None:
            self._failures.settled(failure)
            raise failure
