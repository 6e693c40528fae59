"""The ``genie`` command."""

from __future__ import annotations

import json
import runpy
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import attrs
import msgspec
import typer
from rich.console import Console
from rich.table import Table

import genie
from genie import codec, config, runtime
from genie.errors import ConfigError, GenieError, PluginNotFound
from genie.graph import Graph
from genie.plan import ExecutionPlan
from genie.plugins import Offer, registry

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
plugins_app = typer.Typer(no_args_is_help=True, help="Installed plugins.")
node_app = typer.Typer(no_args_is_help=True, help="Nodes of the cluster.")
app.add_typer(plugins_app, name="plugins")
app.add_typer(node_app, name="node")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)
_debug = False


def _version(wanted: bool) -> None:
    if wanted:
        _out.print(f"genie {genie.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Run programs on remote accelerators."""
    global _debug
    _debug = debug


# --- plugins -------------------------------------------------------------------------------------


@plugins_app.command("list")
def plugins_list(as_json: Json = False) -> None:
    """Every plugin, and the error of each that can't be used."""
    offers = registry.offers()
    if as_json:
        _print_json([_row(offer) for offer in offers])
        return
    table = Table("kind", "name", "distribution", "version", "status", box=None, pad_edge=False)
    for offer in offers:
        status = "[red]unusable[/red]" if offer.error else "ok"
        table.add_row(offer.kind or "?", offer.name or "?", offer.distribution, offer.version, status)
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ignore"
    Console(highlight=False, width=max(_out.width, 120)).print(table)
    for offer in offers:
        if offer.error:
            _out.print(f"\n[red bold]{offer.distribution}[/red bold] ({offer.entry_point}): {_escape(offer.error)}")


@plugins_app.command("info")
def plugins_info(name: str, as_json: Json = False) -> None:
    """What is installed under a name (of an offer or of a distribution); makes each to see that it can be."""
    found = [offer for offer in registry.offers() if name in (offer.name, offer.distribution)]
    if not found:
        known = sorted({offer.name for offer in registry.offers() if offer.name})
        raise PluginNotFound(f"no plugin is named {name!r}", hint=f"installed: {', '.join(known) or 'none'}")
    rows = [{**_row(offer), **_trial(offer)} for offer in found]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        for key, value in row.items():
            if value != "":
                _out.print(f"[bold]{key:<14}[/bold]{_escape(str(value))}")
        _out.print()


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


# --- nodes ---------------------------------------------------------------------------------------


@app.command()
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


@node_app.command("status")
def node_status(address: str, as_json: Json = False) -> None:
    """What a node is and does: version, devices, sessions, memory."""
    from genie.remote.inspection import status

    answer = msgspec.to_builtins(status(address))
    if as_json:
        _print_json(answer)
        return
    _print_tree(answer)


# --- programs ------------------------------------------------------------------------------------


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def run(
    script: Annotated[Path, typer.Argument(help="A Python program.")],
    args: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    node: Annotated[list[str] | None, typer.Option(help="host:port; repeatable, before the program.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="A cluster.yaml.")] = None,
    backend: Annotated[str | None, typer.Option(help="local, tcp, …")] = None,
) -> None:
    """Run a program with the configured cluster: `remote_accelerator` exists without an import."""
    if not script.is_file():
        raise ConfigError(f"no program {str(script)!r}", hint="genie run [OPTIONS] script.py [ARGS]")
    call: dict[str, Any] = {}
    if node:
        call["nodes"] = tuple(node)
    if cluster is not None:
        call["cluster"] = cluster
    if backend is not None:
        call["backend"] = backend
    runtime.start(call)
    for name in registry.names("frontend"):
        runtime.frontend(name)
    sys.argv = [str(script), *(args or ())]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except GenieError as error:
        error.where = error.where or _line_of(script, error)
        raise


def _line_of(script: Path, error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
    return f"{script}:{frames[-1].lineno}" if frames else ""


# --- artifacts -----------------------------------------------------------------------------------


@app.command()
def inspect(file: Path, as_json: Json = False) -> None:
    """Print a graph or plan file, after verifying it."""
    value = codec.load(file)
    if as_json:
        sys.stdout.write(codec.to_json(value) + "\n")
    else:
        sys.stdout.write(value.text())


@app.command()
def explain(file: Path, node: int, as_json: Json = False) -> None:
    """Why a node of a plan runs where it does; of a graph, what is known of it."""
    value = codec.load(file)
    if isinstance(value, ExecutionPlan):
        answer = value.explain(node)
        _print_json(msgspec.to_builtins(answer)) if as_json else sys.stdout.write(f"{answer}\n")
        return
    assert isinstance(value, Graph)
    its = value.get_node(node)
    known = {"node": its.id, "operation": its.target, **dict(its.metadata)}
    _print_json(known) if as_json else _print_tree(known)


# --- printing and ending -------------------------------------------------------------------------


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def _print_tree(value: object, indent: int = 0) -> None:
    pad = " " * indent
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list | tuple) and item:
                _out.print(f"{pad}[bold]{_escape(str(key))}[/bold]")
                _print_tree(item, indent + 2)
            else:
                _out.print(f"{pad}[bold]{_escape(str(key))}[/bold]: {_plain(item)}")
    elif isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, dict):
                _print_tree(item, indent)
                _out.print()
            else:
                _out.print(f"{pad}{_plain(item)}")
    else:
        _out.print(f"{pad}{_plain(value)}")


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or value in ((), [], {}):
        return "none"
    return _escape(str(value))


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0, 1 for an error of ours, 2 for wrong usage, 130 when interrupted."""
    try:
        status = typer.main.get_command(app).main(args=argv, prog_name="genie", standalone_mode=False)
    except GenieError as error:
        if _debug:
            traceback.print_exc()
        else:
            _err.print(f"[red bold]{type(error).__name__}[/red bold]: {_escape(str(error))}")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        # click's own errors (wrong options and the like) know how to show themselves
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            raise
        show()
        return int(code)
    return status if isinstance(status, int) else 0
