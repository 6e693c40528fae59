"""Where a lost session can go: the device it was on, if a node answers there again, else another of its kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from genie.device import Device
from genie.errors import BackendUnavailable, GenieError, LimitExceeded
from genie.interfaces import Backend, Session
from genie.lineage.budget import Budget
from genie.lineage.member import Member, Recoverable

_Connect: TypeAlias = Callable[[Device], Session]


@runtime_checkable
class Impatient(Backend, Protocol):
    """A backend that otherwise waits where there is no room."""

    def connect_now(self, device: Device) -> Session:
        """As ``connect``. Raises :class:`LimitExceeded` at once where there is no room."""


class Places:
    """The devices of ``backend``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._failed: dict[str, tuple[Device, type[GenieError], str]] = {}  # why it did not do, the latest time

    def connect(self, device: Device, taken: Sequence[Device]) -> tuple[Recoverable, Device]:
        """A session in place of one on ``device``, preferably there and where none of ``taken`` is; and its device."""
        for place, connect in self._attempts(self._candidates(device, taken)):
            try:
                session = connect(place)
            except GenieError as error:
                self._failed[place.id] = (place, type(error), error.message)
                continue
            self._failed.pop(place.id, None)
            assert isinstance(session, Recoverable)
            return session, place
        raise BackendUnavailable(f"no node could take the place of {device.id}", where=device.address or "")

    def _attempts(self, places: Sequence[Device]) -> Iterator[tuple[Device, _Connect]]:
        """Each place, and how to ask there. Only when all have been asked the first that is full is waited for."""
        if len(places) < 2 or not isinstance(self._backend, Impatient):
            yield from ((place, self._backend.connect) for place in places)
            return
        full: list[Device] = []
        for place in places:
            yield place, self._backend.connect_now
            if issubclass(self._failed[place.id][1], LimitExceeded):
                full.append(place)
        yield from ((place, self._backend.connect) for place in full[:1])

    def connect_all(self, devices: Sequence[Device], budget: Budget) -> list[tuple[Recoverable, Device]]:
        """In place of those on all of ``devices``; the time that takes is of the ``budget``."""
        made: list[tuple[Recoverable, Device]] = []
        began = time.monotonic()
        try:
            for device in devices:
                made.append(self.connect(device, [place for _, place in made]))
        except BaseException:
            for session, _ in made:
                session.close()
            raise
        finally:
            budget.spend(time.monotonic() - began)
        return made

    def apart(self, member: Member) -> tuple[Recoverable, Device]:
        """A session on another node than the member's, without waiting for one."""
        here = member.place
        connect = self._backend.connect_now if isinstance(self._backend, Impatient) else self._backend.connect
        for place in self._backend.devices():
            if place.address != here.address and place.kind == here.kind:
                try:
                    session = connect(place)
                except GenieError:
                    continue
                assert isinstance(session, Recoverable)
                return session, place
        raise BackendUnavailable(f"there is no other node than that of {here.id}", where=here.address or "")

    def _candidates(self, device: Device, taken: Sequence[Device]) -> list[Device]:
        def order(place: Device) -> tuple[bool, bool, int]:
            return place.id in self._failed, place != device, sum(place == each for each in taken)

        return sorted((place for place in self._backend.devices() if alike(place, device)), key=order)

    def tried(self) -> str:
        return "; ".join(f"{place.id}: {why}" for place, _, why in self._failed.values())


def alike(place: Device, device: Device) -> bool:
    """Whether it computes the same, to the bit, as far as is known."""
    return place == device or (place.kind == device.kind and _model(place) == _model(device))


def _model(device: Device) -> list[str]:
    """What its results depend on: the parts of its hardware's name but for the host, and how many cores there are."""
    return [part for part in device.hardware.split(", ")[:-1] if not part.endswith(" cores")]
