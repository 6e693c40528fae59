"""Which sessions are recovered, and from what on."""

from __future__ import annotations

from collections.abc import Sequence

from genie.interfaces import Backend, Losing, Session
from genie.lineage.group import Group
from genie.lineage.member import Recoverable
from genie.lineage.session import LineageSession
from genie.lineage.terms import Terms


def guarded(sessions: Sequence[Session], backend: Backend, terms: Terms) -> list[Session]:
    """The sessions of one engine, which have done nothing yet, so that they outlive their nodes; as they are, where
    there is nothing to outlive."""
    able = [session for session in sessions if isinstance(session, Recoverable)]
    if not (isinstance(backend, Losing) and backend.loses and len(able) == len(sessions)):
        return list(sessions)
    try:
        group = Group(able, backend, terms)
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return [LineageSession(group, member.number) for member in group.members]
