"""What a store of checkpoints does."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from genie.interfaces import Session
from genie.snapshots import Snapshot


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One state that is kept whole. ``made`` is the time (s since 1970), ``note`` the caller's own."""

    id: int  # grows with each of the store
    snapshot: Snapshot
    made: float
    note: bytes = b""


@runtime_checkable
class CheckpointStore(Protocol):
    """Keeps the last few states of one session after another, each sharing with those before it what did not change.

    >>> store = DiskCheckpoints("/var/lib/me/checkpoints")
    >>> checkpoint = store.save(session)
    >>> store.load(checkpoint, new_session)

    What fails leaves the checkpoints there were as they are.
    """

    def save(self, session: Session, note: bytes = b"") -> Checkpoint:
        """Keep the session's state of now: nothing else may be asked of it meanwhile. Only what the store does not
        have is moved. Raises :class:`genie.errors.CheckpointError` where it cannot be kept, what the session raises,
        and :class:`genie.errors.NodeError` if somebody wrote to a memory meanwhile."""

    def load(self, checkpoint: Checkpoint, session: Session) -> None:
        """Make ``session``, which holds nothing, what the other was. Raises :class:`genie.errors.CheckpointError` if
        the checkpoint is gone or damaged; the session is of no use then."""

    def drop(self, checkpoint: Checkpoint) -> None:
        """Forget it, if it is there still."""

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Those that are kept, the oldest first."""

    def close(self) -> None: ...
