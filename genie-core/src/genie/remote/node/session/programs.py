"""A session's plans on a node: taken, executed, repeated."""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from genie import codec
from genie.errors import GenieError, LimitExceeded, ProtocolError, UnsupportedOperation
from genie.interfaces import Buffer, Looping, Session
from genie.remote.node.meters import Meter
from genie.remote.node.session.failures import Failures
from genie.remote.node.session.loop import NodeLoop
from genie.tenancy.pace import Pace
from genie.wire import Limits, loops, messages

log = structlog.get_logger("genie.node")

_MOST = 1 << 16


class NodePrograms:
    """Of the session ``name``, by the numbers its client gave them."""

    def __init__(
        self, name: str, session: Session, limits: Limits, meter: Meter, pace: Pace, failures: Failures
    ) -> None:
        self._name = name
        self._session = session
        self._limits = limits
        self._meter = meter
        self._pace = pace
        self._failures = failures
        self._plans: list[int] = []  # the session's numbers, negative for those that were refused
        self._refused: dict[int, GenieError] = {}
        self._loop = NodeLoop()

    def load(self, body: memoryview, data: Buffer | None = None) -> None:
        """A LOAD_PLAN; the plan is the rest of the record, or its ``data``."""
        number, used = messages.get_varint(body)
        if number != len(self._plans):
            raise ProtocolError(f"plan {number} was sent where {len(self._plans)} was due")
        if number >= _MOST:
            raise LimitExceeded(f"a session has at most {_MOST} plans")
        self._meter.loaded(number)
        try:
            self._pace.plan(len(body) - used if data is None else len(data))
            plan = codec.decode_plan(body[used:] if data is None else data, where=self._name, limit=self._limits.plan)
            self._plans.append(self._session.load(plan))
            log.debug("plan loaded", plan=number, steps=len(plan.graph.steps))
        except GenieError as error:
            log.info("plan refused", plan=number, reason=error.message)
            self._plans.append(-1)
            self._refused[number] = error
            self._failures.defer(error)

    def execute(self, body: memoryview) -> None:
        number, used = messages.get_varint(body)
        plan = self._plan(number)
        if plan < 0:
            self._failures.defer(self._refused[number])
            return
        try:
            self._session.execute(plan, body[used:])
        except GenieError as error:
            log.info("execution failed", plan=number, reason=error.message)
            self._failures.defer(self._failures.first(error))

    def _plan(self, number: int) -> int:
        """Its number in the local session, negative if it was refused."""
        try:
            found = self._plans[number]
        except IndexError:
            raise ProtocolError(f"plan {number} is executed and was never sent") from None
        self._meter.uses(number)
        return found

    def repeat(self, count: int, begin: loops.Begin | None) -> Iterator[bytes]:
        """So many iterations of the loop that ``begin`` begins, or of the one there is: an answer each."""
        if begin is not None:
            self._begin(begin)
        yield from self._loop.run(count)

    def _begin(self, begin: loops.Begin) -> None:
        self._loop.end()
        plan = self._plan(begin.plan)
        if plan < 0:
            raise self._refused[begin.plan]
        if not isinstance(self._session, Looping):
            raise UnsupportedOperation(
                f"the backend of {self._session.device.id} does not repeat plans", where=self._name
            )
        try:
            self._loop.begin(self._session.loop(plan, begin.bindings, begin.loop, begin.times))
        finally:
            # What went wrong before is the reason to tell; with the bindings both sides' memory moved on.
            self._failures.tell()

    def end_loop(self) -> None:
        """More of it may be asked for already: there is no more."""
        self._loop.end()
