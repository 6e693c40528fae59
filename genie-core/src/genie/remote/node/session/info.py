"""A session as others see it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from genie.device import Device
from genie.interfaces import Connection
from genie.remote.node.session.lasting import Lasting
from genie.security import Identity
from genie.ways import carrier
from genie.wire.messages import Hello

_LONGEST_NAME = 128


class SessionInfo(msgspec.Struct, frozen=True):
    """A session as the control plane lists it; ``since`` is Unix time. ``passed_over`` is what its client says: the
    transports it would rather have come by, and why it did not."""

    id: str
    client: str
    device: str
    since: float
    user: str = ""  # the name of the token, where the node asks for one
    tenant: str = ""
    away: bool = False  # its connection broke, and it may come back
    transport: str = ""  # what carries it, where the connection knows
    passed_over: dict[str, str] = {}
    protection: str = ""  # what keeps others from its data: see genie.remote.secrecy


def begun(name: str, hello: Hello, device: Device, connection: Connection, owner: Identity, tenant: str) -> SessionInfo:
    """Of a session that begins now, on the ``device`` as clients see it."""
    return SessionInfo(
        name,
        hello.client[:_LONGEST_NAME],
        device.id,
        time.time(),
        owner.name,
        tenant,
        transport=carrier(connection),
        passed_over=plainly(hello.passed_over),
    )


def now(info: SessionInfo, lasting: Lasting | None, protection: Callable[[str], str]) -> SessionInfo:
    """As it is, if its connection may break and be made anew. ``protection`` says what the transport's is."""
    if lasting is None:
        return msgspec.structs.replace(info, protection=protection(info.transport))
    label = lasting.transport
    return msgspec.structs.replace(info, away=lasting.away, transport=label, protection=protection(label))


def back(info: SessionInfo, hello: Hello) -> SessionInfo:
    """Its client came back, perhaps by another way."""
    return msgspec.structs.replace(info, passed_over=plainly(hello.passed_over))


def plainly(said: dict[str, str]) -> dict[str, str]:
    """A stranger's words, for a terminal."""
    return {_printable(name): _printable(why) for name, why in said.items()}


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)
