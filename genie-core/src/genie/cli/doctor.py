"""``genie doctor``: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from genie import config
from genie.cli.printing import Json, escape, out, print_json

if TYPE_CHECKING:
    from genie.remote.client.doctor import Finding

_SIGNS = {"ok": "[green]ok[/green]     ", "warning": "[yellow]warning[/yellow]", "failure": "[red]failure[/red]"}


def doctor(
    nodes: Annotated[list[str] | None, typer.Argument(help="Nodes as host:port. Default: the configured ones.")] = None,
    megabytes: Annotated[int, typer.Option(min=1, max=4096, help="MiB sent there and back to measure.")] = 32,
    as_json: Json = False,
) -> None:
    """Check this side, and each node from here: versions, ports, clock, devices, round trip and bandwidth.

    Ends with 1 if something keeps Genie from working, else with 0; warnings do not.
    """
    found = []
    for finding in _findings(nodes, megabytes):
        found.append(finding)
        if not as_json:
            where = f"{finding.node} " if finding.node else ""
            todo = f" → {finding.todo}" if finding.todo else ""
            out.print(f"{_SIGNS[finding.level]}  {escape(f'{where}{finding.check}: {finding.text}{todo}')}")
    if as_json:
        print_json(msgspec.to_builtins(found))
    if any(finding.level == "failure" for finding in found):
        raise typer.Exit(1)


def _findings(nodes: list[str] | None, megabytes: int) -> Iterator[Finding]:
    from genie.plugins import registry
    from genie.remote.client import doctor as checks

    call = {"nodes": tuple(dict.fromkeys(nodes))} if nodes else {}
    settings = config.resolve(call).settings
    yield from checks.this_side(registry, settings)
    transport = registry.make("transport", "tcp", settings) if settings.nodes else None
    for address in settings.nodes:
        assert transport is not None
        yield from checks.node(address, transport, settings, megabytes=megabytes)
