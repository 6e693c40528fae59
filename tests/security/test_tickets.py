"""Tickets: once, in time, for one device, and only for who has the key."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from genie.errors import AccessDenied, LimitExceeded
from genie.security import Guard, Identity, Scope, Ticket, TokenFile, tokens
from genie.security.tickets import Tickets, prove_hello, prove_welcome

HELLO = b"hello"


def test_a_ticket_opens_once() -> None:
    tickets: Tickets[str] = Tickets()
    ticket = tickets.give(0, "alice", "owner")
    assert tickets.redeem(ticket.id, 0, HELLO, prove_hello(ticket, HELLO)) == (ticket, "owner")
    with pytest.raises(AccessDenied, match="used"):
        tickets.redeem(ticket.id, 0, HELLO, prove_hello(ticket, HELLO))


@pytest.mark.parametrize("case", ["device", "greeting", "key", "id", "direction", "late"])
def test_a_ticket_that_does_not_fit_is_refused_and_gone(case: str) -> None:
    tickets: Tickets[str] = Tickets(seconds=0.0 if case == "late" else 30.0)
    ticket = tickets.give(0, "alice", "owner")
    device, hello, shown, proof = 0, HELLO, ticket.id, prove_hello(ticket, HELLO)
    if case == "device":
        device = 1
    elif case == "greeting":
        hello = b"another"
    elif case == "key":
        proof = prove_hello(attrs.evolve(ticket, key=bytes(32)), HELLO)
    elif case == "id":
        shown = bytes(16)
    elif case == "direction":  # what the node answers with is no proof of a client's
        proof = prove_welcome(ticket, HELLO, b"")
    with pytest.raises(AccessDenied):
        tickets.redeem(shown, device, hello, proof)
    if case != "id":
        with pytest.raises(AccessDenied):
            tickets.redeem(ticket.id, 0, HELLO, prove_hello(ticket, HELLO))


def test_one_holder_cannot_take_the_tickets_of_the_others() -> None:
    tickets: Tickets[str] = Tickets()
    with pytest.raises(LimitExceeded):
        for _ in range(10_000):
            tickets.give(0, "greedy", "")
    tickets.give(0, "modest", "")


def test_tickets_do_not_pile_up() -> None:
    tickets: Tickets[str] = Tickets(seconds=0.0)
    for _ in range(1000):
        tickets.give(0, "greedy", "")


def test_a_key_is_not_printed() -> None:
    ticket = Ticket(b"i" * 16, b"secret" * 5)
    assert "secret" not in repr(ticket)


def test_a_token_revoked_after_its_ticket_was_given(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = tokens.add(path, "alice")
    guard = Guard(TokenFile(path))
    alice = guard.identify(token, Scope.USE, "Open")
    ticket = guard.ticket(alice, 0)
    proof = memoryview(ticket.id + prove_hello(ticket, HELLO))
    tokens.revoke(path, "alice")
    tokens.add(path, "alice")  # another of the same name is another
    assert guard.unwelcome(alice) == "its token was revoked"
    with pytest.raises(AccessDenied, match="revoked"):
        guard.admit(HELLO, proof, 0, Identity())
