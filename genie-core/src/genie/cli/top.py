"""``genie top``: what nodes do now."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import attrs
import msgspec
import typer
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from genie import config
from genie.cli.printing import Json, out, print_json
from genie.errors import ConfigError, GenieError

_WIDE = 10_000  # columns: more than any table takes
_FEW = 12  # sessions of a node that are shown, the largest first


@attrs.define
class _Watched:
    """A node, and what it said the last two times."""

    address: str
    client: Any = None
    before: Any = None
    now: Any = None
    problem: str = ""

    def look(self, transport: Any, access: Any, timeout: float) -> None:
        try:
            if self.client is None:
                self.client = access.control(transport, self.address, timeout)
            self.before, self.now = self.now, self.client.view()
            self.problem = ""
        except GenieError as error:
            self.close()
            self.before = self.now = None
            self.problem = error.message

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def told(self) -> dict[str, Any]:
        """For machines."""
        from genie.remote.seen.rates import rates

        if self.now is None:
            return {"address": self.address, "problem": self.problem}
        seen = rates(self.before, self.now)
        return {
            "address": self.address,
            "problem": "",
            "rates": msgspec.to_builtins(seen),
            "view": msgspec.to_builtins(self.now),
        }


def top(
    nodes: Annotated[list[str] | None, typer.Argument(help="Nodes as host:port. Default: the configured ones.")] = None,
    interval: Annotated[float, typer.Option(min=0.1, max=60.0, help="Seconds between two looks.")] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look twice, print, end; status 1 if a node does not answer.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What nodes do now: devices, sessions, memory, rates and latencies. Ctrl-C ends it."""
    from genie.plugins import registry
    from genie.remote.client.access import Access

    settings = config.resolve().settings
    addresses = tuple(dict.fromkeys(nodes or settings.nodes))
    if not addresses:
        raise ConfigError("which nodes?", hint="genie top HOST:PORT …, or set `nodes` (GENIE_NODES)")
    if as_json and not once:
        raise ConfigError("--json prints once", hint="add --once")
    transport = registry.make("transport", "tcp", settings)
    access = Access.from_settings(settings, transport)
    watched = [_Watched(address) for address in addresses]

    def look() -> None:
        for each in watched:
            each.look(transport, access, settings.connect_timeout)

    try:
        look()
        if once:
            time.sleep(interval)
            look()
            if as_json:
                print_json([each.told() for each in watched])
            else:
                out.print(picture(watched))
            if any(each.problem for each in watched):
                raise typer.Exit(1)
            return
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(picture(watched), console=out, auto_refresh=False, screen=out.is_terminal) as live,
        ):
            while True:
                time.sleep(interval)
                look()
                live.update(picture(watched), refresh=True)
    finally:
        for each in watched:
            each.close()


def picture(watched: Sequence[_Watched]) -> RenderableType:
    return Group(*(_node(each) for each in watched))


def _node(each: _Watched) -> RenderableType:
    from genie.remote.seen.rates import rates

    if each.now is None:
        return Panel(Text(each.problem or "not asked yet", style="red"), title=each.address, title_align="left")
    view, seen = each.now, rates(each.before, each.now)
    state = Text.assemble(
        ("draining" if view.draining else "serving", "yellow" if view.draining else "green"),
        f" · up {_span(view.time - view.started)} · {len(view.sessions)} of {view.max_sessions} sessions, "
        f"{sum(device.busy for device in view.devices)} busy · {seen.requests:,.0f} requests/s · "
        f"{seen.executions:,.0f} executions/s · in {size_text(seen.bytes_in)}/s · out {size_text(seen.bytes_out)}/s · "
        f"{seen.failures:,.2g} failures/s · {seen.cpu:.1f} cores · {size_text(view.process.resident_bytes)} resident",
    )
    swapped: Counter[str] = Counter()
    for session in view.memory.sessions:
        swapped[session.device] += session.off_device
    devices = _table("device", "memory>", "used>", "swapped>", "kept>", "largest>", "sessions>", "busy>", "away>")
    for device in view.devices:
        devices.add_row(
            device.id,
            size_text(device.memory_bytes),
            size_text(device.used_bytes),
            size_text(swapped[device.id]),
            size_text(device.kept_bytes),
            size_text(device.largest_bytes),
            str(device.sessions),
            str(device.busy),
            str(device.away),
        )
    stages = _table("stage", "p50>", "p99>", "per second>")
    for stage, its in seen.stages.items():
        stages.add_row(stage, _seconds(its.p50), _seconds(its.p99), f"{its.count / seen.seconds:,.0f}")
    parts: list[RenderableType] = [state, devices, stages]
    if view.reception.accounts:
        parts.append(_accounts(view.reception))
    if view.reception.queue:
        parts.append(_queue(view.reception))
    if view.sessions:
        parts.append(_sessions(view))
    return Panel(Group(*parts), title=f"{each.address} · Genie {view.genie}", title_align="left")


def _accounts(seen: Any) -> RenderableType:
    table = _table("tenant", "priority", "weight>", "sessions>", "waiting>", "memory>", "time>", "plans>", "held back>")
    for its in sorted(seen.accounts, key=lambda account: -account.device_seconds)[:_FEW]:
        table.add_row(
            Text(its.tenant),
            its.priority,
            f"{its.weight:g}",
            _of(str(its.sessions), its.sessions_quota),
            str(its.waiting),
            _of(size_text(its.memory_bytes), its.memory_quota and size_text(its.memory_quota)),
            f"{its.share:.0%}",
            _of(str(its.plans), its.plans_quota),
            _span(its.delayed_seconds),
        )
    if len(seen.accounts) > _FEW:
        table.add_row(f"and {len(seen.accounts) - _FEW} more")
    return table


def _queue(seen: Any) -> RenderableType:
    table = _table("place>", "tenant", "priority", "waits for>")
    for its in seen.queue[:_FEW]:
        table.add_row(str(its.position), Text(its.tenant), its.priority, _span(its.seconds))
    if len(seen.queue) > _FEW:
        table.add_row("", f"and {len(seen.queue) - _FEW} more")
    return table


def _of(number: str, quota: object) -> str:
    return f"{number} of {quota}" if quota else number


def _sessions(view: Any) -> RenderableType:
    table = _table(
        "session", "client", "device", "state", "age>", "memory>", "peak>", "executions>", "in>", "out>", "plans>"
    )
    shown = sorted(view.sessions, key=lambda session: -session.memory_bytes)
    for session in shown[:_FEW]:
        table.add_row(
            session.id,
            Text(session.client),
            session.device,
            "away" if session.away else "busy" if session.busy else "idle",
            _span(view.time - session.since),
            size_text(session.memory_bytes),
            size_text(session.peak_memory_bytes),
            f"{session.executions:,}",
            size_text(session.bytes_in),
            size_text(session.bytes_out),
            str(session.plans),
        )
    if len(shown) > _FEW:
        table.add_row(f"and {len(shown) - _FEW} more")
    return table


@attrs.define
class _Table:
    """Of ``heads``; one that ends with ">" is of numbers. Where there is no room for all columns the last ones are left
    out, and named: a number that is cut short is another number."""

    heads: tuple[str, ...]
    rows: list[tuple[str | Text, ...]] = attrs.field(factory=list)

    def add_row(self, *cells: str | Text) -> None:
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = len(self.heads)
        while (
            shown > 1
            and console.measure(self._first(shown), options=options.update(width=_WIDE)).maximum > options.max_width
        ):
            shown -= 1
        yield self._first(shown)
        if shown < len(self.heads):
            left = ", ".join(head.removesuffix(">") for head in self.heads[shown:])
            yield Text(f"(no room for: {left})", style="dim")

    def _first(self, count: int) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for head in self.heads[:count]:
            table.add_column(head.removesuffix(">"), justify="right" if head.endswith(">") else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row[:count])
        return table


def _table(*heads: str) -> _Table:
    return _Table(heads)


def size_text(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def _seconds(number: float | None) -> str:
    if number is None:
        return "–"
    return f"{number * 1e6:.0f} µs" if number < 1e-3 else f"{number * 1e3:.1f} ms" if number < 1 else f"{number:.1f} s"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
