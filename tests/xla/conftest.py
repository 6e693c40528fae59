"""Programs of JAX's, compiled by the engine ``xla`` of nodes in this process, over TCP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from xla.nodes import Node

os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def compiler() -> Iterator[Any]:
    pytest.importorskip("jaxlib")
    from genie_compiler_xla.compiler import XlaCompiler

    made = XlaCompiler(seconds=60.0)
    yield made
    made.close()


@pytest.fixture
def node(compiler: Any) -> Iterator[Node]:
    pytest.importorskip("jax")
    made = Node({"xla": compiler})
    yield made
    made.close()
