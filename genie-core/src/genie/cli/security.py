"""``genie certs`` and ``genie tokens``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genie.cli.printing import Json, err, escape, out, print_json
from genie.security import tokens
from genie.security.tokens import Scope

if TYPE_CHECKING:
    from genie.security.certs import Issued

certs_app = typer.Typer(no_args_is_help=True, help="Certificates for a laboratory that has no authority of its own.")
tokens_app = typer.Typer(no_args_is_help=True, help="Tokens that a node takes.")

_Hosts = Annotated[
    list[str] | None, typer.Option("--node", help="A node's name or address; several of one node with commas.")
]
_Days = Annotated[int, typer.Option(min=1, help="How long it holds.")]


@certs_app.command("init")
def certs_init(
    directory: Path,
    node: _Hosts = None,
    client: Annotated[list[str] | None, typer.Option("--client", help="A client's name.")] = None,
    name: Annotated[str, typer.Option(help="The authority's name.")] = "Genie lab CA",
    days: _Days = 365,
    as_json: Json = False,
) -> None:
    """Make an authority, and certificates of it for nodes and clients."""
    from genie.security import certs

    nodes = [_names(each) for each in node or ()]
    certs.check(nodes, client or (), days)  # before there is an authority that a second try would find
    made = [certs.create_authority(directory, name)]
    made += [certs.issue_node(directory, hosts, days) for hosts in nodes]
    made += [certs.issue_client(directory, each, days) for each in client or ()]
    _tell(made, as_json)
    if not as_json:
        out.print(escape(f"keep {directory / 'ca.key'} to yourself: whoever has it can pose as any node or client"))


@certs_app.command("node")
def certs_node(directory: Path, hosts: list[str], days: _Days = 365, as_json: Json = False) -> None:
    """Make, or renew, the certificate of the node that is reached by HOSTS."""
    from genie.security import certs

    _tell([certs.issue_node(directory, hosts, days)], as_json)


@certs_app.command("client")
def certs_client(directory: Path, name: str, days: _Days = 365, as_json: Json = False) -> None:
    """Make, or renew, a client's certificate."""
    from genie.security import certs

    _tell([certs.issue_client(directory, name, days)], as_json)


@certs_app.command("revoke")
def certs_revoke(
    file: Path, certs: Annotated[list[Path] | None, typer.Argument(help="In PEM. None make an empty list.")] = None
) -> None:
    """Put certificates (CERTS, in PEM) on a list that nodes take by --revoked. They notice by themselves."""
    from genie.security import revoked

    if not certs:
        revoked.begin(file)
        out.print(escape(f"{file}: {len(revoked.load(file))} revoked"))
        return
    for cert in certs:
        revoked.add(file, cert)
        out.print(escape(f"revoked {cert}"))


def _names(hosts: str) -> list[str]:
    return [host.strip() for host in hosts.split(",") if host.strip()]


def _tell(made: list[Issued], as_json: bool) -> None:
    if as_json:
        print_json([{"cert": str(each.cert), "key": str(each.key), "until": each.until.isoformat()} for each in made])
        return
    for each in made:
        out.print(escape(f"{each.cert}, {each.key}: until {each.until:%Y-%m-%d}"))


@tokens_app.command("add")
def tokens_add(
    file: Path,
    name: str,
    scope: Annotated[list[Scope] | None, typer.Option(help="use, admin, metrics; repeatable. Default: use.")] = None,
    days: Annotated[float, typer.Option(min=0, help="How long it holds; 0: until it is revoked.")] = 90,
    tenant: Annotated[str, typer.Option(help="Whom it counts for, if several tokens are one tenant's.")] = "",
) -> None:
    """Make a token, and print it: nothing keeps it. FILE is for the node and holds its hash."""
    token = tokens.add(file, name, tuple(scope or (Scope.USE,)), days or None, tenant)
    err.print(escape(f"added {name!r} to {file}; this is the only time that the token is shown"))
    sys.stdout.write(token + "\n")


@tokens_app.command("list")
def tokens_list(file: Path, as_json: Json = False) -> None:
    """The tokens of a file: names, scopes, until when."""
    entries = tokens.load(file)
    rows = [
        {
            "name": entry.name,
            "tenant": entry.tenant or entry.name,
            "scopes": [scope.value for scope in entry.scopes],
            "expires": entry.expires.isoformat() if entry.expires else None,
            "expired": entry.expired,
        }
        for entry in entries
    ]
    if as_json:
        print_json(rows)
        return
    for entry in entries:
        until = f"until {entry.expires:%Y-%m-%d %H:%M} UTC" if entry.expires else "for ever"
        state = " (expired)" if entry.expired else ""
        out.print(escape(f"{entry.name}: {', '.join(scope.value for scope in entry.scopes)}, {until}{state}"))


@tokens_app.command("revoke")
def tokens_revoke(file: Path, name: str) -> None:
    """Remove a token. Nodes notice by themselves, and end its sessions within half a minute."""
    tokens.revoke(file, name)
    out.print(escape(f"revoked {name!r}"))
