"""A cluster of two devices on this machine: a model that neither holds alone, and what its link is worth.

    python examples/08_emulated_cluster.py

The devices are those of emulated.yaml. Work and values are real, memory is limited to what the file says, and time is
what the cost model says those devices and links would take. The scheduler has to split the model; the report says how.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from torch import nn

import genie
from genie import emulate
from genie.device import LinkSpec

FILE = Path(__file__).with_name("emulated.yaml")


def main() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(16) for layer in (nn.Linear(768, 768), nn.GELU())]
    model, x = nn.Sequential(*layers).eval(), torch.randn(64, 768)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with torch.no_grad():
        expected = model(x)

    cluster = genie.Cluster.load(FILE)
    seconds = {}
    for gbps in (1, 25):
        links = [link if "client" in link.ways[0] else LinkSpec("gpu0", "gpu1", gbps, 0.02) for link in cluster.links]
        genie.init(cluster=msgspec.structs.replace(cluster, links=tuple(links)))
        if not seconds:
            room = genie.devices()[0].memory_bytes
            print(f"weights of {size:,} bytes; {len(genie.devices())} devices with {room:,} bytes each\n")
        run = genie.compile(model)
        with torch.no_grad():
            result = run(x)  # the weights go to their devices
            emulate.reset()
            assert torch.equal(run(x), result)  # and stay there
        torch.testing.assert_close(result, expected)
        report = emulate.report()
        seconds[gbps] = report.seconds
        print(f"{gbps} Gbit/s between the devices:\n{report}")
        for span in report.trace:
            print(f"    {span.start * 1e3:7.3f} … {span.finish * 1e3:7.3f} ms  {span.where:<13} {span.what}")
        print()
        genie.shutdown()
    print(f"one call takes {seconds[1] * 1e3:.3f} ms over 1 Gbit/s, {seconds[25] * 1e3:.3f} ms over 25 Gbit/s")
    print("its result equals the model's on the CPU")


if __name__ == "__main__":
    main()
