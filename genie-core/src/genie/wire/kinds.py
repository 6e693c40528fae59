"""The kinds of records, who may send them, and the order of a conversation."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, IntEnum
from typing import Final, TypeAlias

from genie.errors import LocalProtocolError, ProtocolError

PROTOCOL: Final = (1, 1)  # major, minor of what the records mean
RESUMING: Final = 1  # the minor since which a session outlives its connection


class Kind(IntEnum):
    """Numbers are for ever: a retired one is not used again."""

    HELLO = 1
    WELCOME = 2
    ERROR = 3
    BYE = 4
    PROOF = 5  # beside HELLO and WELCOME, in their message: that its sender knows the ticket's key
    WAIT = 6  # to who comes back: the session is still at work, and will answer; since 1.1

    # Never answered; what goes wrong is told by the answer to a later request.
    LOAD_PLAN = 16
    EXECUTE = 17
    UPLOAD = 18
    FREE = 19
    SEED = 20
    SET_GENERATOR_STATE = 21
    UPLOAD_CHUNK = 22
    UPLOAD_COMMIT = 23
    SEND = 24
    RECEIVE = 25
    OUTLET = 26
    TRACE = 27  # since 1.1
    HEARD = 28  # since 1.1
    SEND_MEMORY = 29  # since 1.1

    # Answered, in order.
    UPLOAD_BEGIN = 32
    FETCH = 33
    DESCRIBE = 34
    GENERATOR_STATE = 35
    SYNC = 36
    STATS = 37
    INLET = 38
    PROFILE = 40
    LOOP = 41  # by several answers
    MARK = 42
    SNAPSHOT = 43  # this and what follows since 1.1
    READ_MEMORY = 44
    RESTORE = 45
    STAGE = 46

    # Answers.
    HELD = 48
    VALUE = 49
    SPEC = 50
    STATE = 51
    DONE = 52
    COUNTERS = 53
    INLET_OPEN = 54
    PROFILED = 56
    LOOPED = 57
    MARKED = 58


WORK: Final = frozenset(kind for kind in Kind if 16 <= kind < 32)
REQUESTS: Final = frozenset(kind for kind in Kind if 32 <= kind < 48)
ANSWERS: Final = frozenset(kind for kind in Kind if kind >= 48) | {Kind.ERROR}
# The records whose bulk may travel as the message's one buffer.
BULKY: Final = frozenset({Kind.LOAD_PLAN, Kind.UPLOAD, Kind.UPLOAD_CHUNK, Kind.SET_GENERATOR_STATE, Kind.VALUE})


class State(Enum):
    # A member is a key of the tables below, for every message: hash it as the object it is.
    __hash__ = object.__hash__

    NEW = "new"
    GREETED = "greeted"  # HELLO is on its way, or being considered
    OPEN = "open"
    CLOSED = "closed"


_Rules: TypeAlias = dict[State, dict[int, State]]


def _rules(*rules: tuple[State, Iterable[Kind], State]) -> _Rules:
    table: _Rules = {state: {} for state in State}
    for before, kinds, after in rules:
        table[before] |= {int(kind): after for kind in kinds}
    return table


_CLIENT_SAYS: Final = _rules(
    (State.NEW, [Kind.HELLO], State.GREETED),
    (State.OPEN, WORK | REQUESTS, State.OPEN),
    *((state, [Kind.BYE], State.CLOSED) for state in (State.NEW, State.GREETED, State.OPEN)),
)
_NODE_SAYS: Final = _rules(
    (State.NEW, [Kind.ERROR], State.CLOSED),
    (State.GREETED, [Kind.WELCOME], State.OPEN),
    (State.GREETED, [Kind.WAIT], State.GREETED),
    (State.GREETED, [Kind.ERROR], State.CLOSED),
    (State.OPEN, ANSWERS, State.OPEN),
    (State.OPEN, [Kind.BYE], State.CLOSED),
)


class Dialogue:
    """One side's view of a session: what may be said next, and with which number.

    The client numbers its messages 0, 1, 2 …; an answer carries the number of the message that asked.
    """

    def __init__(self, *, client: bool) -> None:
        self.state = State.NEW
        self.seq = -1  # of the client's last message
        self._mine, self._theirs = (_CLIENT_SAYS, _NODE_SAYS) if client else (_NODE_SAYS, _CLIENT_SAYS)

    def next_seq(self) -> int:
        """The number of the client's next message; it must then be sent."""
        self.seq = (self.seq + 1) & 0xFFFFFFFF
        return self.seq

    def numbered(self, seq: int) -> None:
        """A message from the client arrived."""
        due = (self.seq + 1) & 0xFFFFFFFF
        if seq != due:
            raise ProtocolError(f"message {seq} arrived where {due} was due")
        self.seq = seq

    def say(self, kind: int) -> None:
        state = self._mine[self.state].get(kind)
        if state is None:
            raise LocalProtocolError(f"{_name(kind)} cannot be sent in a session that is {self.state.value}")
        self.state = state

    def hear(self, kind: int) -> None:
        state = self._theirs[self.state].get(kind)
        if state is None:
            raise ProtocolError(f"{_name(kind)} is not allowed in a session that is {self.state.value}")
        self.state = state

    def close(self) -> None:
        self.state = State.CLOSED


def _name(kind: int) -> str:
    return Kind(kind).name if kind in Kind._value2member_map_ else f"record kind {kind}"
