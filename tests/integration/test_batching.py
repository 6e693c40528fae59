"""Programs that decode with one model on one node at the same time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import MakeNode, Node, StartProgram

pytestmark = pytest.mark.models


def one_core(node: Node) -> Node:
    """On which only one batch runs at a time, so that whoever comes meets it."""
    core = min(os.sched_getaffinity(node.process.pid))
    for thread in Path(f"/proc/{node.process.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})
    return node


MODEL = """
    import sys, time, torch, genie, genie_pytorch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 256, "n_head": 4, "vocab_size": 4096}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    number = int(sys.argv[1])
    ids = torch.arange(1, 6 + 3 * number)[None]
    options = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": number % 2 == 1, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(ids)

    def generate():
        torch.manual_seed(number)
        return genie.generate(model, ids, **options).tolist()

    torch.manual_seed(number)
    native = model.generate(ids, **options).tolist()
"""

# Until it has met somebody, with the tokens of alone each time.
MEETING = (
    MODEL
    + """
    deadline = time.monotonic() + 60
    while genie.get_stats().get("batched_steps", 0) == 0:
        assert time.monotonic() < deadline, "met nobody"
        assert generate() == native
    print("met", flush=True)
    while True:
        assert generate() == native
        print("again", flush=True)
"""
)

ONCE = (
    MODEL
    + """
    for _ in range(4):
        assert generate() == native
    stats = genie.get_stats()
    print("batched", stats["batched_executions"], stats["batched_steps"], flush=True)
"""
)


def test_clients_meet_and_one_that_dies_leaves_the_others(make_node: MakeNode, program: StartProgram) -> None:
    node = one_core(make_node())
    clients = [program(MEETING, node, args=(str(number),)) for number in range(3)]
    for client in clients:
        client.said("met")
    clients[1].kill()
    node.wait_for_sessions(2)
    for client in (clients[0], clients[2]):
        for _ in range(3):
            client.said("again")
    clients[0].kill()
    node.wait_for_sessions(1)
    for _ in range(3):
        clients[2].said("again")
    assert node.process.running
    assert "Traceback" not in node.log.read_text()


def test_a_node_that_does_not_batch(make_node: MakeNode, program: StartProgram) -> None:
    node = one_core(make_node("--no-batching"))
    clients = [program(ONCE, node, args=(str(number),)) for number in range(2)]
    for client in clients:
        assert client.said("batched") == "batched 0 0\n"
        assert client.ended()[0] == 0
