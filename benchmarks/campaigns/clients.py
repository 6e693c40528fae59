"""A process with many clients, each a thread with a session of its own; it imports no PyTorch.

Started by ``campaigns.load`` with a line of JSON on its standard input. It says "ready", runs when it is told "phase N"
(what is done from then on counts for phase N), and at "stop" says what was done, by phase and client.
"""

from __future__ import annotations

import array
import sys
import threading
from pathlib import Path

import msgspec

from campaigns.calls import Client, Kind, Program, WrongValue
from campaigns.serving import client
from genie import telemetry
from genie.errors import GenieError


class Who(msgspec.Struct, frozen=True):
    number: int
    tenant: str
    token: str
    kind: Kind


class Work(msgspec.Struct, frozen=True):
    programs: str
    address: str
    clients: tuple[Who, ...]
    phases: int


class Done(msgspec.Struct, frozen=True):
    """``calls[p]`` are the microseconds of each call in phase p."""

    number: int
    calls: tuple[tuple[int, ...], ...]
    wrong: str = ""
    error: str = ""


class _Crowd:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.phase = -1
        self.over = threading.Event()
        self.start = threading.Event()
        self.there = threading.Semaphore(0)
        self.done: list[Done] = []
        kinds = {who.kind for who in work.clients}
        self.programs = {kind: Program(Path(work.programs), kind) for kind in kinds}

    def run(self, who: Who) -> None:
        calls = [array.array("L") for _ in range(self.work.phases)]
        wrong = error = ""
        backend = None
        try:
            backend = client(self.work.address, who.token)
            its = Client(backend.connect(backend.devices()[0]), self.programs[who.kind], who.number)
            self.there.release()
            self.start.wait()
            for took in its.calls():
                if self.over.is_set():
                    break
                calls[self.phase].append(round(took * 1e6))
        except WrongValue as found:
            wrong = str(found)
        except GenieError as found:
            error = f"{type(found).__name__}: {found}"
        finally:
            self.there.release()
            if backend is not None:
                backend.close()
        self.done.append(Done(who.number, tuple(tuple(each) for each in calls), wrong, error))


def main() -> None:
    telemetry.configure("ERROR", False)
    crowd = _Crowd(msgspec.json.decode(sys.stdin.buffer.readline(), type=Work))
    threads = [threading.Thread(target=crowd.run, args=(who,), daemon=True) for who in crowd.work.clients]
    for thread in threads:
        thread.start()
        crowd.there.acquire()  # one after the other: a node has only so many who have not greeted yet
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, number = line.partition(" ")
        if word != "phase":
            break
        crowd.phase = int(number)
        crowd.start.set()
    crowd.over.set()
    crowd.start.set()
    for thread in threads:
        thread.join(120)
    sys.stdout.buffer.write(msgspec.json.encode(crowd.done) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
