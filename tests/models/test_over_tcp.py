"""The same over sockets, with a node in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest
from models import runs
from models.architectures import named
from models.compare import assert_equal, moved, remote

import genie

pytestmark = pytest.mark.models

DEADLINE = 60.0


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "genie", "serve", "--port", "0", "--device", "cpu", "--threads", "1", "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GENIE_")}
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
    assert node.stdout is not None
    try:
        assert select.select([node.stdout], [], [], DEADLINE)[0], "the node is not ready"
        yield json.loads(node.stdout.readline())["address"]
    finally:
        node.terminate()
        node.wait(DEADLINE)
        node.stdout.close()


@pytest.fixture
def on_node(address: str) -> Iterator[None]:
    genie.shutdown()
    genie.init(nodes=[address], backend="tcp")
    yield
    genie.shutdown()


@pytest.mark.usefixtures("on_node")
@pytest.mark.parametrize("name", ["llama", "mixtral", "mamba", "bert", "t5", "vit"])
def test_model(name: str) -> None:
    architecture = named(name)
    model, batch = architecture.build(), architecture.batch()
    on_device = remote(model)
    assert_equal(runs.forward(model, batch), runs.forward(on_device, moved(batch)))
    if architecture.generates:
        inputs = architecture.inputs()
        sampled = {"do_sample": True, "top_k": 20}
        assert_equal(runs.generate(model, inputs, **sampled), runs.generate(on_device, moved(inputs), **sampled))
    assert_equal(runs.train(model, batch, "adamw"), runs.train(on_device, moved(batch), "adamw"))
    assert genie.get_stats()["bytes_sent"] > sum(parameter.nbytes for parameter in model.parameters())
