"""A small model on the device: build, move, call, look.

    python examples/01_simple_model.py
    GENIE_NODES=10.0.0.10:8888 python examples/01_simple_model.py

Without GENIE_NODES the device is this process itself (the local backend): nothing is started, nothing listens.
"""

from __future__ import annotations

import torch

import genie
import genie_pytorch  # noqa: F401  (makes "remote_accelerator" a device; with the package installed, torch does)


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10)).eval()
    x = torch.randn(8, 64)
    with torch.no_grad():
        expected = model(x)

        model.to("remote_accelerator:0")
        y = model(x.to("remote_accelerator:0"))
        print(f"y is {tuple(y.shape)} on {y.device}, computed by {genie.devices()[0].id}")

        # Nothing had to be computed so far. This looks at ten labels, so ten labels come back:
        labels = y.argmax(dim=-1).tolist()
        print(f"labels: {labels}")

    assert labels == expected.argmax(dim=-1).tolist()
    torch.testing.assert_close(y.cpu(), expected)
    print("equal to the same model on the CPU")

    stats = genie.get_stats()
    for name in ("total_ops", "syncs", "bytes_sent", "bytes_received"):
        if name in stats:
            print(f"  {name:<16}{stats[name]:>10,}")


if __name__ == "__main__":
    main()
