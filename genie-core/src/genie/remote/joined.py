"""Several transports as one: a node listens with all that can, a caller takes the first that leads there."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from genie.config import Settings
from genie.errors import (
    BackendUnavailable,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    PluginError,
    Stage,
)
from genie.interfaces import Connection, Listener, Transport, encrypts
from genie.ways import Admitting, ways_of

log = structlog.get_logger("genie.node")

_RETRY_SECONDS = 0.1
_MOST_WAITING = 64  # connections that nobody has accepted yet


class JoinedListener:
    """At the address of the first of ``listeners``, each of the transport of a name; who comes to any of them is
    accepted."""

    def __init__(self, listeners: Sequence[tuple[str, Listener]]) -> None:
        self.address = listeners[0][1].address
        self.ways = tuple(way for name, each in listeners for way in ways_of(name, each))
        self._listeners = tuple(each for _, each in listeners)
        self._came: queue.Queue[Connection | GenieError] = queue.Queue(_MOST_WAITING)
        self._closed = threading.Event()
        for each in self._listeners:
            threading.Thread(target=self._take, args=(each,), name=f"genie-accept-{each.address}", daemon=True).start()

    def _take(self, listener: Listener) -> None:
        while not self._closed.is_set():
            try:
                self._came.put(listener.accept())
                if self._closed.is_set():  # meanwhile
                    self._turn_away()
            except BackendUnavailable as error:  # for this one client; the next may do better
                self._came.put(error)
                self._closed.wait(_RETRY_SECONDS)
            except ConnectionLost:
                return

    def expect(self, session: int, secret: bytes, seconds: float) -> None:
        """See :class:`genie.ways.Admitting`."""
        for each in self._listeners:
            if isinstance(each, Admitting):
                each.expect(session, secret, seconds)

    def accept(self, timeout: float | None = None) -> Connection:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._closed.is_set():
            try:
                came = self._came.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0.0))
            except queue.Empty as error:
                raise DeadlineExceeded(
                    f"nobody connected within {timeout:g} s", stage=Stage.CONNECT, where=self.address
                ) from error
            if isinstance(came, GenieError):
                raise came
            if not self._closed.is_set():
                return came
            came.close()
        raise ConnectionLost("the listener is closed", where=self.address)

    def close(self) -> None:
        self._closed.set()
        for each in self._listeners:
            each.close()
        self._turn_away()

    def _turn_away(self) -> None:
        """Nobody accepts those who came, and who waits to accept is woken."""
        with contextlib.suppress(queue.Empty):
            while True:
                came = self._came.get_nowait()
                if not isinstance(came, GenieError):
                    came.close()
        with contextlib.suppress(queue.Full):  # then there is something to wake them
            self._came.put_nowait(ConnectionLost("the listener is closed", where=self.address))


class JoinedTransport:
    """``transports`` by preference. The last one must be able to listen; of the others those that can't are left out,
    and ``name`` no longer says them."""

    def __init__(self, transports: Sequence[Transport]) -> None:
        self._transports = tuple(transports)
        self.name = _names(self._transports)
        self.encrypts = all(map(encrypts, self._transports))

    @property
    def parts(self) -> tuple[Transport, ...]:
        return self._transports

    def connect(self, address: str, timeout: float) -> Connection:
        *preferred, last = self._transports
        for each in preferred:
            try:
                return each.connect(address, timeout)
            except BackendUnavailable as error:
                log.debug("transport passed over", transport=each.name, address=address, reason=error.message)
        return last.connect(address, timeout)

    def listen(self, address: str) -> JoinedListener:
        *preferred, last = self._transports
        listeners: list[tuple[str, Listener]] = [(last.name, last.listen(address))]
        for each in preferred:
            try:
                # At the same address: a port that was picked is told to all.
                listeners.append((each.name, each.listen(listeners[0][1].address)))
            except (BackendUnavailable, ConfigError) as error:
                if address.startswith("unix:"):  # a shortcut, which is the last one's affair
                    continue
                log.warning("transport passed over", transport=each.name, address=address, reason=error.message)
                self._transports = tuple(other for other in self._transports if other is not each)
                self.name = _names(self._transports)
        return JoinedListener(listeners)


def parts(transport: Transport) -> tuple[Transport, ...]:
    """Those that ``transport`` is several of, or it alone."""
    return transport.parts if isinstance(transport, JoinedTransport) else (transport,)


def _names(transports: Sequence[Transport]) -> str:
    return ",".join(each.name for each in transports)


def joined(names: str, make: Callable[..., Any], settings: Settings) -> Transport:
    """The transport called ``names``, or several as one (``"dpdk,tcp"``). All but the last are left out, and that is
    logged, where they are not installed or do not work. ``make`` is the registry's."""
    *preferred, last = [name.strip() for name in names.split(",")]
    made: list[Transport] = []
    for name in preferred:
        try:
            made.append(make("transport", name, settings))
        except (PluginError, BackendUnavailable) as error:
            log.warning("transport passed over", transport=name, reason=error.message)
    fallback: Transport = make("transport", last, settings)
    return JoinedTransport([*made, fallback]) if made else fallback
