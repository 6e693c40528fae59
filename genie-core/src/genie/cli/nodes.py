"""``genie serve`` and ``genie node``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from genie import config
from genie.cli.memory import memory
from genie.cli.printing import Json, escape, out, print_json, print_tree
from genie.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Nodes of the cluster.")


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8888,
    device: Annotated[
        list[str] | None, typer.Option(help="cpu, cuda:0, …; repeatable. Default: all there are.")
    ] = None,
    backend: Annotated[str, typer.Option(help="The backend that runs the plans.")] = "local",
    transport: Annotated[str, typer.Option(help="The transport to listen with, or several: dpdk,tcp.")] = "tcp",
    dpdk_device: Annotated[str | None, typer.Option(help="What carries the packets of the transport dpdk.")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Intra-op threads; 0 is the framework's default.")] = None,
    batching: Annotated[
        bool | None, typer.Option(help="Clients that decode with one model share reading its weights.")
    ] = None,
    batching_exact: Annotated[
        bool | None, typer.Option(help="Batching changes no bit of a result; without, it is quicker for many clients.")
    ] = None,
    execution_seconds: Annotated[
        float | None, typer.Option(min=0, help="What one execution may take; 0: as long as it likes.")
    ] = None,
    unix: Annotated[str, typer.Option(help="Path of the Unix socket for clients on this host.")] = "",
    cert: Annotated[
        str | None, typer.Option(help="This node's certificate, in PEM; with --key, TLS is spoken.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Its private key.")] = None,
    ca: Annotated[str | None, typer.Option(help="The authority of other nodes, if not --client-ca.")] = None,
    client_ca: Annotated[str | None, typer.Option(help="Ask clients for a certificate by this authority.")] = None,
    tokens: Annotated[str, typer.Option(help="The tokens that are taken: a file by `genie tokens add`.")] = "",
    tenants: Annotated[str | None, typer.Option(help="What tenants may have: quotas, weights, priorities.")] = None,
    audit_log: Annotated[str, typer.Option(help="Append who did what to this file, a JSON object per line.")] = "",
    plain_data: Annotated[
        bool | None,
        typer.Option(help="With --cert: a transport without TLS may carry data that tickets protect, unencrypted."),
    ] = None,
    revoked: Annotated[
        str, typer.Option(help="Certificates not to take any more: a file by `genie certs revoke`.")
    ] = "",
    control_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Of the control plane. Default: --port + 1, or a free one if that is taken."
        ),
    ] = None,
    max_sessions: Annotated[int, typer.Option(min=1, max=65_536, help="Sessions at one time; more are refused.")] = 64,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve whoever reaches this node, without asking who it is.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve metrics and a status page over HTTP here; 0 takes a free port."),
    ] = None,
    metrics_host: Annotated[
        str | None, typer.Option(help="Address to serve them at, 127.0.0.1 if not given: with --metrics-port.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve this machine's devices until interrupted."""
    from genie.remote.node.serve import serve as serve_node

    if metrics_host is not None and metrics_port is None:
        raise ConfigError("--metrics-host is given, and nothing is served there", hint="give --metrics-port")
    given = {
        "dpdk_device": dpdk_device,
        "threads": threads,
        "batching": batching,
        "batching_exact": batching_exact,
        "execution_seconds": execution_seconds,
        "cert": cert,
        "key": key,
        "ca": ca,
        "client_ca": client_ca,
        "plain_data": plain_data,
        "tenants": tenants,
    }
    call: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    resolved = config.resolve(call)
    serve_node(
        resolved.settings,
        host=host,
        port=port,
        devices=tuple(device or ()),
        backend=backend,
        transport=transport,
        unix=unix or None,
        metrics_host=metrics_host or "127.0.0.1",
        metrics_port=metrics_port,
        json=as_json,
        tokens=tokens,
        audit_log=audit_log,
        revoked=revoked,
        control_port=control_port,
        max_sessions=max_sessions,
        insecure=insecure,
    )


@app.command("status")
def node_status(address: str, as_json: Json = False) -> None:
    """What a node is and does: version, devices, sessions, memory."""
    from genie.remote.client.inspection import status

    answer = msgspec.to_builtins(status(address))
    if as_json:
        print_json(answer)
        return
    account = answer["account"]
    if account is not None:  # 0 there would read as "none is allowed"
        answer["account"] = {
            key: "no limit" if key.endswith("_quota") and not value else value for key, value in account.items()
        }
    print_tree(answer)


@app.command("cancel")
def node_cancel(
    address: str,
    session: str,
    work: Annotated[bool, typer.Option("--work", help="Stop only what it is at; the session goes on.")] = False,
    as_json: Json = False,
) -> None:
    """End a session of a node: what it runs stops before its next operator, and its memory is free."""
    from genie.remote.client.orders import cancel

    cancel(address, session, work_only=work)
    if as_json:
        print_json({"address": address, "session": session, "cancelled": "work" if work else "session"})
    else:
        out.print(escape(f"cancelled {'the work of ' if work else ''}{session}"))


@app.command("drain")
def node_drain(
    address: str,
    seconds: Annotated[float, typer.Option(min=0, max=3600, help="What sessions have to end.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Have a node take no more sessions, and end once it has none or the time is up."""
    from genie.remote.client.orders import drain

    left = drain(address, seconds)
    if as_json:
        print_json({"address": address, "sessions": left})
    else:
        whose = "1 session has" if left == 1 else f"{left} sessions have"
        out.print(escape(f"{address} drains: {whose} {seconds:g} s to end"))


app.command("memory")(memory)
