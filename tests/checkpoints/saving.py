"""A program that saves the state of a session in memory of its own again and again, until it is killed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from genie.checkpoints import DiskCheckpoints
from genie.interfaces import Buffer
from genie.snapshots import MemoryState, Snapshot

SIZES = (10, 30_000, 200_000, 500_000)


def filled(version: int, size: int) -> bytes:
    return random.Random(version).randbytes(size)


class Memories:
    """Memories whose bytes follow from their versions."""

    device = SimpleNamespace(id="own", address=None)

    def __init__(self) -> None:
        self.versions = [1] * len(SIZES)
        self.restored: dict[int, bytes] = {}

    def snapshot(self) -> Snapshot:
        sizes = enumerate(zip(SIZES, self.versions, strict=True), 1)
        return Snapshot(tuple(MemoryState(id, size, version) for id, (size, version) in sizes))

    def read_memory(
        self, id: int, out: memoryview | None = None, offset: int = 0, size: int | None = None, *, version: int = 0
    ) -> memoryview:
        data = memoryview(filled(self.versions[id - 1], SIZES[id - 1]))
        if out is None:
            return data
        out[:] = data[offset : offset + len(out)]
        return out

    def restore(self, snapshot: Snapshot, memories: Callable[[MemoryState], Buffer | None]) -> None:
        for memory in snapshot.memories:
            data = memories(memory)
            assert data is not None
            self.restored[memory.version] = bytes(data)

    def restore_staged(self, snapshot: Snapshot, staged: Mapping[int, int]) -> None:
        raise NotImplementedError


def main(directory: str) -> None:
    store, session, next_version = DiskCheckpoints(directory), Memories(), 2
    kept: Any = None
    while True:
        kept = store.save(session, b"%d" % next_version)  # type: ignore[arg-type]
        print(kept.id, flush=True)
        for place in random.sample(range(len(SIZES)), 2):
            session.versions[place], next_version = next_version, next_version + 1


if __name__ == "__main__":
    main(sys.argv[1])
