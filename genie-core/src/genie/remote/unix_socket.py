"""A node's quicker way for clients on its own host: a Unix socket, where the transport can."""

from __future__ import annotations

import contextlib
import os

import structlog

from genie.errors import ConfigError
from genie.interfaces import Listener, Transport
from genie.remote.directories import own_directory

log = structlog.get_logger("genie.node")


class LocalSocket:
    """At ``path``, or in a directory of its own that only this user enters."""

    def __init__(self, transport: Transport, path: str = "") -> None:
        self._transport = transport
        self._path = path
        self._directory: str | None = None

    def listen(self) -> Listener | None:
        """``None`` where there is none to be had. Raises :class:`ConfigError` if that is so of a path that was asked
        for."""
        if self._path:
            return self._transport.listen(f"unix:{self._path}")
        self._directory = own_directory()
        if self._directory is None:
            log.warning("no Unix socket: there is no directory to put it in")
            return None
        try:
            return self._transport.listen(f"unix:{self._directory}/node.sock")
        except ConfigError as error:
            log.debug("no Unix socket", transport=self._transport.name, reason=error.message)
            self.close()
            return None

    def close(self) -> None:
        """After the listener was."""
        if self._directory is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self._directory)
            self._directory = None
