"""What the commands print with."""

from __future__ import annotations

import json
import sys
import traceback
from typing import Annotated

import attrs
import typer
from rich.console import Console

from genie.errors import GenieError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@attrs.define
class Options:
    """Those given before the command's name."""

    debug: bool = False


options = Options()


def complain(error: GenieError) -> None:
    """Say what went wrong, in one readable block."""
    if options.debug:
        traceback.print_exception(error)
    else:
        err.print(f"[red bold]{type(error).__name__}[/red bold]: {escape(str(error))}")


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_tree(value: object, indent: int = 0) -> None:
    pad = " " * indent
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list | tuple) and item:
                out.print(f"{pad}[bold]{escape(str(key))}[/bold]")
                print_tree(item, indent + 2)
            else:
                out.print(f"{pad}[bold]{escape(str(key))}[/bold]: {_plain(item)}")
    elif isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, dict):
                print_tree(item, indent)
                out.print()
            else:
                out.print(f"{pad}{_plain(item)}")
    else:
        out.print(f"{pad}{_plain(value)}")


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or value in ((), [], {}):
        return "none"
    return escape(str(value))


def escape(text: str) -> str:
    return text.replace("[", r"\[")
