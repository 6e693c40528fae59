"""Values from one emulated device to another, within this process: their memory is shared where it can be."""

from __future__ import annotations

import threading

import attrs

from genie.emulate.virtual import Way as VirtualWay
from genie.errors import ConnectionLost, DeadlineExceeded, GenieError, Stage
from genie.graph import TensorSpec
from genie.host import HostValue
from genie.interfaces import Session
from genie.remote.abilities import Sharing

_ARRIVE_SECONDS = 600.0  # as between nodes: a sender may compute for long


@attrs.frozen
class Shared:
    """A value's memory on the real device ``place``."""

    place: str
    value: object


Parcel = HostValue | Shared | GenieError


class Way:
    """An inlet and what is on its way there."""

    def __init__(self, source: str, virtual: VirtualWay) -> None:
        self.source = source
        self.virtual = virtual
        self._changed = threading.Condition()
        self._sent = 0
        self._arrived: dict[int, Parcel] = {}  # by position
        self._ended = False

    def put(self, parcel: Parcel) -> None:
        with self._changed:
            if not self._ended:
                self._arrived[self._sent] = parcel
                self._sent += 1
                self._changed.notify_all()

    def take(self, position: int) -> HostValue | Shared:
        """What was sent at ``position``; raises what was sent in place of a value, :class:`ConnectionLost` when nothing
        will come any more, :class:`DeadlineExceeded` when nothing came for long."""
        with self._changed:
            if not self._changed.wait_for(lambda: position in self._arrived or self._ended, _ARRIVE_SECONDS):
                raise DeadlineExceeded(
                    f"{self.source} sent nothing for {_ARRIVE_SECONDS:g} s",
                    stage=Stage.TRANSFER,
                    seconds=_ARRIVE_SECONDS,
                    where=self.source,
                )
            if position not in self._arrived:
                raise ConnectionLost("the session that was to send ended", where=self.source)
            parcel = self._arrived.pop(position)
        if isinstance(parcel, GenieError):
            raise parcel
        return parcel

    def end(self) -> None:
        """What has arrived can still be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def packed(session: Session, place: str, handle: int) -> tuple[HostValue | Shared, TensorSpec]:
    """The value as it is now. Raises what looking at it raises."""
    spec = session.describe(handle)  # strides and all: what is computed there must be laid out as here
    if isinstance(session, Sharing) and spec.stride is None:
        value = session.share(handle)
        if getattr(value, "nbytes", None) == spec.nbytes:  # part of a larger memory would take all of that with it
            return Shared(place, value), spec
    return HostValue(spec, memoryview(session.fetch(handle).data)), spec


def unpack(parcel: HostValue | Shared, session: Session, place: str, handle: int) -> None:
    """Have the value in ``session``, on the real device ``place``."""
    if isinstance(parcel, HostValue):
        session.upload(handle, parcel.spec, parcel.data)
    else:
        assert isinstance(session, Sharing) and parcel.place == place
        session.adopt(handle, parcel.value)
