"""The process that compiles: reads requests, answers with programs. What goes wrong in it does not reach the node.

It ends with its input, and is ended by the node when it takes too long.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from genie_compiler_xla import platform
from genie_compiler_xla.requests import LENGTH, Answer, Made, Refused, Request, write
from genie_compiler_xla.verify import Unfit, bytecode


def main(memory: int) -> None:
    """``memory``: bytes of address space that compiling may take, beyond what the process has then."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    client = platform.client()
    ours = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (ours + memory, ours + memory))
    decoder = msgspec.msgpack.Decoder(Request)
    while (body := _frame(sys.stdin.buffer)) is not None:
        write(answers, _answer(client, decoder.decode(body)))


def _frame(file: BinaryIO) -> bytes | None:
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    body = file.read(size)
    return body if len(body) == size else None


def _answer(client: Any, request: Request) -> Answer:
    started = time.perf_counter()
    try:
        module = bytecode(request.data, request.operands, request.results, request.bounded)
    except Unfit as error:
        return Refused(str(error))
    try:
        compiled = platform.compile(client, module)
        stats = compiled.get_compiled_memory_stats()
        executable = client.serialize_executable(compiled)
    except MemoryError:
        return Refused("XLA has no memory left to compile it")
    except RuntimeError as error:  # of which XLA's is one
        return Refused(f"XLA does not compile it: {str(error)[:1024]}")
    needs = stats.output_size_in_bytes + stats.temp_size_in_bytes
    return Made(executable, needs, time.perf_counter() - started)


if __name__ == "__main__":
    main(int(sys.argv[1]))
