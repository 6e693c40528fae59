"""The compiler ``xla``: StableHLO to programs that run in this process, on its CPU."""

from __future__ import annotations

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import structlog

from genie.device import Device
from genie.errors import NodeError, UnsupportedOperation
from genie.graph import Artifact
from genie_compiler_xla import platform
from genie_compiler_xla.requests import Refused, Request
from genie_compiler_xla.workshop import Workshop

_log = structlog.get_logger("genie.xla")
_KEPT = 256  # programs, the latest used


class XlaProgram:
    """A loaded executable; see :class:`genie.compilers.Program`."""

    def __init__(self, executable: Any, device: Any, bytes: int) -> None:
        from jaxlib import _jax

        self.bytes = bytes
        self._execute = executable.execute
        self._device = device
        self._taken = _jax.dlpack_managed_tensor_to_buffer
        self._given = _jax.buffer_to_dlpack_managed_tensor

    def view(self, operand: Any) -> Any:
        return self._taken(operand, self._device, None, False)  # False: a copy would be a view of nothing

    def __call__(self, operands: Sequence[Any]) -> list[Any]:
        return [self._given(made) for made in self._execute(operands)]


class XlaCompiler:
    """See :class:`genie.compilers.Compiler`. What was compiled is kept, and is the same for all who ask for it: a
    program holds no data. ``seconds`` is the deadline of one compilation."""

    name = "xla"
    kinds = ("stablehlo/1",)

    def __init__(self, seconds: float) -> None:
        self._workshop = Workshop(seconds)
        self._lock = threading.Lock()
        self._programs: OrderedDict[tuple[str, bool], Future[XlaProgram]] = OrderedDict()

    def serves(self, device: Device) -> bool:
        return device.kind == "cpu" and importlib.util.find_spec("jaxlib") is not None

    def compile(self, artifact: Artifact, device: Device, *, bounded: bool) -> XlaProgram:
        key = (artifact.digest, bounded)
        with self._lock:
            known = self._programs.get(key)
            mine = known is None
            if known is None:
                known = self._programs[key] = Future()
                while len(self._programs) > _KEPT:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(key)
        if mine:
            try:
                known.set_result(self._made(artifact, bounded))
            except BaseException as error:
                with self._lock:  # what failed for want of time or memory may do better another time
                    self._programs.pop(key, None)
                known.set_exception(error)
        return known.result()

    def _made(self, artifact: Artifact, bounded: bool) -> XlaProgram:
        answer = self._workshop.ask(Request(artifact.data, artifact.operands, artifact.results, bounded))
        if isinstance(answer, Refused):
            raise UnsupportedOperation(
                f"the engine xla refuses the program: {answer.reason}",
                hint="export it with the jaxlib of the node, or an older one, or let the engine be auto or aten",
            )
        client = platform.client()
        try:
            executable = platform.load(client, answer.executable)
        except RuntimeError as error:
            raise NodeError(f"XLA does not load what it compiled: {error}") from error
        _log.info("compiled", artifact=artifact.digest, seconds=round(answer.seconds, 3), needs=answer.needs)
        return XlaProgram(executable, client.local_devices()[0], answer.needs)

    def close(self) -> None:
        self._workshop.close()
        with self._lock:
            self._programs.clear()
