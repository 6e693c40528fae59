"""Who listens: the connections that come in over the ports of a listener."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from genie.errors import ConnectionLost, DeadlineExceeded, GenieError, Stage
from genie.telemetry import get_logger
from genie_backend_dpdk import _native, memif
from genie_backend_dpdk.connection import DpdkConnection
from genie_backend_dpdk.interface import Wire
from genie_backend_dpdk.polling import Polling

_MEETING_SECONDS = 5.0
_log = get_logger("dpdk")

Wrap = Callable[[_native.Stream, str], DpdkConnection]


class DpdkListener:
    """Accepts what comes in over its ports, each of which sets ``ready``."""

    def __init__(self, address: str, wrap: Wrap) -> None:
        self.address = address
        self._wrap = wrap
        self._ready = _native.Event()
        self._lock = threading.Lock()
        self._ports: list[_native.Port] = []
        self._closed = False

    def accept(self, timeout: float | None = None) -> DpdkConnection:
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = select.poll()
        watch.register(self._ready.fileno(), select.POLLIN)
        while True:
            with self._lock:
                if self._closed:
                    raise ConnectionLost("the listener is closed", where=self.address)
                self._ready.clear()
                for port in self._ports:
                    if (stream := port.accept()) is not None:
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
            for port in self._ports:
                port.listen(None)
            self._ports = []
            self._ready.set()


class WireListener(DpdkListener):
    """What comes to the UDP port ``port`` (0: a free one) of an interface."""

    def __init__(self, wire: Wire, host: str, port: int, wrap: Wrap) -> None:
        super().__init__(f"{host}:{port}", wrap)
        self._wire = wire
        self._port = wire.listen(port, self._ready)
        self.address = f"{host}:{self._port}"
        self._ports.append(wire.port)

    def close(self) -> None:
        if self._closed:
            return
        super().close()
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
            except OSError:
                return
            try:
                with control:
                    port = memif.open_door(control, self._ready, self._polling, _MEETING_SECONDS, self._deadline)
            except (GenieError, OSError) as error:  # who came is told by the socket's end
                _log.warning("a client got no device", address=self.address, error=str(error))
                continue
            with self._lock:
                self._ports = [each for each in self._ports if not each.gone or each.connections]
                if self._closed:
                    port.listen(None)
                else:
                    self._ports.append(port)
                    self._ready.set()  # somebody may have come in already

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
