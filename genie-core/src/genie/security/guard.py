"""What a node asks of whoever comes, and what it writes down about them."""

from __future__ import annotations

import attrs

from genie.errors import AccessDenied
from genie.security.audit import AuditLog
from genie.security.revoked import RevokedFile
from genie.security.tickets import ID_BYTES, PROOF_BYTES, Ticket, Tickets
from genie.security.tokens import Entry, Scope, TokenFile

NEEDED = "this node is for who has a token"
NEEDED_HINT = "set `token_file` to the file of a token that this node knows"
_EVERYTHING = frozenset(Scope)


@attrs.frozen
class Identity:
    """Somebody: the name and scopes of the token, the common name of the certificate, the address. What a node does
    not ask for is empty; a node without tokens lets everybody do everything."""

    name: str = ""
    tenant: str = ""
    scopes: frozenset[Scope] = _EVERYTHING
    certificate: str = ""
    peer: str = ""
    fingerprint: str = attrs.field(default="", repr=False)  # of the certificate
    digest: str = attrs.field(default="", repr=False)  # of the token: a new one of the same name is another

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    def continues(self, owner: Identity) -> bool:
        """Whether a session that ``owner`` opened may be gone on with. Who had no certificate to show (a Unix socket
        asks for none) may have one now."""
        same = (self.name, self.digest) == (owner.name, owner.digest)
        return same and owner.certificate in ("", self.certificate)

    @property
    def facts(self) -> dict[str, str]:
        """For the audit log."""
        return {"user": self.name, "tenant": self.tenant, "certificate": self.certificate, "peer": self.peer}


class Guard:
    """A node's doorkeeper. Without ``tokens`` nobody is asked for one; TLS asks for certificates before any of this.
    May be called from any thread."""

    def __init__(
        self, tokens: TokenFile | None = None, audit: AuditLog | None = None, revoked: RevokedFile | None = None
    ) -> None:
        self._tokens = tokens
        self._revoked = revoked
        self._tickets: Tickets[Identity] = Tickets()
        self.audit = audit or AuditLog()

    @property
    def wants_tickets(self) -> bool:
        return self._tokens is not None

    @property
    def ticket_seconds(self) -> float:
        return self._tickets.seconds

    def check_certificate(self, who: Identity) -> None:
        """Raises :class:`AccessDenied` for a certificate that was revoked, for the caller to write down."""
        if reason := self._distrusted(who):
            raise AccessDenied(reason)

    def identify(
        self, bearer: str, scope: Scope, where: str, *, peer: str = "", certificate: str = "", fingerprint: str = ""
    ) -> Identity:
        """Who asks ``where``, on the control plane or over HTTP. Raises :class:`AccessDenied` for who may not."""
        anybody = Identity(peer=peer, certificate=certificate, fingerprint=fingerprint)
        if reason := self._distrusted(anybody):
            raise self._refused(reason, where, anybody)
        if self._tokens is None:
            return anybody
        entry = self._tokens.find(bearer) if bearer else None
        if entry is None:
            raise self._refused("the token is unknown" if bearer else NEEDED, where, anybody, hint=NEEDED_HINT)
        identity = _identity(entry, anybody)
        if entry.expired:
            raise self._refused(
                f"the token {entry.name!r} has expired", where, identity, hint="ask the node's operator for a new one"
            )
        if scope not in entry.scopes:
            its = ", ".join(each.value for each in entry.scopes)
            raise self._refused(
                f"the token {entry.name!r} has no scope {scope.value!r}",
                where,
                identity,
                hint=f"it has {its}; who runs the node makes tokens with others: "
                f"`genie tokens add FILE NAME --scope {scope.value}`, and --scope may be given several times",
            )
        return identity

    def ticket(self, identity: Identity, device: int, *, bound: bool = False) -> Ticket:
        return self._tickets.give(device, identity.name or identity.certificate, identity, bound=bound)

    def admit(
        self,
        hello: bytes | memoryview,
        proof: memoryview | None,
        device: int,
        stranger: Identity,
        *,
        session: int = 0,
        wanted: bool = False,
    ) -> tuple[Identity, Ticket | None]:
        """Who greets on the data plane, before anything is made for them. ``proof`` is the ticket's id and the HMAC,
        ``session`` the ticket that protects the connection, if one does; one may be ``wanted`` without tokens, too: of
        who showed a certificate. Raises :class:`AccessDenied`, for the caller to write down."""
        if proof is None and self._tokens is not None:
            raise AccessDenied(NEEDED, hint=NEEDED_HINT)
        if proof is None and wanted:
            raise AccessDenied("the greeting comes without a ticket", hint="the control plane gives them")
        if proof is None:
            return stranger, None
        if len(proof) != ID_BYTES + PROOF_BYTES:
            raise AccessDenied("a proof of impossible length")
        ticket, owner = self._tickets.redeem(
            bytes(proof[:ID_BYTES]), device, hello, bytes(proof[ID_BYTES:]), session=session
        )
        identity = attrs.evolve(owner, peer=stranger.peer, certificate=stranger.certificate or owner.certificate)
        identity = attrs.evolve(identity, fingerprint=stranger.fingerprint or owner.fingerprint)
        if reason := self.unwelcome(identity):  # since the ticket was given
            raise AccessDenied(f"{identity.name!r}: {reason}")
        return identity, ticket

    def unwelcome(self, identity: Identity) -> str:
        """Why who was let in is not any more: the certificate was revoked, the token was or has expired. "" if it is as
        it was."""
        if reason := self._distrusted(identity):
            return reason
        if self._tokens is None or not identity.name:
            return ""
        known = (entry for entry in self._tokens.entries() if entry.sha256 == identity.digest)
        entry = next((each for each in known if Scope.USE in each.scopes), None)
        if entry is None:
            return "its token was revoked"
        return "its token has expired" if entry.expired else ""

    def _distrusted(self, who: Identity) -> str:
        if self._revoked is None or not (who.certificate or who.fingerprint):
            return ""
        if not who.fingerprint:
            return "the certificate cannot be looked up among the revoked ones"
        return f"the certificate of {who.certificate!r} was revoked" if self._revoked.has(who.fingerprint) else ""

    def _refused(self, reason: str, where: str, identity: Identity, hint: str = "") -> AccessDenied:
        self.audit.write("refused", where=where, reason=reason, **identity.facts)
        return AccessDenied(reason, hint=hint)


def _identity(entry: Entry, anybody: Identity) -> Identity:
    return attrs.evolve(
        anybody,
        name=entry.name,
        tenant=entry.tenant or entry.name,
        scopes=frozenset(entry.scopes),
        digest=entry.sha256,
    )
