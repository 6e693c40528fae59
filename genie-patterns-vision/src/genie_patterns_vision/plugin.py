"""What this distribution offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genie.config import Settings
from genie.hookspecs import hookimpl


@hookimpl
def genie_patterns() -> Mapping[str, Callable[[Settings], Any]]:
    return {}
