"""When the states of a group's sessions are kept, and where."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from genie import telemetry
from genie.checkpoints import Checkpoint, CheckpointStore, DiskCheckpoints, NodeCheckpoints
from genie.errors import BackendError, BackendUnavailable, CheckpointError, GenieError
from genie.interfaces import Session
from genie.lineage.member import Member
from genie.lineage.places import Places
from genie.lineage.terms import Terms

log = telemetry.get_logger("genie.lineage")

_SHARE = 50  # of the time: one part in so many is for checkpoints, at most
_KEEP = 2  # the last whole one of the group, and the one that is being made


@attrs.frozen
class Saved:
    """A checkpoint of all members at one point of their work."""

    checkpoints: tuple[Checkpoint, ...]
    received: tuple[list[int], ...]  # by member, and inlet: what it had got
    bytes: int


@attrs.define(eq=False)
class _Shelf:
    """Where one member's checkpoints are."""

    store: CheckpointStore
    standby: Session | None = None
    at: str = ""  # its node's address


class Checkpointing:
    """Of one group, whose own ``directory`` is."""

    def __init__(self, terms: Terms, places: Places, directory: Path) -> None:
        self.saved: Saved | None = None
        self.count = 0
        self.seconds = 0.0
        self._interval = terms.checkpoint_interval
        self._to_node = terms.checkpoint_to == "node"
        self._bytes = terms.disk_bytes
        self._places = places
        self._directory = directory
        self._shelves: dict[int, _Shelf] = {}
        self.due = time.monotonic() + self._interval if self.enabled else float("inf")

    @property
    def enabled(self) -> bool:
        return self._interval > 0

    def save(self, members: Sequence[Member], received: Sequence[list[int]]) -> None:
        """Nothing may be under way. What fails leaves the last one as it is: raises :class:`GenieError`."""
        began = time.monotonic()
        shelves: dict[int, _Shelf] = {}
        made: list[Checkpoint] = []
        try:
            for member in members:
                shelf = shelves[member.number] = self._shelf(member, len(members))
                made.append(shelf.store.save(member.session))
        except BaseException:
            for shelf, checkpoint in zip(shelves.values(), made, strict=False):
                with contextlib.suppress(GenieError):
                    shelf.store.drop(checkpoint)
            self._remove(shelf for shelf in shelves.values() if shelf not in self._shelves.values())
            raise
        finally:
            now = time.monotonic()
            self.seconds += now - began
            self.due = now + max(self._interval, _SHARE * (now - began))
        before, self._shelves = self._shelves, shelves
        self._remove(shelf for shelf in before.values() if shelf not in shelves.values())
        checkpoints = tuple(made)
        size = sum(each.snapshot.bytes for each in checkpoints)
        self.saved = Saved(checkpoints, tuple(received), size)
        self.count += 1
        log.info("checkpoint", seconds=round(now - began, 3), bytes=size, to="node" if self._to_node else "disk")

    def load(self, member: Member) -> None:
        """The state at the last one, into the member's new session."""
        if self.saved is None:
            return
        shelf = self._shelves[member.number]
        try:
            shelf.store.load(self.saved.checkpoints[member.number], member.session)
        except BackendError as error:
            if getattr(shelf.standby, "closed", False):
                raise CheckpointError(
                    f"the node that kept it is gone, too ({error.message})", where=shelf.at
                ) from error
            raise

    def received(self, member: Member) -> list[int]:
        return self.saved.received[member.number] if self.saved is not None else []

    def _shelf(self, member: Member, members: int) -> _Shelf:
        """Where to keep the next one: another place than before if what is there is lost, or would be with the member;
        all of the state is kept there then."""
        shelf = self._shelves.get(member.number)
        if shelf is None or (shelf.standby is not None and not self._stands(shelf.standby, shelf.at, member)):
            return self._made(member, members)
        return shelf

    def _stands(self, standby: Session, at: str, member: Member) -> bool:
        if at == member.place.address:
            return False
        try:
            standby.synchronize()
        except BackendError:
            return False
        return True

    def _made(self, member: Member, members: int) -> _Shelf:
        if self._to_node:
            try:
                standby, place = self._places.apart(member)
                return _Shelf(NodeCheckpoints(standby, keep=_KEEP), standby, place.address or "")
            except BackendUnavailable as error:
                log.warning("checkpoints go to disk", reason=error.message)
        directory = self._directory / f"checkpoints-{member.number}"
        # They are for this process alone: a crash of its host needs none.
        return _Shelf(DiskCheckpoints(directory, max_bytes=self._bytes // members, keep=_KEEP, durable=False))

    def _remove(self, shelves: Iterable[_Shelf]) -> None:
        for shelf in shelves:
            with contextlib.suppress(GenieError):
                shelf.store.close()
            if shelf.standby is not None:
                shelf.standby.close()

    def close(self) -> None:
        self._remove(self._shelves.values())
        self._shelves = {}
        self.saved = None
