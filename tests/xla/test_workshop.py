"""The process that compiles: ended when it takes too long, started anew when it is gone."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("jaxlib")

import jax
from genie_compiler_xla.requests import Made, Refused, Request
from genie_compiler_xla.workshop import Workshop

from genie.errors import DeadlineExceeded, NodeError
from genie.graph import Abstract

FACE = (Abstract((2,), "float32"),)


def request(data: bytes = b"") -> Request:
    made = jax.export.export(jax.jit(lambda x: x * 2), platforms=["cpu"])(jax.ShapeDtypeStruct((2,), np.float32))
    return Request(data or bytes(made.mlir_module_serialized), FACE, FACE, False)


def test_it_goes_on_after_a_refusal_a_deadline_and_a_death() -> None:
    workshop = Workshop(60.0)
    try:
        assert isinstance(workshop.ask(request(b"nothing of the kind")), Refused)
        made = workshop.ask(request())
        assert isinstance(made, Made) and made.needs >= 8 and made.executable
        process = workshop._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        workshop._seconds = 0.2
        with pytest.raises(DeadlineExceeded, match=r"within 0.2 s"):
            workshop.ask(request())
        assert process.poll() is not None
        workshop._seconds = 60.0
        assert isinstance(workshop.ask(request()), Made)
        process = workshop._process
        assert process is not None
        process.kill()
        process.wait()
        assert isinstance(workshop.ask(request()), Made)
    finally:
        workshop.close()


@pytest.mark.timeout(60)
def test_a_process_that_does_not_read_is_not_waited_for() -> None:
    workshop = Workshop(60.0)
    try:
        workshop.ask(request())
        process = workshop._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        workshop._seconds = 0.2
        with pytest.raises(DeadlineExceeded, match=r"within 0.2 s"):
            workshop.ask(request(bytes(1 << 20)))  # more than a pipe holds
        assert process.poll() is not None
    finally:
        workshop.close()


def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(NodeError, match="cannot be started"):
        Workshop(60.0).ask(request())


def test_memory_for_compiling_is_bounded() -> None:
    workshop = Workshop(60.0, memory=1 << 16)
    try:
        with pytest.raises(NodeError):
            answer = workshop.ask(request())
            assert isinstance(answer, Refused) and "memory" in answer.reason  # where XLA reports it
            raise NodeError(answer.reason)
    finally:
        workshop.close()
