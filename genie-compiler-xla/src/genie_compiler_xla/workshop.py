"""The process that compiles, seen from the node: one question at a time, each with a deadline."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time

import msgspec

from genie.errors import DeadlineExceeded, NodeError, OutOfMemory, Stage
from genie_compiler_xla.requests import LENGTH, MOST_BYTES, Answer, Request, framed

_MEMORY = 8 << 30  # bytes of address space for compiling: LLVM's arenas and stacks are most of it
_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class Workshop:
    """Starts the process when it is needed, and anew when it ended. Any thread may call."""

    def __init__(self, seconds: float, memory: int = _MEMORY) -> None:
        self._seconds = seconds
        self._memory = memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Request) -> Answer:
        """Raises :class:`DeadlineExceeded` (the process is gone then), or :class:`NodeError` where it died."""
        deadline = time.monotonic() + self._seconds
        if not self._lock.acquire(timeout=self._seconds):
            raise self._late()
        try:
            process = self._running()
            try:
                self._write(process, framed(request), deadline)
                return _decoder.decode(self._answer(process, deadline))
            except BaseException:
                self._end()  # in the middle of a question it is of no use
                raise
        except BrokenPipeError as error:
            raise NodeError("the process that compiles ended before it was asked") from error
        finally:
            self._lock.release()

    def close(self) -> None:
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "genie_compiler_xla.worker", str(self._memory)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for the node
                    env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
                )
            except OSError as error:  # for want of memory, or of processes
                raise NodeError(f"the process that compiles cannot be started: {error}") from error
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was not sent is of no use
                        pipe.close()

    def _write(self, process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
        assert process.stdin is not None
        descriptor = process.stdin.fileno()  # which does not block: a process that does not read takes little of it
        left = memoryview(data)
        while left:
            if not select.select([], [descriptor], [], max(deadline - time.monotonic(), 0))[1]:
                raise self._late()
            left = left[os.write(descriptor, left) :]

    def _answer(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        (size,) = LENGTH.unpack(self._read(process, LENGTH.size, deadline))
        if size > MOST_BYTES:
            raise NodeError(f"a program of {size} bytes is larger than {MOST_BYTES}")
        return self._read(process, size, deadline)

    def _read(self, process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        parts: list[bytes] = []
        while size:
            if not select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise self._late()
            part = os.read(descriptor, min(size, 1 << 20))
            if not part:
                try:
                    raise self._died(process.wait(max(deadline - time.monotonic(), 1.0)))
                except subprocess.TimeoutExpired:  # it only stopped to answer
                    raise self._late() from None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"XLA did not compile it within {self._seconds:g} s",
            stage=Stage.COMPILE,
            seconds=self._seconds,
            setting="compile_seconds",
        )

    def _died(self, status: int) -> NodeError:
        told = f"signal {-status}" if status < 0 else f"status {status}"
        if status == -6:  # how XLA ends when memory is refused
            return OutOfMemory(
                f"XLA needs more than the {self._memory >> 20} MiB it may take for compiling, or failed ({told})",
                kind="OutOfMemory",
            )
        return NodeError(f"the process that compiles ended with {told}")
