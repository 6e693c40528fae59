"""Who listens: the connections that come in over the ports of a listener."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from genie.errors import ConnectionLost, DeadlineExceeded, GenieError, Stage
from genie.telemetry import get_logger
from genie.ways import Way
from genie_backend_dpdk import _native, memif
from genie_backend_dpdk.connection import DpdkConnection
from genie_backend_dpdk.interface import Wire
from genie_backend_dpdk.polling import Polling
from genie_backend_dpdk.way import offered

_MEETING_SECONDS = 5.0
_PAUSE_SECONDS = 0.1
_log = get_logger("dpdk")

_MOST_EXPECTED = 1 << 14

Wrap = Callable[[_native.Stream, str], DpdkConnection]


@dataclass(frozen=True)
class _Expected:
    """Somebody with a ticket of this ``session``, before the clock says ``until``."""

    session: int
    secret: bytes = field(repr=False)
    until: float


class DpdkListener:
    """Accepts what comes in over its ports, each of which sets ``ready``."""

    def __init__(self, address: str, wrap: Wrap, *, interface: bool = False) -> None:
        self.address = address
        self._interface = interface
        self._wrap = wrap
        self._ready = _native.Event()
        self._lock = threading.Lock()
        self._ports: list[_native.Port] = []
        self._expected: list[_Expected] = []
        self._closed = False

    @property
    def ways(self) -> tuple[Way, ...]:
        """See :class:`genie.ways.Offering`."""
        return offered(self.address, interface=self._interface)

    def expect(self, session: int, secret: bytes, seconds: float) -> None:
        """See :class:`genie.ways.Admitting`."""
        now = time.monotonic()
        with self._lock:
            left = [each for each in self._expected if each.until > now]
            self._expected = [*left, _Expected(session, secret, now + seconds)][-_MOST_EXPECTED:]
            for port in self._ports:
                port.expect(session, secret, seconds)

    def _admit(self, port: _native.Port) -> None:
        """Whoever has a ticket may come in over it, too."""
        with self._lock:
            if self._closed:
                return
            now = time.monotonic()
            for each in self._expected:
                if each.until > now:
                    port.expect(each.session, each.secret, each.until - now)
            self._ports.append(port)
            port.listen(self._ready)

    def _tidy(self) -> None:
        """With the lock. Links end whose client is gone: each has a thread, and one of the few devices of a process."""
        self._ports = [each for each in self._ports if not each.gone or each.connections]

    def _next(self) -> _native.Stream | None:
        """With the lock: somebody who has come in."""
        return next((stream for port in self._ports if (stream := port.accept()) is not None), None)

    def _drop(self, ports: list[_native.Port]) -> None:
        with self._lock:
            self._ports = [each for each in self._ports if each not in ports]

    def accept(self, timeout: float | None = None) -> DpdkConnection:
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = select.poll()
        watch.register(self._ready.fileno(), select.POLLIN)
        while True:
            with self._lock:
                if self._closed or _native.forked():
                    raise ConnectionLost("the listener is closed", where=self.address)
                self._tidy()
                self._ready.clear()
                if (stream := self._next()) is not None:
                    self._ready.set()  # there may be more, and others who accept
                    return self._wrap(stream, f"{self.address} client")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded(
                    f"nobody connected within {timeout:g} s", stage=Stage.CONNECT, where=self.address
                )
            watch.poll(None if left is None else left * 1000)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if _native.forked():  # it is the parent's
                return
            for port in self._ports:
                port.listen(None)
            self._ports = []
            self._ready.set()


class WireListener(DpdkListener):
    """What comes to the UDP port ``port`` (0: a free one) of an interface."""

    def __init__(self, wire: Wire, host: str, port: int, wrap: Wrap) -> None:
        super().__init__(f"{host}:{port}", wrap, interface=True)
        self._wire = wire
        self._port = wire.listen(port, self._ready)
        self.address = f"{host}:{self._port}"
        with self._lock:
            self._ports.append(wire.port)

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        if _native.forked():
            return
        self._wire.stop_listening(self._port)


class DoorListener(DpdkListener):
    """A socket at ``path`` where clients ask for devices, and the connections that come in over those."""

    def __init__(
        self, door: socket.socket, path: str, address: str, wrap: Wrap, polling: Polling, deadline: float
    ) -> None:
        super().__init__(address, wrap)
        self._door = door
        self._path = path
        self._polling = polling
        self._deadline = deadline
        threading.Thread(target=self._answer, name=f"genie-dpdk {address}", daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                control, _ = self._door.accept()
            except OSError as error:
                if self._closed:
                    return
                # Out of descriptors, or a client gone before it was served: the next accept may do better.
                _log.warning("not accepted", address=self.address, reason=error.strerror)
                time.sleep(_PAUSE_SECONDS)
                continue
            self._meet(control)

    def _meet(self, control: socket.socket) -> None:
        made: list[_native.Port] = []

        def admit(port: _native.Port) -> None:
            made.append(port)
            self._admit(port)

        with self._lock:
            self._tidy()
        try:
            with control:
                memif.open_door(control, admit, self._polling, _MEETING_SECONDS, self._deadline)
        except (GenieError, OSError) as error:  # who came is told by the socket's end
            self._drop(made)
            _log.warning("a client got no device", address=self.address, error=str(error))
            return
        self._ready.set()  # somebody may have come in already

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        if _native.forked():
            self._door.close()
            return
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
