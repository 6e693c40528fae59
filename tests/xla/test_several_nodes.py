"""The engine on some of several nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("jaxlib")

import genie_jax
import jax.numpy as jnp

import genie
from genie.errors import SchedulingError
from genie.remote import NodeServer
from genie_backend_local import LocalBackend
from genie_backend_local.engines import Engines
from genie_backend_tcp import TcpTransport

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def nodes(compiler: Any) -> Iterator[None]:
    """Two: the second has the engine."""
    with ExitStack() as stack:
        addresses = []
        for compilers in ({}, {"xla": compiler}):
            backend = LocalBackend(engines=Engines(compilers))
            server = NodeServer(backend, TcpTransport(stall_timeout=10.0), "127.0.0.1:0", local=False)
            addresses.append(stack.enter_context(server).address)
        genie.shutdown()
        genie.init(nodes=addresses)
        stack.callback(genie.shutdown)
        yield


@pytest.mark.usefixtures("nodes")
def test_each_node_runs_a_program_as_it_can() -> None:
    def program(x: Any) -> Any:
        return jnp.tanh(x) * 2

    made = [genie_jax.remote(program, device=device, engine=engine) for device, engine in ((0, "auto"), (1, "xla"))]
    for each in made:
        np.testing.assert_allclose(np.asarray(each(X)), np.tanh(X) * 2, rtol=1e-5)
    assert [len(each.latest.artifacts) for each in made] == [0, 1]
    with pytest.raises(SchedulingError, match="has no engine"):
        genie_jax.remote(program, device=0, engine="xla")(X)


@pytest.mark.usefixtures("nodes")
def test_a_program_for_any_of_them_runs_where_it_is_placed() -> None:
    program = genie_jax.remote(lambda x: (x * 3).sum(), engine="auto")
    assert float(program(X)) == float((X * 3).sum())
    assert program.latest is not None and len(program.latest.artifacts) == 1
