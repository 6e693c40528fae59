"""Programs that decode with one model on one node at the same time."""

from __future__ import annotations

import os

from .conftest import MakeNode, StartProgram

# All cores for one batch: on any machine all clients share it.
ALL_CORES = str(len(os.sched_getaffinity(0)))

MODEL = """
    import sys, time, torch, genie
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=256, n_head=4, vocab_size=4096)).eval()
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
    node = make_node("--threads", ALL_CORES)
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
    for node in (make_node("--no-batching", "--threads", ALL_CORES), make_node(GENIE_BATCHING="0")):
        clients = [program(ONCE, node, args=(str(number),)) for number in range(2)]
        for client in clients:
            assert client.said("batched") == "batched 0 0\n"
            assert client.ended()[0] == 0


def test_a_client_alone_meets_nobody(make_node: MakeNode, program: StartProgram) -> None:
    client = program(ONCE, make_node("--threads", ALL_CORES), args=("0",))
    assert client.said("batched") == "batched 0 0\n"
    assert client.ended()[0] == 0
