"""``genie inspect``, ``genie diff`` and ``genie explain``: looking at graphs and plans."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

import genie
from genie import codec
from genie.cli.measured import read_measured
from genie.cli.models import captured
from genie.cli.printing import Json, complain, out, print_json
from genie.errors import ConfigError, GenieError
from genie.graph import Graph
from genie.inspect import (
    Difference,
    ModulePart,
    Summary,
    compare,
    comparison,
    dot,
    module_part,
    page,
    summary,
    tree,
)
from genie.inspect.explanation import explanation, known
from genie.plan import ExecutionPlan, Explanation

_COLORS = {"-": "red", "+": "green", "~": "yellow"}


def inspect(
    what: Annotated[
        str, typer.Argument(metavar="FILE|MODEL", help="A saved graph or plan, or package.module:function to capture.")
    ],
    depth: Annotated[int | None, typer.Option(min=0, help="How deep the tree goes. Default: all of it.")] = None,
    as_text: Annotated[bool, typer.Option("--text", help="Every node as stable text, for diffs.")] = False,
    as_dot: Annotated[bool, typer.Option("--dot", help="Graphviz.")] = False,
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page for a browser.")] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What a plan took, beside what was predicted: of `genie profile export`, a directory of profiles, or "
            "the report of an emulated run.",
        ),
    ] = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="Don't annotate what has no labels.")] = False,
) -> None:
    """Show a graph or plan: as a tree of its modules, unless an option says otherwise.

    MODEL is `package.module:function` or `path/to/file.py:function`. The function takes no arguments; it returns
    `(program, args)` or `(program, args, kwargs)`, which is run and captured, or captures something itself.
    """
    if sum((as_text, as_dot, as_json, html is not None)) > 1:
        raise typer.BadParameter("one of --text, --dot, --json and --html at a time")
    if measured is not None and (as_text or as_dot):
        raise typer.BadParameter("--measured goes with --html or --json, or alone")
    shown = _load(what)
    if not as_is:
        shown = _labelled(shown)
    seen = None if measured is None else read_measured(_plan(shown), measured)
    if seen is not None and html is None:
        found = comparison(_plan(shown), seen)
        print_json(msgspec.to_builtins(found)) if as_json else sys.stdout.write(str(found))
    elif as_json:
        sys.stdout.write(codec.to_json(shown) + "\n")
    elif as_text:
        sys.stdout.write(shown.text())
    elif as_dot:
        sys.stdout.write(dot(shown))
    elif html is not None:
        _write(html, page(shown, measured=seen))
        out.print(Text(f"{html}: {html.stat().st_size / 1e6:.1f} MB"))
    elif out.is_terminal:
        out.print(tree(shown, depth), soft_wrap=False)
    else:
        sys.stdout.write(str(tree(shown, depth)))


def diff(a: Path, b: Path, as_json: Json = False) -> None:
    """What is different in graph or plan B. Ends with status 0 when nothing is, 1 when something is, 2 for trouble."""
    try:
        found = compare(codec.load(a), codec.load(b))
    except GenieError as error:
        complain(error)
        raise typer.Exit(2) from error
    if as_json:
        print_json(_as_json(found))
    else:
        for line in found.lines():
            if out.is_terminal:
                out.print(Text(line, style=_COLORS.get(line[0], "")))
            else:
                sys.stdout.write(f"{line}\n")
    raise typer.Exit(1 if found else 0)


def explain(
    file: Path,
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="A node's id; of a plan, the path of a module as well.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a plan comes to; why a node of it runs where it does, or what a module of it takes. Of a graph's node, what
    is known of it, and why."""
    value = codec.load(file)
    if isinstance(value, ExecutionPlan):
        answer = _explained(value, node)
        print_json(msgspec.to_builtins(answer)) if as_json else sys.stdout.write(f"{str(answer).rstrip()}\n")
        return
    assert isinstance(value, Graph)
    if node is None:
        raise typer.BadParameter("of a graph, which node? `genie inspect` shows all of it")
    if not node.isdecimal():
        raise typer.BadParameter(f"of a graph, the id of a node: {node!r} is none")
    its = value.get_node(int(node))
    print_json(known(its)) if as_json else sys.stdout.write(explanation(its))


def _explained(plan: ExecutionPlan, node: str | None) -> Summary | ModulePart | Explanation:
    if node is None:
        return summary(plan)
    return plan.explain(int(node)) if node.isdecimal() else module_part(plan, node)


def _plan(shown: Graph | ExecutionPlan) -> ExecutionPlan:
    if isinstance(shown, ExecutionPlan):
        return shown
    raise ConfigError("a graph has no times to be measured", hint="--measured wants a plan: genie.save(plan, file)")


def _load(what: str) -> Graph | ExecutionPlan:
    if ":" in what and not Path(what).exists():
        return captured(what)
    return codec.load(what)


def _labelled(shown: Graph | ExecutionPlan) -> Graph | ExecutionPlan:
    graph = shown.graph if isinstance(shown, ExecutionPlan) else shown
    if graph.meanings:  # a frontend may know something of some nodes; annotation says something of every value
        return shown
    annotated = genie.annotate(graph)
    return msgspec.structs.replace(shown, graph=annotated) if isinstance(shown, ExecutionPlan) else annotated


def _write(path: Path, text: str) -> None:
    """A file whole or not at all."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def _as_json(found: Difference) -> object:
    return {"equal": not found, **msgspec.to_builtins(found)}
