"""How `genie top` sets out its numbers."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from genie.cli import top

HEADS = ("session", "client", "device", "state", "age", "memory", "peak", "executions", "in", "out", "plans")


def _shown(what: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _sessions() -> Any:
    session = SimpleNamespace(
        id="87b0998c-12",
        client="ws3:18810",
        device="cuda:0",
        away=False,
        busy=True,
        since=0.0,
        executions=15_200,
        bytes_in=75_000.0,
        bytes_out=2100.0,
        memory_bytes=2.8e6,
        peak_memory_bytes=2.9e6,
        plans=7,
    )
    return top._sessions(SimpleNamespace(sessions=[session], time=60.0))


def test_a_wide_window_shows_all() -> None:
    heads, cells = _shown(_sessions(), 140).splitlines()
    assert heads.split() == list(HEADS)
    assert "15,200" in cells
    assert cells.split()[-1] == "7"


@pytest.mark.parametrize("width", [40, 60, 80, 90])
def test_in_a_narrow_one_columns_are_left_out_and_no_number_is_cut(width: int) -> None:
    heads, cells, missing = _shown(_sessions(), width).split("\n", 2)
    assert "…" not in heads + cells
    shown = heads.split()
    assert shown == list(HEADS[: len(shown)])
    left = " ".join(missing.split()).removeprefix("(no room for: ").removesuffix(")")
    assert left.split(", ") == list(HEADS[len(shown) :])
