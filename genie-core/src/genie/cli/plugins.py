"""``genie plugins``."""

from __future__ import annotations

import attrs
import typer
from rich.console import Console
from rich.table import Table

from genie import config
from genie.cli.printing import Json, escape, out, print_json
from genie.errors import GenieError, PluginNotFound
from genie.plugins import Offer, registry

app = typer.Typer(no_args_is_help=True, help="Installed plugins.")


@app.command("list")
def plugins_list(as_json: Json = False) -> None:
    """Every plugin, and the error of each that can't be used."""
    offers = registry.offers()
    if as_json:
        print_json([_row(offer) for offer in offers])
        return
    table = Table("kind", "name", "distribution", "version", "status", box=None, pad_edge=False)
    for offer in offers:
        status = "[red]unusable[/red]" if offer.error else "ok"
        table.add_row(offer.kind or "?", offer.name or "?", offer.distribution, offer.version, status)
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ignore"
    Console(highlight=False, width=max(out.width, 120)).print(table)
    for offer in offers:
        if offer.error:
            out.print(f"\n[red bold]{offer.distribution}[/red bold] ({offer.entry_point}): {escape(offer.error)}")


@app.command("info")
def plugins_info(name: str, as_json: Json = False) -> None:
    """What is installed under a name (of an offer or of a distribution); makes each to see that it can be."""
    found = [offer for offer in registry.offers() if name in (offer.name, offer.distribution)]
    if not found:
        known = sorted({offer.name for offer in registry.offers() if offer.name})
        raise PluginNotFound(f"no plugin is named {name!r}", hint=f"installed: {', '.join(known) or 'none'}")
    rows = [{**_row(offer), **_trial(offer)} for offer in found]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        for key, value in row.items():
            if value != "":
                out.print(f"[bold]{key:<14}[/bold]{escape(str(value))}")
        out.print()


def _row(offer: Offer) -> dict[str, str]:
    return {
        field.name: getattr(offer, field.name)
        for field in attrs.fields(Offer)
        if field.name not in ("factory", "cause")
    }


def _trial(offer: Offer) -> dict[str, str]:
    if offer.kind == "" or offer.error:
        return {}
    if offer.kind in ("frontend", "backend"):  # making one hooks a framework or opens connections
        return {"made": "on use"}
    try:
        made = registry.make(offer.kind, offer.name, config.resolve().settings)
    except GenieError as error:
        return {"error": str(error)}
    return {"made": f"{type(made).__module__}.{type(made).__qualname__}"}
