"""Links as a cluster file states them; where it says nothing, by the devices' figures."""

from __future__ import annotations

from collections.abc import Sequence

from genie.device import Device, LinkSpec
from genie.schedule.cost import Transfers


class StatedTransfers(Transfers, frozen=True, dict=True):
    """Seconds = latency + bytes / bandwidth of the stated link between two devices, by their ids."""

    links: tuple[LinkSpec, ...] = ()

    def __post_init__(self) -> None:
        self.__dict__["lines"] = {
            way: (link.latency, link.bytes_per_second) for link in self.links for way in link.ways
        }

    def seconds(self, src: Device, dst: Device, bytes: int) -> float:
        if src.id == dst.id:
            return 0.0
        latency, speed = self.line(src, dst)
        return latency + bytes / speed

    def line(self, src: Device, dst: Device) -> tuple[float, float]:
        """Latency in seconds, and bytes per second."""
        known = self._stated(src.id, dst.id)
        if known is not None:
            return known
        if src.address == dst.address:
            return self.bus_latency, self.bus_bytes_per_second
        return self.latency, min(src.network_gbps, dst.network_gbps) * 1e9 * self.share / 8

    def reach(self, source: str, target: str, device: Device) -> tuple[float, float]:
        """:meth:`line` where one of the ends is the client, which has no figures, and the other is ``device``."""
        return self._stated(source, target) or (self.latency, device.network_gbps * 1e9 * self.share / 8)

    def _stated(self, source: str, target: str) -> tuple[float, float] | None:
        lines: dict[tuple[str, str], tuple[float, float]] = self.__dict__["lines"]
        return lines.get((source, target))


def stated(links: Sequence[LinkSpec]) -> StatedTransfers:
    return StatedTransfers(links=tuple(links))
