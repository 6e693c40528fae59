"""The roofline: how long a node takes on a device, by its class of operator.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009, with two terms for
what it leaves out: what a call costs, and how much work a device needs to reach its speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import msgspec

from genie.device import Device
from genie.graph import BoundNode, Graph, Node
from genie.interfaces import Estimate
from genie.schedule.cost.classes import GEMM, SKINNY, Trait, on_device, trait, traits
from genie.schedule.links import Links, Transfers


class Roofline(msgspec.Struct, frozen=True):
    """Seconds = overhead + max((flops + knee) / (peak · compute), bytes / (bandwidth · memory)).

    ``compute`` and ``memory`` are the shares of the peaks that kernels reach, ``overhead`` what a call costs in
    seconds, ``knee`` the FLOPs a device needs before it reaches half its speed. Without FLOPs the first term is none.
    """

    compute: float
    memory: float
    overhead: float
    knee: float

    def __post_init__(self) -> None:
        if not (0 < self.compute < 1e9 and 0 < self.memory < 1e9):
            raise ValueError(f"shares of {self.compute!r} and {self.memory!r} are none")
        if not (isfinite(self.overhead) and self.overhead >= 0 and isfinite(self.knee) and self.knee >= 0):
            raise ValueError(f"an overhead of {self.overhead!r} s and a knee of {self.knee!r} FLOPs are none")


class Fitted(msgspec.Struct, frozen=True):
    """A roofline fitted to so many measured ``samples``, off by ``error`` (0.2 is 20 %) of them on average."""

    roofline: Roofline
    error: float
    samples: int

    def __post_init__(self) -> None:
        if not (isfinite(self.error) and self.error >= 0):
            raise ValueError(f"an error of {self.error!r} is none")


class Calibration(msgspec.Struct, frozen=True):
    """What was fitted on one device. ``classes`` is by class of operator, or by ``class/dtype``; shares are of the
    peaks given here."""

    compute_tflops: float
    memory_bandwidth_gb_s: float
    classes: dict[str, Fitted]

    def __post_init__(self) -> None:
        for peak in (self.compute_tflops, self.memory_bandwidth_gb_s):
            if not (isfinite(peak) and peak > 0):
                raise ValueError(f"a peak of {peak!r} is none")


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


def bandwidth(device: Device) -> float:
    """Bytes per second of the device's memory, by its figures or by its kind."""
    given = device.memory_bandwidth_gb_s
    return given * 1e9 if given else device.compute_tflops * 1e12 / _FLOPS_PER_BYTE[_class(device)]


def default_roofline(device: Device) -> Roofline:
    """Of a device that was not calibrated."""
    return _DEFAULTS[_class(device)]


class Terms(NamedTuple):
    """A roofline of one device in seconds."""

    overhead: float
    per_flop: float
    knee: float
    per_byte: float
    error: float = 0.0

    def estimate(self, flops: float, moved: float) -> Estimate:
        compute = (flops + self.knee) * self.per_flop if flops else 0.0
        memory = moved * self.per_byte
        busy = compute if compute > memory else memory
        bound = "overhead" if busy <= self.overhead else "compute" if compute > memory else "memory"
        return Estimate(self.overhead + busy, "roofline", self.error, bound)


def _terms(roof: Roofline, peak: float, bytes_per_second: float, error: float = 0.0) -> Terms:
    return Terms(roof.overhead, 1 / (peak * roof.compute), roof.knee, 1 / (bytes_per_second * roof.memory), error)


class DeviceRoof:
    """The rooflines of one device, by class of operator and dtype."""

    def __init__(self, device: Device, known: Roofline | Calibration | None) -> None:
        self._classes: dict[str, Terms] = {}
        self._found: dict[tuple[str, str], Terms] = {}
        default = known if isinstance(known, Roofline) else default_roofline(device)
        self._default = _terms(default, device.compute_tflops * 1e12, bandwidth(device))
        self._ridge = device.compute_tflops * 1e12 / bandwidth(device)
        if isinstance(known, Calibration):
            peak, speed = known.compute_tflops * 1e12, known.memory_bandwidth_gb_s * 1e9
            self._ridge = peak / speed
            for name, fitted in known.classes.items():
                self._classes[name] = _terms(fitted.roofline, peak, speed, fitted.error)

    def terms(self, kind: str, dtype: str) -> Terms:
        found = self._found.get((kind, dtype))
        if found is None:
            classes = self._classes
            names = (f"{kind}/{dtype}", kind, *((GEMM,) if kind == SKINNY else ()), "other")
            found = next((classes[name] for name in names if name in classes), self._default)
            self._found[kind, dtype] = found
        return found

    def estimate(self, asked: Trait) -> Estimate:
        kind, dtype, flops, moved = asked
        return self.terms(on_device(kind, flops, moved, self._ridge), dtype).estimate(flops, moved)


Rooflines: TypeAlias = Mapping[str, Roofline | Calibration]


class RooflineCostModel:
    """The default model. ``parameters`` has rooflines by device id or by class (``cpu``, ``gpu``); a
    :class:`Calibration` has one per class of operators. ``transfers`` says how long values travel."""

    name = "roofline"

    def __init__(self, parameters: Rooflines | None = None, transfers: Transfers | Links | None = None) -> None:
        self._parameters: Rooflines = {**_DEFAULTS, **(parameters or {})}
        self._transfers = transfers or Transfers()
        self._roofs: dict[Device, DeviceRoof] = {}

    def estimate_compute(self, node: Node, device: Device | None = None) -> float:
        """Seconds. Raises :class:`ValueError` without a device: speed is nothing a node has."""
        if device is None:
            raise ValueError("the roofline needs a device")
        return self.roof(device).estimate(_asked(node)).seconds

    def appraise(self, nodes: Sequence[Node], device: Device) -> list[Estimate]:
        """An estimate per node; ``error`` is 0 where the device was not calibrated. Raises :class:`ValueError`."""
        roof = self.roof(device)
        known: dict[Trait, Estimate] = {}
        found: list[Estimate] = []
        for asked in asked_of(nodes):
            made = known.get(asked)
            if made is None:
                made = known[asked] = roof.estimate(asked)
            found.append(made)
        return found

    def estimate_transfer(self, src: Device, dst: Device, bytes: int) -> float:
        return self._transfers.seconds(src, dst, bytes)

    def roof(self, device: Device) -> DeviceRoof:
        roof = self._roofs.get(device)
        if roof is None:
            known = self._parameters.get(device.id) or self._parameters.get(_class(device))
            roof = self._roofs[device] = DeviceRoof(device, known)
        return roof


def asked_of(nodes: Sequence[Node]) -> list[Trait]:
    """What a roofline asks of each node. Raises :class:`ValueError` for one that does not say its work."""
    graph: Graph | None = None
    table: dict[int, Trait] = {}
    found: list[Trait] = []
    for node in nodes:
        if isinstance(node, BoundNode):
            if node.graph is not graph:
                graph = node.graph
                table = traits(graph)
            found.append(table[node.id])
        else:
            found.append(_asked(node))
    return found


def _asked(node: Node) -> Trait:
    if isinstance(node, BoundNode):
        return traits(node.graph)[node.id]
    known = trait(node)
    if known is None:
        raise ValueError(f"node {node.id} says nothing of its work: annotate the graph first")
    return known
