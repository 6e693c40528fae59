"""What went wrong in a session and was not told yet: what a client sends is not answered, so it is told by a look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from genie.device import Device
from genie.errors import GenieError, OutOfMemory

_MOST = 1 << 10


class Failures:
    """Why handles have no value, each until it is freed; and the first of all else, told by the next look at any."""

    def __init__(self, device: Device) -> None:
        self.untold: GenieError | None = None
        self._device = device
        self._by_handle: dict[int, GenieError] = {}

    @property
    def by_handle(self) -> Mapping[int, GenieError]:
        return self._by_handle

    def add(self, handle: int, error: GenieError | MemoryError) -> None:
        """The value did not come."""
        if not isinstance(error, GenieError):
            error = OutOfMemory(str(error) or "no memory for a value", device=self._device.id, kind="MemoryError")
        if len(self._by_handle) < _MOST:
            self._by_handle[handle] = error
        else:
            self.defer(error)

    def defer(self, error: GenieError) -> None:
        """What is about no one value."""
        if self.untold is None:
            self.untold = error

    def drop(self, handles: Iterable[int]) -> None:
        if self._by_handle:
            for handle in handles:
                self._by_handle.pop(handle, None)

    def first(self, error: GenieError) -> GenieError:
        """The reason to tell for ``error``: what was needed may be missing because it never came."""
        return next(iter(self._by_handle.values()), error)

    def cause(self, handle: int, error: GenieError) -> GenieError:
        """The same of a look at a value that sees ``error``."""
        return self._by_handle.get(handle) or self.untold or error

    def tell(self) -> None:
        """Raises what nobody was told yet."""
        if self.untold is not None:
            error, self.untold = self.untold, None
            raise error

    def settled(self, error: GenieError) -> None:
        """It is being told."""
        if self.untold is error:
            self.untold = None

    def check(self, handle: int) -> None:
        """Raises why the value did not come, if it did not."""
        if self._by_handle and handle in self._by_handle:
            raise self._by_handle[handle]

    def look(self, handle: int) -> None:
        """Raises what a look at the value is to tell."""
        if self.untold is not None:
            self.tell()
        self.check(handle)
