"""What is under way between two calls, which no checkpoint has: values that were sent or are expected."""

from __future__ import annotations

from collections.abc import Sequence

from genie.lineage.member import Inlet

_ABANDONED = 1000  # values that were sent later: what was to receive it was broken off


class Flight:
    """Of one group."""

    def __init__(self) -> None:
        self._expected: set[tuple[int, int]] = set()  # member, handle
        self._sent: dict[Inlet, int] = {}  # values, by where they go
        self._under_way: dict[tuple[Inlet, int], int] = {}  # where to and position → number among all that were sent
        self._all = 0

    def expect(self, member: int, handle: int) -> None:
        self._expected.add((member, handle))

    def looked(self, member: int, handle: int) -> None:
        if self._expected:
            self._expected.discard((member, handle))

    def freed(self, member: int, handles: Sequence[int]) -> None:
        if self._expected:
            self._expected.difference_update((member, handle) for handle in handles)

    def send(self, to: Inlet) -> None:
        position = self._sent.get(to, 0)
        self._sent[to] = position + 1
        self._under_way[to, position] = self._all
        self._all += 1

    def receive(self, at: Inlet, position: int) -> None:
        self._under_way.pop((at, position), None)

    @property
    def anything(self) -> bool:
        if self._expected:
            return True
        return any(self._all - number < _ABANDONED for number in self._under_way.values())

    def sent(self, member: int, inlets: int) -> list[int]:
        """How many values went to each of a member's inlets."""
        return [self._sent.get(Inlet(member, number), 0) for number in range(inlets)]
