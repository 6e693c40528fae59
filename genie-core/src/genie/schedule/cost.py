"""Cost: how long a node takes on a device, and a value between two."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from genie.device import Device
from genie.flops import nbytes, work
from genie.graph import BoundNode, Node


class Roofline(msgspec.Struct, frozen=True):
    """Seconds = overhead + max((flops + knee) / (peak · compute), bytes / (bandwidth · memory)).

    ``compute`` and ``memory`` are the shares of the peaks that kernels reach, ``overhead`` what a call costs in
    seconds, ``knee`` the FLOPs a device needs before it reaches half its speed.
    """

    compute: float
    memory: float
    overhead: float
    knee: float


# Until a device is calibrated: shares that vendors' libraries reach on large matrices, launch costs of eager kernels.
_DEFAULTS: Mapping[str, Roofline] = MappingProxyType(
    {
        "cpu": Roofline(compute=0.60, memory=0.60, overhead=2e-6, knee=2e4),
        "gpu": Roofline(compute=0.70, memory=0.75, overhead=5e-6, knee=2e7),
    }
)
# FLOPs a device does while it moves one byte, where its bandwidth is not given: ratios of current parts.
_FLOPS_PER_BYTE: Mapping[str, float] = MappingProxyType({"cpu": 20.0, "gpu": 60.0})


def _class(device: Device) -> str:
    return "cpu" if device.kind == "cpu" else "gpu"


class Transfers(msgspec.Struct, frozen=True):
    """Seconds = latency + bytes / bandwidth, of the slower of both links, or of the bus inside one node."""

    latency: float = 50e-6
    share: float = 0.9  # of a link's bits per second that payload gets
    bus_latency: float = 10e-6
    bus_bytes_per_second: float = 12e9

    def seconds(self, src: Device, dst: Device, bytes: int) -> float:
        if src.id == dst.id:
            return 0.0
        if src.address == dst.address:
            return self.bus_latency + bytes / self.bus_bytes_per_second
        bits = min(src.network_gbps, dst.network_gbps) * 1e9 * self.share
        return self.latency + bytes * 8 / bits


class RooflineCostModel:
    """The default model. ``parameters`` overrides the roofline by device id or by class (``cpu``, ``gpu``)."""

    name = "roofline"

    def __init__(self, parameters: Mapping[str, Roofline] | None = None, transfers: Transfers | None = None) -> None:
        self._parameters = {**_DEFAULTS, **(parameters or {})}
        self._transfers = transfers or Transfers()
        self._terms: dict[Device, tuple[float, float, float, float]] = {}

    def estimate_compute(self, node: Node, device: Device | None = None) -> float:
        """Seconds. Raises :class:`ValueError` without a device: speed is nothing a node has."""
        if device is None:
            raise ValueError("the roofline needs a device")
        known = node.semantics
        if known is not None and known.bytes_read is not None and known.bytes_written is not None:
            flops, moved = known.flops or 0, known.bytes_read + known.bytes_written
        elif isinstance(node, BoundNode):
            values = node.graph.values
            used = {value for value in (*node.operands(), *node.outputs) if value >= 0}
            done = work(node, values, {value: nbytes(values[value]) for value in used})
            flops, moved = done.flops or 0, done.read + done.written
        else:
            raise ValueError(f"node {node.id} says nothing of its work: annotate the graph first")
        overhead, per_flop, knee, per_byte = self._terms.get(device) or self._remember(device)
        if not flops:
            return overhead + moved * per_byte
        return overhead + max((flops + knee) * per_flop, moved * per_byte)

    def estimate_transfer(self, src: Device, dst: Device, bytes: int) -> float:
        return self._transfers.seconds(src, dst, bytes)

    def _remember(self, device: Device) -> tuple[float, float, float, float]:
        roof = self._parameters.get(device.id) or self._parameters[_class(device)]
        peak = device.compute_tflops * 1e12
        bandwidth = (device.memory_bandwidth_gb_s or 0.0) * 1e9 or peak / _FLOPS_PER_BYTE[_class(device)]
        terms = (roof.overhead, 1 / (peak * roof.compute), roof.knee, 1 / (bandwidth * roof.memory))
        self._terms[device] = terms
        return terms
