"""Values from one member's session to another's: directly where both know how, else through this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genie.errors import RemoteOpError
from genie.host import HostValue
from genie.interfaces import Abandoning, Linked, Poisoning, Session


class Moves:
    """The ways between ``members``, made when they are first needed."""

    def __init__(self, members: Sequence[Session]) -> None:
        self._members = members
        self._ways: dict[tuple[int, int], tuple[int, Any]] = {}  # (outlet there, inlet here)
        self._new: dict[int, list[tuple[Session, Any]]] = {}  # … that may lead nowhere: by source, the other ends
        self._sent: dict[tuple[int, int], int] = {}  # how many values, by way
        self._position: dict[tuple[int, int, int], int] = {}  # of what was sent and not yet received
        self._carried: dict[tuple[int, int, int], HostValue | RemoteOpError] = {}
        self.direct = 0  # values sent from node to node
        self.carried = 0  # … and through this process

    def send(self, source: int, handle: int, target: int) -> None:
        """What ``handle`` is now on ``source`` goes to ``target``, where :meth:`receive` must follow."""
        way = self._way(source, target)
        sender = self._members[source]
        if way is not None:
            assert isinstance(sender, Linked)
            sender.send(way[0], handle)
            position = self._sent.get((source, target), 0)
            self._sent[source, target] = position + 1
            self._position[source, handle, target] = position
            self.direct += 1
            return
        try:
            value = HostValue(sender.describe(handle), memoryview(sender.fetch(handle).data))
            self._carried[source, handle, target] = value
        except RemoteOpError as error:
            self._carried[source, handle, target] = error
        self.carried += 1

    def prove(self) -> None:
        """To be called before anybody waits for what is under way, and costs an answer for each new way. A sender that
        cannot reach a receiver says so here; the receiver, which would wait for long, is told. Raises what the sender
        says."""
        while self._new:
            source, ends = next(iter(self._new.items()))
            try:
                self._members[source].synchronize()
            except RemoteOpError as error:
                for receiver, inlet in ends:
                    if isinstance(receiver, Abandoning):
                        receiver.abandon(inlet, error)
                del self._new[source]
                raise
            del self._new[source]

    def under_way(self, source: int, handle: int, target: int) -> bool:
        """Whether it was sent, and not yet received."""
        return (source, handle, target) in self._position or (source, handle, target) in self._carried

    def forget(self) -> None:
        """What is under way is not wanted any more: an execution broke off."""
        self._position.clear()
        self._carried.clear()

    def receive(self, source: int, handle: int, target: int, there: int) -> None:
        """The value that was ``handle`` on ``source`` when it was sent is ``there`` on ``target``."""
        way = self._way(source, target)
        receiver = self._members[target]
        if way is not None:
            assert isinstance(receiver, Linked)
            receiver.receive(way[1], self._position.pop((source, handle, target)), there)
            return
        value = self._carried.pop((source, handle, target))
        if not isinstance(value, RemoteOpError):
            receiver.upload(there, value.spec, value.data)
        elif isinstance(receiver, Poisoning):
            receiver.poison(there, value)
        else:
            raise value

    def _way(self, source: int, target: int) -> tuple[int, Any] | None:
        known = self._ways.get((source, target))
        if known is None:
            sender, receiver = self._members[source], self._members[target]
            if not (isinstance(sender, Linked) and isinstance(receiver, Linked)):
                return None
            inlet = receiver.inlet(sender.device.id)
            known = self._ways[source, target] = (sender.outlet(inlet), inlet)
            self._new.setdefault(source, []).append((receiver, inlet))
        return known
