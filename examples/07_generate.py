"""The node runs the loop over tokens and sends them as they are made.

    python examples/07_generate.py
    GENIE_NODES=10.0.0.10:8888 python examples/07_generate.py

Without GENIE_NODES the device is this process itself (the local backend): nothing is started, nothing listens. The
model is a small Llama with random weights, so the tokens mean nothing; they are those of the CPU.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import genie
import genie_pytorch  # noqa: F401  (makes "remote_accelerator" a device; with the package installed, torch does)


def main() -> int:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.3,  # wide, or an untrained model says one token for ever
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.tensor([[1, 17, 42, 7, 300, 5]])
    options = {"max_new_tokens": 48, "do_sample": True, "temperature": 0.8, "top_k": 50, "pad_token_id": 0}

    torch.manual_seed(7)
    expected = model.generate(prompt, **options)

    torch.manual_seed(7)
    device = genie.devices()[0]  # one of several: a loop runs where all of its plan is
    print("tokens ", end="")
    tokens = []
    for token in genie.generate(model, prompt, stream=True, devices=[device], **options):
        tokens.append(int(token))
        print(tokens[-1], end=" ", flush=True)
    print()

    stats = genie.get_stats()
    equal = tokens == expected[0, prompt.shape[1] :].tolist()
    if looped := stats["loop_iterations"]:
        print(f"{looped} of {len(tokens)} steps were run by {device.id} itself")
    else:
        print(f"this side asked for each of {len(tokens)} steps; with GENIE_LOG_LEVEL=INFO the log says why")
    print("the same tokens as on the CPU" if equal else "OTHER TOKENS THAN ON THE CPU")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
