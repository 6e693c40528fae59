"""A channel's token on its way through sessions that do not encrypt: who reads it there could send by it."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import msgspec

from genie.errors import ProtocolError
from genie.security.tickets import Ticket
from genie.wire.channels import Target


def veil(ticket: Ticket | None, end: Literal["inlet", "outlet"], number: int, target: Target) -> Target:
    """``target``, as the session of ``ticket`` says it of its ``end`` of that ``number``; and of what it said, the
    target. Nothing is done where the ticket is not bound: such a session encrypts, or asks for no secrecy. A number
    stands for one channel of a session, and the token is random, so its pad is used once."""
    if ticket is None or not ticket.bound:
        return target
    try:
        token = bytes.fromhex(target.token)
    except ValueError as error:
        raise ProtocolError("the token of a channel is not hexadecimal") from error
    pad = hmac.new(ticket.key, f"genie: {end}\0{number}".encode(), hashlib.sha256).digest()
    if len(token) > len(pad):
        raise ProtocolError(f"the token of a channel has {len(token)} bytes")
    return msgspec.structs.replace(target, token=bytes(a ^ b for a, b in zip(token, pad, strict=False)).hex())
