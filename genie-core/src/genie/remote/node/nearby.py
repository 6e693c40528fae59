"""A node's Unix socket: quicker than TCP for clients on its own host."""

from __future__ import annotations

import os

import structlog

from genie.errors import ConfigError
from genie.interfaces import Listener, Transport
from genie.remote.node.directories import SOCKET, own_directory

log = structlog.get_logger("genie.node")


def listen_locally(transport: Transport, wanted: bool | str) -> tuple[Listener | None, str | None]:
    """At the path ``wanted``, which has to be had, or in a new directory for this user alone, if one can be made. The
    listener, if there is one; and the directory, to be removed when it is closed."""
    if not wanted:
        return None, None
    if isinstance(wanted, str):
        return transport.listen(f"unix:{wanted}"), None
    directory = own_directory()
    if directory is None:
        log.warning("no Unix socket: there is no directory to put it in")
        return None, None
    try:
        return transport.listen(f"unix:{directory}/{SOCKET}"), directory
    except ConfigError as error:
        log.debug("no Unix socket", transport=transport.name, reason=error.message)
        os.rmdir(directory)
        return None, None
