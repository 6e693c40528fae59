"""What is said on the control plane: this package's own structs, in msgpack."""

from __future__ import annotations

import msgspec

from genie.device import Device
from genie.remote.node.session.info import SessionInfo
from genie.remote.seen.accounts import AccountView
from genie.ways import Ways
from genie.wire import PROTOCOL, Limits


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """``versions`` are those of the node's Python packages, as far as they are installed. ``account`` is of the tenant
    that asks; ``waiting`` are the clients that wait for a place. ``ways`` are how clients come in, ``host`` is
    the identity that all on its host share."""

    address: str
    local_address: str = ""
    host: str = ""
    transports: tuple[str, ...] = ()
    ways: Ways = ()
    protocol: tuple[int, int] = PROTOCOL
    versions: dict[str, str] = {}
    devices: tuple[Device, ...] = ()
    limits: Limits = Limits()
    draining: bool = False
    content: dict[str, int] = {}
    account: AccountView | None = None
    waiting: int = 0


class Sessions(msgspec.Struct, frozen=True):
    sessions: tuple[SessionInfo, ...] = ()


class Drain(msgspec.Struct, frozen=True):
    """Take no more sessions, and stop once there are none or after ``seconds``."""

    seconds: float = 30.0


class Drained(msgspec.Struct, frozen=True):
    sessions: int = 0


class Open(msgspec.Struct, frozen=True):
    """A ticket, please, for device number ``device``; -1 for being told what there is. ``bound``: good only for a
    connection that it protects from its first packet on."""

    device: int = -1
    bound: bool = False


class Opened(msgspec.Struct, frozen=True):
    """A ticket, good for ``seconds``. Nodes of older versions say nothing of ``bound``."""

    id: bytes
    key: bytes
    seconds: float
    bound: bool = False

    def __repr__(self) -> str:  # the key belongs in no log
        return f"Opened(seconds={self.seconds!r})"


class Cancel(msgspec.Struct, frozen=True):
    """End this session; with ``work_only`` stop what it is at, and leave it be."""

    session: str
    work_only: bool = False


class Cancelled(msgspec.Struct, frozen=True):
    found: bool = False


class Nothing(msgspec.Struct, frozen=True):
    pass
