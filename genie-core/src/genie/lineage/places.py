"""Where a lost session can go: the device it was on, if a node answers there again, else another of its kind."""

from __future__ import annotations

import time
from collections.abc import Sequence

from genie.device import Device
from genie.errors import BackendUnavailable, GenieError
from genie.interfaces import Backend
from genie.lineage.budget import Budget
from genie.lineage.member import Member, Recoverable


class Places:
    """The devices of ``backend``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._failed: dict[str, tuple[Device, str]] = {}  # device → why it did not do, the latest time

    def connect(self, device: Device, taken: Sequence[Device]) -> tuple[Recoverable, Device]:
        """A session in place of one on ``device``, preferably there and where none of ``taken`` is; and its device."""
        for place in self._candidates(device, taken):
            try:
                session = self._backend.connect(place)
            except GenieError as error:
                self._failed[place.id] = (place, error.message)
                continue
            self._failed.pop(place.id, None)
            assert isinstance(session, Recoverable)
            return session, place
        raise BackendUnavailable(f"no node could take the place of {device.id}", where=device.address or "")

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
        """A session on another node than the member's."""
        here = member.place
        for place in self._backend.devices():
            if place.address != here.address and place.kind == here.kind:
                try:
                    session = self._backend.connect(place)
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
        return "; ".join(f"{place.id}: {why}" for place, why in self._failed.values())


def alike(place: Device, device: Device) -> bool:
    """Whether it computes the same, to the bit, as far as is known."""
    return place == device or (place.kind == device.kind and _model(place) == _model(device))


def _model(device: Device) -> list[str]:
    """What its results depend on: the parts of its hardware's name but for the host, and how many cores there are."""
    return [part for part in device.hardware.split(", ")[:-1] if not part.endswith(" cores")]
