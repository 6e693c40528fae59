"""Virtual time among threads: programs ask, workers tell what they did, looks let time pass.

What happens when depends on what was asked, in its order, and never on how fast this machine does it: times are the
same in every run (unless work is measured). So time passes at looks only, and when very much was asked without one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from genie.emulate.report import Report
from genie.emulate.virtual import Kind, Line, Request, Stream, VirtualTime, Way
from genie.errors import DeadlineExceeded, Stage

_MOST_PENDING = 1 << 14


class Ledger:
    """Any thread may call. A wait ends with :class:`DeadlineExceeded` when nothing gets done for ``timeout`` s."""

    def __init__(self, devices: Sequence[str], line: Line, timeout: float) -> None:
        self._time = VirtualTime(devices, line)
        self._timeout = timeout
        self._changed = threading.Condition()
        self._steps = 0

    def open(self, device: str) -> Stream:
        with self._changed:
            return self._time.open(device)

    def end(self, stream: Stream) -> None:
        with self._changed:
            self._time.end(stream)
            self._changed.notify_all()

    def ask(
        self,
        stream: Stream,
        kind: Kind,
        what: str = "",
        amount: float | None = None,
        way: Way | None = None,
        position: int = 0,
    ) -> Request:
        with self._changed:
            if self._time.pending >= _MOST_PENDING:
                self._advance()
            return self._time.ask(stream, kind, what, amount, way, position)

    def know(self, request: Request | None, amount: float) -> None:
        """A worker did something: ``request``, which took so many seconds, or bytes."""
        with self._changed:
            if request is not None and request.amount is None:
                request.amount = amount
            self._steps += 1
            self._changed.notify_all()

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Until ``done()``, which changes with what workers do."""
        with self._changed:
            self._wait(done, what)

    def pass_time(self, request: Request) -> None:
        """The client waits until ``request`` is answered."""
        with self._changed:
            self._advance(request)
            if request.finished is not None:
                self._time.now = max(self._time.now, request.finished)

    def report(self) -> Report:
        with self._changed:
            self._advance()
            time = self._time
            spans = sorted(time.spans, key=lambda span: (span.start, span.finish))
            return Report(
                seconds=max(time.now, time.latest) - time.origin,
                busy=dict(time.busy),
                traffic=dict(time.traffic),
                trace=tuple(
                    span._replace(start=span.start - time.origin, finish=span.finish - time.origin) for span in spans
                ),
            )

    def restart(self) -> None:
        with self._changed:
            self._advance()
            self._time.restart()

    def _advance(self, until: Request | None = None) -> None:
        while (lacking := self._time.advance(until)) is not None:
            self._wait(lambda: lacking.amount is not None, lacking.what)

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        while not done():
            steps = self._steps
            if not self._changed.wait_for(lambda: done() or self._steps != steps, self._timeout):  # noqa: B023
                raise DeadlineExceeded(
                    f"nothing was done for {self._timeout:g} s while waiting for {what or 'a device'}",
                    stage=Stage.ANSWER,
                    seconds=self._timeout,
                    setting="timeout",
                    hint="give large work more time: `timeout` (GENIE_TIMEOUT)",
                )
