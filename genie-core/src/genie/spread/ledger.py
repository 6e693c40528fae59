"""How much memory of each member is taken, and by what: values that live there, and copies of others that can go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import NamedTuple

_MARGIN = 16  # a 16th of a device is left for what kernels need on the way


class Held(NamedTuple):
    """Bytes of one member, by what takes them."""

    weights: int
    copies: int
    others: int

    def __str__(self) -> str:
        return (
            f"{as_text(self.weights)} of weights, {as_text(self.copies)} of copies of what lives on other devices, "
            f"{as_text(self.others)} of other values"
        )


class Ledger:
    """Members are numbered. A value is counted under the handle of the program that its memory came with; what a plan
    made, by the shapes the plan was made with."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self._limits = [size - size // _MARGIN for size in capacities]
        self._sizes: dict[int, tuple[int, int]] = {}  # handle → member, bytes
        self._weights: set[int] = set()
        self._held = [0] * len(capacities)
        self._weight_bytes = [0] * len(capacities)
        # Least recently used first: handle there → handle of the program, bytes.
        self._copies: list[OrderedDict[int, tuple[int, int]]] = [OrderedDict() for _ in capacities]
        self._copied = [0] * len(capacities)

    # --- values that live there -----------------------------------------------------------------------

    def add(self, handle: int, member: int, size: int, *, weight: bool = False) -> None:
        self._sizes[handle] = (member, size)
        self._held[member] += size
        if weight:
            self._weights.add(handle)
            self._weight_bytes[member] += size

    def remove(self, handle: int) -> None:
        member, size = self._sizes.pop(handle, (0, 0))
        self._held[member] -= size
        if handle in self._weights:
            self._weights.remove(handle)
            self._weight_bytes[member] -= size

    def move(self, handle: int, member: int) -> None:
        if handle in self._sizes:
            size, weight = self._sizes[handle][1], handle in self._weights
            self.remove(handle)
            self.add(handle, member, size, weight=weight)

    def size(self, handle: int) -> int:
        """Of the memory that came with the handle; 0 for a view."""
        return self._sizes.get(handle, (0, 0))[1]

    # --- copies ---------------------------------------------------------------------------------------

    def add_copy(self, member: int, there: int, handle: int, size: int) -> None:
        self._copies[member][there] = (handle, size)
        self._copied[member] += size

    def used_copy(self, member: int, there: int) -> None:
        copies = self._copies[member]
        if there in copies:
            copies.move_to_end(there)

    def remove_copy(self, member: int, there: int) -> None:
        """If it is one."""
        self._copied[member] -= self._copies[member].pop(there, (0, 0))[1]

    def oldest(self, member: int, bytes: int, keep: Collection[int] = ()) -> list[tuple[int, int]]:
        """The copies to do without for so much room, but none of the handles to ``keep``: (handle, handle there)."""
        found = []
        for there, (handle, size) in self._copies[member].items():
            if bytes <= 0:
                break
            if handle not in keep:
                found.append((handle, there))
                bytes -= size
        return found

    # --- sums -----------------------------------------------------------------------------------------

    def short(self, member: int, more: int) -> int:
        """By how many bytes so many more would not fit; negative where they do."""
        return self._held[member] + self._copied[member] + more - self._limits[member]

    def values(self) -> list[int]:
        """Bytes of values by member, without copies: those go when room is needed."""
        return list(self._held)

    def place(self, handle: int) -> tuple[int, int] | None:
        """Where its bytes are counted, and how many."""
        return self._sizes.get(handle)

    def held(self, member: int) -> Held:
        weights = self._weight_bytes[member]
        return Held(weights, self._copied[member], self._held[member] - weights)


def as_text(size: int) -> str:
    """For people."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / (1 << 10):.1f} KiB"
