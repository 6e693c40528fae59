"""What this distribution offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genie.config import Settings
from genie.hookspecs import hookimpl


def _blocks(settings: Settings) -> Any:
    from genie_patterns_llm.blocks import BLOCKS

    return BLOCKS


def _attention(settings: Settings) -> Any:
    from genie_patterns_llm.attention import AttentionRoles

    return AttentionRoles()


def _phases(settings: Settings) -> Any:
    from genie_patterns_llm.phases import Phases

    return Phases()


def _sampling(settings: Settings) -> Any:
    from genie_patterns_llm.sampling import Sampling

    return Sampling()


def _written(settings: Settings) -> Any:
    from genie_patterns_llm.written import Written

    return Written()


@hookimpl
def genie_patterns() -> Mapping[str, Callable[[Settings], Any]]:
    return {
        "llm-blocks": _blocks,
        "llm-written": _written,
        "llm-attention": _attention,
        "llm-phases": _phases,
        "llm-sampling": _sampling,
    }
