"""What this distribution offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genie.config import Settings
from genie.hookspecs import hookimpl


def _convolutions(settings: Settings) -> Any:
    from genie_patterns_vision.blocks import Convolutions

    return Convolutions()


def _blocks(settings: Settings) -> Any:
    from genie_patterns_vision.blocks import BLOCKS

    return BLOCKS


def _cuts(settings: Settings) -> Any:
    from genie_patterns_vision.stages import Cuts

    return Cuts()


def _heads(settings: Settings) -> Any:
    from genie_patterns_vision.heads import Heads

    return Heads()


def _denoise(settings: Settings) -> Any:
    from genie_patterns_vision.denoise import Denoise

    return Denoise()


@hookimpl
def genie_patterns() -> Mapping[str, Callable[[Settings], Any]]:
    return {
        "vision-convolutions": _convolutions,
        "vision-blocks": _blocks,
        "vision-cuts": _cuts,
        "vision-heads": _heads,
        "vision-denoise": _denoise,
    }
