"""A compiled plan in a session: failures, numbers and memory are those of every plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("jaxlib")

import genie_jax
import jax.numpy as jnp
from xla.nodes import Node

from genie.bindings import Prediction, parameters
from genie.errors import NodeError, RemoteOpError
from genie.graph import Graph, TensorSpec
from genie.schedule import Scheduler
from genie_backend_local import LocalBackend, LocalSession
from genie_backend_local.engines import Engines

SPEC = TensorSpec((3,), "float32")
DATA = np.array([1, 2, 3], np.float32)


@pytest.fixture
def backend(compiler: Any) -> Iterator[LocalBackend]:
    made = LocalBackend(engines=Engines({"xla": compiler}))
    yield made
    for session in list(made._sessions):
        session.close()


@pytest.fixture
def graph(node: Node) -> Graph:
    program = genie_jax.remote(lambda x, y: (x * 3 + 1, y + x.sum()), donate_argnums=(0,), engine="xla")
    program(jnp.asarray(DATA), DATA)
    assert program.latest is not None
    return program.latest


class Loaded:
    """The graph, compiled, in a session with its two operands as handles 1 and 2."""

    def __init__(self, backend: LocalBackend, graph: Graph) -> None:
        devices = backend.devices()[-1:]
        self.session: LocalSession = backend.connect(devices[0])
        self.plan = self.session.load(Scheduler(devices=devices).schedule(graph))
        self.numbers = parameters(graph)
        self.prediction = Prediction(len(graph.inputs), self.numbers)
        self.runs = 0

    def run(self, x: int, y: int, first: int, numbers: tuple[int, ...] = ()) -> None:
        words = [first, x, y, *(numbers or self.numbers)]
        self.session.execute(self.plan, self.prediction.encode(words, anew=self.runs == 0))
        self.runs += 1

    def value(self, handle: int) -> list[float]:
        return np.frombuffer(self.session.fetch(handle).data, np.float32).tolist()


def test_a_run_donates_and_counts(backend: LocalBackend, graph: Graph) -> None:
    loaded = Loaded(backend, graph)
    loaded.session.upload(1, SPEC, DATA.tobytes())
    loaded.session.upload(2, SPEC, DATA.tobytes())
    loaded.run(1, 2, 10)
    assert loaded.value(10) == [4, 7, 10] and loaded.value(11) == [7, 8, 9]
    stats = loaded.session.stats()
    assert (stats["executions"], stats["steps"], stats["memory_bytes"]) == (1, 1, 3 * DATA.nbytes)
    with pytest.raises(NodeError, match="handle 1 is unknown"):
        loaded.session.fetch(1)


def test_a_failed_operand_is_the_failure_of_its_results(backend: LocalBackend, graph: Graph) -> None:
    loaded = Loaded(backend, graph)
    loaded.session.poison(1, RemoteOpError("spoiled", kind="ValueError"))
    loaded.session.upload(2, SPEC, DATA.tobytes())
    loaded.run(1, 2, 10)
    with pytest.raises(RemoteOpError, match="spoiled"):
        loaded.session.fetch(11)
    loaded.session.upload(3, SPEC, DATA.tobytes())
    loaded.run(3, 2, 20)
    assert loaded.value(20) == [4, 7, 10]


def test_an_operand_of_another_shape_fails_by_name(backend: LocalBackend, graph: Graph) -> None:
    loaded = Loaded(backend, graph)
    loaded.session.upload(1, TensorSpec((4,), "float32"), bytes(16))
    loaded.session.upload(2, SPEC, DATA.tobytes())
    loaded.run(1, 2, 10)
    with pytest.raises(RemoteOpError, match="operand 0 of a compiled program") as raised:
        loaded.session.fetch(10)
    assert raised.value.op.startswith("xla::")


def test_numbers_that_were_compiled_in_cannot_be_others(backend: LocalBackend, graph: Graph) -> None:
    loaded = Loaded(backend, graph)
    assert loaded.numbers
    for handle in (1, 2):
        loaded.session.upload(handle, SPEC, DATA.tobytes())
    with pytest.raises(NodeError, match="compiled with its numbers"):
        loaded.run(1, 2, 10, (loaded.numbers[0] + 1, *loaded.numbers[1:]))
    loaded.run(1, 2, 20)
    assert loaded.value(20) == [4, 7, 10]


def test_operands_that_lie_otherwise_in_memory(backend: LocalBackend, graph: Graph) -> None:
    loaded = Loaded(backend, graph)
    loaded.session.upload(1, TensorSpec((3,), "float32", (2,)), DATA.tobytes())
    loaded.session.upload(2, SPEC, DATA.tobytes())
    loaded.run(1, 2, 10)
    assert loaded.value(10) == [4, 7, 10]
