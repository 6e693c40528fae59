"""A node's door on the data plane: what may be said over a connection before it is known whose it is."""

from __future__ import annotations

from genie.errors import AccessDenied
from genie.interfaces import Certified, Connection, Transport, encrypts
from genie.remote.joined import parts
from genie.remote.secrecy import protection
from genie.security import Guard, Identity, Ticket
from genie.ways import UNIX, Bound, carrier
from genie.wire import PROTOCOL
from genie.wire.messages import Hello, Welcome


class Door:
    """With ``plain_data`` a connection that neither speaks TLS nor stays on this host is served only if a ticket
    protects it from its first packet on. What does not say what carries it is taken for one that does neither."""

    def __init__(self, guard: Guard, transport: Transport, *, plain_data: bool) -> None:
        self._guard = guard
        self._plain_data = plain_data
        self._parts = parts(transport)
        self._secret = {UNIX, *(each.name for each in self._parts if encrypts(each))}

    def only_asks(self, connection: Connection, hello: Hello, proof: memoryview | None) -> bool:
        """Where the control plane is: by somebody who has no ticket yet, and is told nothing else."""
        asks = proof is None and not hello.channel and hello.back is None and hello.device < 0
        return asks and self._wants_ticket(connection)

    def let_in(
        self, connection: Connection, hello: Hello, body: memoryview, proof: memoryview | None
    ) -> tuple[Identity, Ticket | None]:
        """Who greets, before anything is made for them. Whoever brings another node's values shows the channel's token
        instead of a ticket, over TLS where there is any: on its way in clear anybody could take it."""
        comer, plain = stranger(connection), self._plain(connection)
        session = connection.session if isinstance(connection, Bound) else 0
        if plain and (not session or hello.channel):
            raise AccessDenied(
                "over what does not speak TLS this node takes clients with a ticket from the first packet on, and "
                "nobody else",
                hint="ask its control plane for one; channels from other nodes come over TLS",
            )
        if hello.channel and hello.back is None:
            return comer, None
        return self._guard.admit(body, proof, hello.device, comer, session=session, wanted=plain)

    def protection(self, label: str) -> str:
        """What keeps others from the data of a session that ``label`` carries."""
        return protection(label, self._parts, tickets=self._plain_data or self._guard.wants_tickets)

    def _wants_ticket(self, connection: Connection) -> bool:
        return self._guard.wants_tickets or self._plain(connection)

    def _plain(self, connection: Connection) -> bool:
        return self._plain_data and carrier(connection) not in self._secret


def stranger(connection: Connection) -> Identity:
    """Who is at the other end, as far as the connection knows."""
    certificate = connection.subject if isinstance(connection, Certified) else ""
    return Identity(
        peer=str(getattr(connection, "peer", "")),
        certificate=certificate,
        fingerprint=str(getattr(connection, "fingerprint", "")),
    )


def bare_welcome(control_port: int) -> Welcome:
    """For who has no ticket: where to ask for one."""
    return Welcome(major=PROTOCOL[0], minor=PROTOCOL[1], control_port=control_port, tickets=True)
