"""How a client meets a node: HELLO, WELCOME, and the quicker way where both are on one host."""

from __future__ import annotations

import contextlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import structlog

from genie.errors import (
    BackendUnavailable,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    NodeError,
    ProtocolError,
    Stage,
    TlsFailed,
    VersionMismatch,
)
from genie.interfaces import Connection, Keyed, Transport
from genie.remote.identity import client_name, host_identity
from genie.security.tickets import Ticket, prove_hello, prove_welcome
from genie.ways import Ticketed, is_socket
from genie.wire import PROTOCOL, Dialogue, Kind, frames, messages
from genie.wire.messages import MOST_PASSED_OVER, MOST_REASON, Back, Hello, Waiting, Welcome

log = structlog.get_logger("genie.client")

_LONGEST = 256  # characters of what a node says of why it is full
_PATIENCE_SECONDS = 600.0  # a session may compute for long


class Met(NamedTuple):
    """An open session, or with device -1 a node that has said who it is."""

    connection: Connection
    dialogue: Dialogue
    welcome: Welcome
    ticket: Ticket | None = None


class Wish(NamedTuple):
    """What a client would have, where a node is full: to wait for so many ``seconds``, with ``on_wait`` told its place
    as it changes; and a priority that is lower than its tenant's, if not "". ``passed_over``: by what it would rather
    have come, and why not, for who runs the node."""

    seconds: float = 0.0
    priority: str = ""
    on_wait: Callable[[Waiting], None] | None = None
    passed_over: Mapping[str, str] = {}


def quicker(welcome: Welcome) -> str:
    """The node's Unix socket for clients on its own host, if this process is one; else "". What it says is not
    believed where it names anything else."""
    here = bool(welcome.host) and welcome.host == host_identity()
    return welcome.local_address if here and is_socket(welcome.local_address) else ""


def farewell(met: Met) -> None:
    """End an open session in order."""
    with contextlib.suppress(GenieError):
        met.dialogue.say(Kind.BYE)
        met.connection.send(frames.one(met.dialogue.next_seq(), Kind.BYE))
    met.connection.close()


def meet(
    transport: Transport,
    address: str,
    device: int,
    timeout: float,
    *,
    genie: str = "",
    channel: str = "",
    ticket: Ticket | None = None,
    resumes: bool = False,
    back: Back | None = None,
    wish: Wish | None = None,
    node: str = "",
) -> Met:
    """Open a session on device number ``device`` of the node at ``address``; -1 only asks, connects a channel, or comes
    ``back``. A node that says it is busy is waited for as long as it says so, within ten minutes. With a ``ticket``
    both sides show that they know its key. ``wish``: what to do where the node is full; without, it refuses.
    ``node`` is what to call it, if ``address`` is a shortcut to it.

    Raises :class:`BackendUnavailable`, :class:`DeadlineExceeded`, :class:`VersionMismatch`, :class:`ProtocolError`, or
    what the node refused with.
    """
    wish = wish or Wish()
    node = node or address
    hello = Hello(
        major=PROTOCOL[0],
        minor=PROTOCOL[1],
        genie=genie,
        device=device,
        host=host_identity(),
        client=client_name(),
        channel=channel,
        resumes=resumes,
        back=back,
        waits=wish.seconds,
        priority=wish.priority,
        passed_over={name: why[:MOST_REASON] for name, why in [*wish.passed_over.items()][:MOST_PASSED_OVER]},
    )
    deadline = time.monotonic() + timeout
    if ticket is not None and isinstance(transport, Ticketed):
        connection = transport.connect_with(address, timeout, ticket.session, ticket.key)
    else:
        connection = transport.connect(address, timeout)
    dialogue = Dialogue(client=True)
    try:
        dialogue.say(Kind.HELLO)
        said = messages.put_struct(hello)
        proof = None if ticket is None else ticket.id + prove_hello(ticket, said)
        connection.send(greeting(dialogue.next_seq(), Kind.HELLO, said, proof))
        patience = time.monotonic() + max(_PATIENCE_SECONDS, wish.seconds + timeout)
        place: Waiting | None = None
        while True:
            message = connection.receive(_no_buffers, max(deadline - time.monotonic(), 0.001))
            kind, body, answered = heard(message.header)
            dialogue.hear(kind)
            if kind != Kind.WAIT:
                break
            now = time.monotonic()
            if len(body):
                place = _place(messages.get_waiting(body), place, node, wish)
            if now > patience:
                raise NodeError(f"the session was busy for {_PATIENCE_SECONDS:g} s", where=address)
            deadline = now + timeout
        if kind == Kind.ERROR:
            raise messages.get_error(body, node)
        if ticket is not None:
            _check_node(ticket, said, body, answered, address)
        welcome = messages.get_welcome(body)
        if welcome.major != PROTOCOL[0]:
            raise VersionMismatch(
                f"the node speaks version {welcome.major}.{welcome.minor} of the protocol (Genie {welcome.genie}), "
                f"this side {PROTOCOL[0]}.{PROTOCOL[1]}",
                where=address,
                hint="install the same version of Genie on both sides",
            )
    except DeadlineExceeded as error:
        connection.close()
        raise DeadlineExceeded(
            f"{address} accepted the connection, and did not greet within {timeout:g} s",
            stage=error.stage if error.stage is Stage.TLS else Stage.GREETING,
            seconds=timeout,
            setting="connect_timeout",
            where=address,
            hint="check that it is a Genie node's data port",
        ) from error
    except ConnectionLost as error:
        connection.close()
        hung_up = BackendUnavailable(
            f"{address} hung up during the greeting: {error.message}",
            where=address,
            hint="check that it is a Genie node's data port; see the node's log",
        )
        hung_up.transient = True
        raise hung_up from error
    except GenieError as error:
        connection.close()
        error.where = error.where or address
        raise
    except BaseException:
        connection.close()
        raise
    if place is not None:
        log.warning("there is room on the node now", node=node)
    if ticket is not None and isinstance(connection, Keyed):
        connection.keyed(ticket.key)
    return Met(connection, dialogue, welcome, ticket)


def greeting(seq: int, kind: Kind, said: bytes, proof: bytes | None) -> bytes:
    """The header of a HELLO or WELCOME, with a PROOF (the ticket's id and the HMAC) beside it if there is one."""
    if proof is None:
        return frames.one(seq, kind, said)
    return frames.message(seq, 2, frames.record(kind, said) + frames.record(Kind.PROOF, proof))


def heard(header: bytes) -> tuple[int, memoryview, memoryview | None]:
    """Kind and payload of a greeting, and the PROOF beside it if there is one."""
    _, records = frames.split(header)
    if len(records) == 1:
        return *records[0], None
    if len(records) == 2 and records[1][0] == Kind.PROOF:
        return *records[0], records[1][1]
    raise ProtocolError(f"a greeting of {len(records)} records")


def _place(now: Waiting, before: Waiting | None, node: str, wish: Wish) -> Waiting:
    if before is None or now.position != before.position:
        log.warning(
            "no room on the node: waiting for a place",
            node=node,
            reason=now.reason[:_LONGEST],
            place=now.position,
            waiting=now.waiting,
            seconds=wish.seconds,
        )
        if wish.on_wait is not None:
            wish.on_wait(now)
    return now


def _check_node(ticket: Ticket, said: bytes, body: memoryview, proof: memoryview | None, address: str) -> None:
    due = ticket.id + prove_welcome(ticket, said, body)
    if proof is None or not hmac.compare_digest(due, bytes(proof)):
        raise TlsFailed(
            "who answers is not the node that gave the ticket",
            where=address,
            hint="something between here and the node answers in its place",
        )


def _no_buffers(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    raise ProtocolError("a greeting came with bulk data")
