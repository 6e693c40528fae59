"""A node whose disk is full, and one whose clock jumps: both serve on.

    python -m campaigns.surroundings [--count 50] [--json]

run in ``benchmarks/``. The full disk: no file of the node may grow beyond 16 KiB, its audit log and its own log among
them (RLIMIT_FSIZE: writing fails as it does without room). The clock: a library of a page of C, put before the
system's, lets the node's wall clock jump by a day forth and by two back while sessions work, break, come back and are
left. What the kernel waits by is not changed. ``--count`` sessions each; every result is compared with the native one.
The exit status says whether all was as it should be.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from campaigns.calls import KINDS, Client, Kind, Program
from campaigns.load import prepared
from campaigns.proxy import Proxy
from campaigns.serving import Node, client, serve
from genie import telemetry

_ROOM = 16 << 10
_DAY = 86_400
_LEASE = 2.0

Row: TypeAlias = dict[str, Any]


def _work(node: Node, programs: Mapping[Kind, Program], count: int) -> int:
    """So many sessions; how many calls they made. Raises for a wrong value."""
    calls = 0
    for number in range(count):
        backend = client(node.address, node.token("tenant"))
        its = Client(backend.connect(backend.devices()[0]), programs[KINDS[number % len(KINDS)]], number).calls()
        for _ in range(5):
            next(its)
            calls += 1
        backend.close()
    return calls


def full_disk(directory: Path, programs: Mapping[Kind, Program], count: int) -> Row:
    """``said``: a node that cannot write its audit log says so as long as its own log can be written."""
    audit = directory / "audit"
    for file, room in ((audit, 700), (directory / "node.log", 2000)):  # for a few lines
        file.write_bytes(b" " * (_ROOM - room) + b"\n")
    with serve(directory, ["tenant"], "--audit-log", str(audit), GENIE_LOG_LEVEL="INFO") as node:
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (_ROOM, _ROOM))
        calls = _work(node, programs, count)
        standing = node.settled(10)
        sizes = [audit.stat().st_size, node.log.stat().st_size]
        said = "the audit log is not written" in node.log.read_text()
    return {
        "calls": calls,
        "full": sizes[0] >= _ROOM and sizes[1] >= _ROOM,
        "said": said,
        "left": standing.sessions,
        "good": said and sizes[0] >= _ROOM and not standing.sessions,
    }


class Clock:
    """Of a process that is started with ``settings``. Needs a C compiler."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise RuntimeError("there is no C compiler to build the clock with")
        library, self._file = directory / "clock.so", directory / "offset"
        source = Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
        self._file.write_bytes(bytes(8))
        self.settings = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._file)}

    def jump(self, seconds: int) -> None:
        """To so many seconds from the true time."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("<q", seconds))


def jumping_clock(directory: Path, programs: Mapping[Kind, Program], count: int) -> Row:
    clock = Clock(directory)
    seen, calls = [], 0
    with serve(directory, ["tenant"], sessions=64, lease=_LEASE, **clock.settings) as node:
        true = time.time()
        proxy = Proxy(node.address)
        backend = client(proxy.address, node.token("tenant"))
        lasting = Client(backend.connect(backend.devices()[0]), programs["llm"], 0).calls()
        before = node.view()
        left = []
        for offset in (_DAY, -_DAY, 0):
            abandoned = Proxy(node.address)
            gone = client(abandoned.address, node.token("tenant"))
            next(Client(gone.connect(gone.devices()[0]), programs["vision"], 0).calls())
            clock.jump(offset)
            abandoned.close()  # its lease begins before or after the jump
            proxy.cut()
            for _ in range(5):
                next(lasting)
                calls += 1
            calls += _work(node, programs, count // 3)
            seen.append(round((node.view().time - true) / _DAY))
            deadline = time.monotonic() + 10 * _LEASE
            while len(node.view().sessions) > 1 and time.monotonic() < deadline:
                time.sleep(0.1)
            left.append(len(node.view().sessions) - 1)
        after = node.view()
        backend.close()
        proxy.close()
    grows = sum(after.requests.values()) > sum(before.requests.values()) and after.resumed >= 3
    return {
        "calls": calls,
        "days off": seen,
        "came back": after.resumed,
        "leases that were not over": sum(left),
        "good": seen == [1, -1, 0] and not any(left) and grows,
    }


def run(count: int = 50) -> Row:
    found: Row = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        at = prepared(directory, tiny=True)
        programs = {kind: Program(at, kind) for kind in KINDS}
        for case in (full_disk, jumping_clock):
            own = directory / case.__name__
            own.mkdir()
            found[case.__name__] = case(own, programs, count)
    return found


def main() -> None:
    telemetry.configure("CRITICAL", False)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(given.count)
    if given.json:
        print(json.dumps(found))
    else:
        for name, row in found.items():
            print(name.replace("_", " "), ", ".join(f"{key}: {value}" for key, value in row.items()), sep=": ")
    sys.exit(0 if all(row["good"] for row in found.values()) else 1)


if __name__ == "__main__":
    main()
