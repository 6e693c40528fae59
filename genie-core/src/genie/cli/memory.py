"""``genie node memory``: who holds it."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from genie import config
from genie.cli.printing import Json, escape, out, print_json
from genie.cli.top import size_text


def memory(address: str, as_json: Json = False) -> None:
    """Who holds a node's memory: devices, sessions by kind of value, what has left and may come back."""
    told = _ask(address)
    if as_json:
        print_json(msgspec.to_builtins(told))
        return
    for table in (_devices(told), _sessions(told)):
        out.print(table)
    for tenant, size in told.swapped.items():
        out.print(escape(f"swap: {size_text(size)} of {tenant or 'anonymous'}"))
    out.print(f"host: {size_text(told.content)} of contents by digest, {size_text(told.buffers)} of free buffers")


def _ask(address: str) -> Any:
    from genie.plugins import registry
    from genie.remote.client.access import Access

    settings = config.resolve().settings
    transport = registry.make("transport", "tcp", settings)
    access = Access.from_settings(settings, transport)
    with access.control(transport, address, settings.connect_timeout) as client:
        return client.memory()


def _devices(told: Any) -> Table:
    table = _table(
        "device", "limit>", "in use>", "peak>", "weights, once>", "reserved>", "swap>", "left>", "came back>"
    )
    for device in told.devices:
        left = sum(device.moves[move].bytes for move in ("evicted", "swapped_out") if move in device.moves)
        back = sum(device.moves[move].bytes for move in ("restored", "swapped_in") if move in device.moves)
        table.add_row(
            device.id,
            size_text(device.limit),
            size_text(device.live),
            size_text(device.peak),
            size_text(device.contents),
            size_text(device.reserved),
            f"{size_text(device.swap_used)} of {size_text(device.swap_limit)}" if device.swap_limit else "–",
            size_text(left),
            size_text(back),
        )
    return table


def _sessions(told: Any) -> Table:
    from genie.remote.seen.holdings import KINDS

    table = _table(
        "session", "client", "tenant", "device", *(f"{kind}>" for kind in KINDS), "in use>", "peak>", "off device>"
    )
    for session in told.sessions:
        table.add_row(
            session.id,
            Text(session.client),
            Text(session.tenant or "–"),
            session.device,
            *(size_text(session.kinds.get(kind, 0)) for kind in KINDS),
            size_text(session.live),
            size_text(session.peak),
            size_text(session.off_device),
        )
    for device in told.devices:
        if device.others:
            table.add_row("other tenants", "", "", device.id, *("" for _ in KINDS), size_text(device.others), "", "")
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head.removesuffix(">"), justify="right" if head.endswith(">") else "left")
    return table
