"""What one side has said and the other may not have: kept until it is acknowledged, to be said again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

KEPT_DATA = 1 << 16  # of one answer, that a node keeps: larger values it makes again


_OVERHEAD = 128  # bytes that keeping a message takes besides its own


class Said(NamedTuple):
    """A message: its header, and its buffer if it has one. ``lost``: the buffer's memory is somebody else's again."""

    header: bytes
    data: memoryview | None = None
    lost: bool = False

    @property
    def size(self) -> int:
        return _OVERHEAD + len(self.header) + (0 if self.data is None else len(self.data))


class Kept:
    """Messages in order, numbered without gaps; the next one is ``next``.

    ``bytes`` is the memory that all of them take. Data is kept by reference. Until :meth:`own` or :meth:`give_back`
    says otherwise, memory that can change is somebody's who must not change it.
    """

    def __init__(self, first: int) -> None:
        self.next = first
        self.bytes = 0
        self.borrowed = 0  # bytes of memory that can change
        self._messages: deque[Said | bytes] = deque()  # most are a header alone

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def first(self) -> int:
        """The oldest one's number. Not counted apart, so that an interrupt cannot come between two counts."""
        return self.next - len(self._messages)

    def add(self, header: bytes, data: memoryview | None = None) -> None:
        """An interrupt finds all of it done, or nothing."""
        size, borrowed = _OVERHEAD + len(header), 0
        said: Said | bytes = header
        if data is not None:
            said = Said(header, data)
            size += len(data)
            borrowed = 0 if isinstance(data.obj, bytes) else len(data)
        self._messages += (said,)  # unlike a call: the interpreter looks for signals after none of these
        self.bytes += size
        self.borrowed += borrowed
        self.next += 1

    def lose(self) -> None:
        """The message added last had data that is not kept."""
        self._messages[-1] = _said(self._messages[-1])._replace(lost=True)

    def acknowledge(self, number: int) -> None:
        """The other side has all up to this one."""
        messages = self._messages
        while messages and self.next - len(messages) <= number:
            said = messages[0]
            if isinstance(said, bytes):
                size, borrowed = _OVERHEAD + len(said), 0
            else:
                size = said.size
                borrowed = 0 if said.data is None or isinstance(said.data.obj, bytes) else len(said.data)
            del messages[0]
            self.bytes -= size
            self.borrowed -= borrowed
        if not messages:
            self.bytes = self.borrowed = 0

    def since(self, number: int) -> list[Said]:
        """Those after this one."""
        skip = max(number + 1 - self.first, 0)
        return [_said(each) for each in islice(self._messages, skip, None)]

    def own(self) -> None:
        """Copy what is in memory of others."""
        self._replace(lambda said: said._replace(data=memoryview(bytes(said.data or b""))))

    def give_back(self) -> None:
        """Keep nothing that is in memory of others: it can't be said again."""
        self._replace(lambda said: said._replace(data=None, lost=True))

    def _replace(self, made: Callable[[Said], Said]) -> None:
        if self.borrowed:
            for index, each in enumerate(self._messages):
                said = _said(each)
                if said.data is not None and not isinstance(said.data.obj, bytes):
                    self._messages[index] = made(said)
            self.bytes = sum(_said(each).size for each in self._messages)
            self.borrowed = 0


def _said(kept: Said | bytes) -> Said:
    return Said(kept) if isinstance(kept, bytes) else kept
