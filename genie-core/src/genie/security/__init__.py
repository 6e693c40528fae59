"""Who may do what on a node, and how nobody else learns of it: TLS, tokens, tickets, the audit log.

``certs`` and ``rpc`` need libraries that the rest does without, and are imported where they are used.
"""

from genie.security.audit import AuditLog
from genie.security.guard import Guard, Identity
from genie.security.revoked import RevokedFile
from genie.security.tickets import Ticket
from genie.security.tls import Tls, TlsFiles
from genie.security.tokens import Scope, TokenFile

__all__ = ["AuditLog", "Guard", "Identity", "RevokedFile", "Scope", "Ticket", "Tls", "TlsFiles", "TokenFile"]
