"""What this distribution offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genie.config import Settings
from genie.hookspecs import hookimpl


def _modalities(settings: Settings) -> Any:
    from genie_patterns_multimodal.modalities import Modalities

    return Modalities()


def _fusion(settings: Settings) -> Any:
    from genie_patterns_multimodal.modalities import Fusion

    return Fusion()


def _recommendation(settings: Settings) -> Any:
    from genie_patterns_multimodal.recommendation import Recommendation

    return Recommendation()


@hookimpl
def genie_patterns() -> Mapping[str, Callable[[Settings], Any]]:
    return {"modalities": _modalities, "fusion": _fusion, "recommendation": _recommendation}
