"""What an emulated cluster did, in virtual time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import attrs

from genie.emulate.virtual import Span, Traffic


@attrs.frozen
class Report:
    """All in virtual seconds, from the start or the last :func:`genie.emulate.reset`.

    ``seconds`` is the time until the last of it was done; ``busy`` the work of each device; ``traffic`` what went from
    one to another, by (source, target), the client's own traffic included; ``trace`` the latest of it in order of
    starts (at most 65,536 entries): a Gantt chart has a row for each ``where``.
    """

    seconds: float
    busy: Mapping[str, float]
    traffic: Mapping[tuple[str, str], Traffic]
    trace: tuple[Span, ...]

    def to_json(self) -> str:
        """As `genie inspect PLAN --measured FILE` reads it."""
        traffic = [{"source": a, "target": b, **its._asdict()} for (a, b), its in self.traffic.items()]
        trace = [span._asdict() for span in self.trace]
        return json.dumps({"seconds": self.seconds, "busy": dict(self.busy), "traffic": traffic, "trace": trace})

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.seconds * 1e3:.3f} ms emulated"
        for device, busy in self.busy.items():
            share = busy / self.seconds if self.seconds else 0.0
            yield f"  {device}: {busy * 1e3:.3f} ms of work, {share:.0%} of the time"
        for (source, target), its in self.traffic.items():
            values = "1 value" if its.values == 1 else f"{its.values} values"
            yield f"  {source} → {target}: {its.bytes:,} bytes, {values}, {its.seconds * 1e3:.3f} ms"
