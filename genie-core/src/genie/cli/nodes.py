"""``genie serve`` and ``genie node``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from genie import config
from genie.cli.printing import Json, print_json, print_tree

app = typer.Typer(no_args_is_help=True, help="Nodes of the cluster.")


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8888,
    device: Annotated[
        list[str] | None, typer.Option(help="cpu, cuda:0, …; repeatable. Default: all there are.")
    ] = None,
    backend: Annotated[str, typer.Option(help="The backend that runs the plans.")] = "local",
    transport: Annotated[str, typer.Option(help="The transport to listen with.")] = "tcp",
    threads: Annotated[int | None, typer.Option(min=0, help="Intra-op threads; 0 is the framework's default.")] = None,
    unix: Annotated[str, typer.Option(help="Path of the Unix socket for clients on this host.")] = "",
    as_json: Json = False,
) -> None:
    """Serve this machine's devices until interrupted."""
    from genie.remote.node import serve as serve_node

    call: dict[str, Any] = {} if threads is None else {"threads": threads}
    resolved = config.resolve(call)
    serve_node(
        resolved.settings,
        host=host,
        port=port,
        devices=tuple(device or ()),
        backend=backend,
        transport=transport,
        unix=unix or None,
        json=as_json,
    )


@app.command("status")
def node_status(address: str, as_json: Json = False) -> None:
    """What a node is and does: version, devices, sessions, memory."""
    from genie.remote.inspection import status

    answer = msgspec.to_builtins(status(address))
    if as_json:
        print_json(answer)
        return
    print_tree(answer)
