"""Capture a program as a graph, say what it means, plan it, run the plan, and read all of it.

    python examples/04_capture_and_inspect.py
    GENIE_NODES=10.0.0.10:8888 python examples/04_capture_and_inspect.py

Without GENIE_NODES everything happens in this process (the local backend): nothing is started, nothing listens.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import genie


class Block(nn.Module):
    """One attention block."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: torch.Tensor = self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + mixed


def main() -> None:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(1, 16, 32)
    with torch.no_grad():
        expected = model(x)

        # 1. Capture. The model and its input stay what they are: plain CPU tensors, no device named.
        with genie.capture():
            y = model(x)
        graph = genie.get_graph()
    print(f"captured {len(graph.nodes())} operators ({graph.backend_type}):\n\n{graph.text()}")

    # 2. Say what the operators mean: a new graph; what is not known stays unknown.
    annotated = genie.annotate(graph)
    print("what is known of the heaviest:")
    heaviest = sorted(annotated.nodes(), key=lambda node: -node.metadata.get("compute_flops", 0))[:3]
    for node in heaviest:
        known = node.metadata
        print(
            f"  {node.target:<40}{known.get('compute_flops', 0):>10,} flops in {node.module_path or 'the model itself'}"
        )

    # 3. Decide where they run. These devices are data: they need not exist to plan for them.
    devices = [
        genie.Device(id="small", type="GPU", memory_gb=8, compute_tflops=5, network_gbps=10),
        genie.Device(id="large", type="GPU", memory_gb=80, compute_tflops=60, network_gbps=100),
    ]
    plan = genie.Scheduler(devices=devices, policy="min_latency").schedule(annotated)
    print(
        f"\nplanned: {plan.latency_ms:.4f} ms expected. Why is the heaviest where it is?\n{plan.explain(heaviest[0])}"
    )

    # 4. A plan is a file: kept, compared, sent elsewhere; verified when it is read, wherever that is.
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "block.plan"
        genie.save(plan, file)
        loaded = genie.load(file)
        print(f"\nsaved as {file.stat().st_size:,} bytes; `genie inspect {file.name}` prints it")
    assert isinstance(loaded, genie.ExecutionPlan)
    assert loaded == plan

    # 5. Run it: its inputs are the graph's, of which the frontend knows which are parameters, and their names.
    inputs = [model.get_parameter(entry.name) if entry.origin == "parameter" else x for entry in graph.inputs]
    (result,) = genie.execute(loaded, inputs)
    assert torch.equal(result, y.cpu())  # the captured value itself, computed now that it is looked at
    torch.testing.assert_close(result, expected)
    print(f"the plan's result, run by {genie.devices()[0].id}, equals the model's on the CPU")


if __name__ == "__main__":
    main()
