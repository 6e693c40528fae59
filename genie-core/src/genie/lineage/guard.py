"""Which sessions are recovered, and from what on."""

from __future__ import annotations

from collections.abc import Sequence

from genie import telemetry
from genie.device import Device
from genie.errors import BackendError, BackendUnavailable
from genie.interfaces import Backend, Losing, Session
from genie.lineage.budget import Budget
from genie.lineage.group import Group
from genie.lineage.member import Recoverable
from genie.lineage.places import Places
from genie.lineage.session import LineageSession
from genie.lineage.terms import Terms

log = telemetry.get_logger("genie.lineage")


def elsewhere(devices: Sequence[Device], backend: Backend, terms: Terms, failure: BackendError) -> list[Session]:
    """Sessions in place of those on ``devices`` that could not be connected, because of ``failure``: there if it is
    possible after all, else on others of their kind. Raises :class:`BackendUnavailable` when there is none in time."""
    if not (isinstance(backend, Losing) and backend.loses):
        raise failure
    places, budget = Places(backend), Budget(terms.attempts, terms.seconds)
    while True:
        log.warning("not connected yet", device=devices[0].id, reason=failure.message)
        try:
            return [session for session, _ in places.connect_all(devices, budget)]
        except BackendError as error:
            failure = error
        if not budget.again():
            reason = places.tried() or failure.message
            raise BackendUnavailable(f"{failure.message}: {reason}", where=failure.where) from failure


def guarded(sessions: Sequence[Session], backend: Backend, terms: Terms, devices: Sequence[Device]) -> list[Session]:
    """The sessions of one engine, which have done nothing yet, so that they outlive their nodes; as they are, where
    there is nothing to outlive. ``devices`` are what they go by, wherever they are."""
    able = [session for session in sessions if isinstance(session, Recoverable)]
    if not (isinstance(backend, Losing) and backend.loses and len(able) == len(sessions)):
        return list(sessions)
    try:
        group = Group(able, backend, terms, devices)
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return [LineageSession(group, member.number) for member in group.members]
