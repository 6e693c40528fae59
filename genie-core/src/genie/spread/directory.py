"""Which value lives where: handles of the program, and what they are called on each member's session."""

from __future__ import annotations

from collections.abc import Iterator


class Directory:
    """What is not said lives on the first device, under the program's own handle, in memory of its own."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, int]] = {}  # handle → (device, handle there)
        self._storage: dict[int, int] = {}  # handle → the handle its memory is called by
        self._sharers: dict[int, int] = {}  # storage → how many values, where there is more than one
        self._copies: dict[int, dict[tuple[int, int], int]] = {}  # storage → (handle, device) → handle there

    def home(self, handle: int) -> tuple[int, int]:
        """The device where the value lives, and its handle there."""
        return self._held.get(handle, (0, handle))

    def at(self, handle: int, device: int) -> int | None:
        """The value's handle on ``device``, where it lives or has a copy."""
        home, there = self._held.get(handle, (0, handle))
        if home == device:
            return there
        copies = self._copies.get(self.storage(handle))
        return copies.get((handle, device)) if copies else None

    def storage(self, handle: int) -> int:
        """Equal for values that share memory."""
        return self._storage.get(handle, handle)

    def add(self, handle: int, device: int, there: int, sharing: int | None = None) -> None:
        """A new value; ``sharing`` is one whose memory it shares."""
        if (device, there) != (0, handle):
            self._held[handle] = (device, there)
        if sharing is not None:
            storage = self._storage[handle] = self.storage(sharing)
            self._sharers[storage] = self._sharers.get(storage, 1) + 1

    def alone(self, handle: int) -> bool:
        """Whether no other value shares its memory."""
        return self.storage(handle) not in self._sharers

    def move(self, handle: int, device: int, there: int) -> Iterator[tuple[int, int]]:
        """A value that is alone lives elsewhere from now on. Gives what it was called, where."""
        yield self.home(handle)
        yield from self.wrote(handle)
        self._held[handle] = (device, there)

    def add_copy(self, handle: int, device: int, there: int) -> None:
        self._copies.setdefault(self.storage(handle), {})[handle, device] = there

    def drop_copy(self, handle: int, device: int) -> None:
        copies = self._copies[self.storage(handle)]
        del copies[handle, device]
        if not copies:
            del self._copies[self.storage(handle)]

    def wrote(self, handle: int) -> Iterator[tuple[int, int]]:
        """The value's memory is written: copies of it are worth nothing any more. Gives (device, handle there)."""
        for (_, device), there in self._copies.pop(self.storage(handle), {}).items():
            yield device, there

    def remove(self, handle: int) -> Iterator[tuple[int, int]]:
        """Gives what the value was called, where."""
        yield self._held.pop(handle, (0, handle))
        storage = self._storage.pop(handle, handle)
        if storage in self._sharers:
            self._sharers[storage] -= 1
            if self._sharers[storage] < 2:
                del self._sharers[storage]
        copies = self._copies.get(storage)
        if copies:
            for of, device in [key for key in copies if key[0] == handle]:
                yield device, copies.pop((of, device))
            if not copies:
                del self._copies[storage]
