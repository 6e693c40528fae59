"""``genie run``."""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from genie import runtime
from genie.errors import ConfigError, GenieError
from genie.plugins import registry


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
