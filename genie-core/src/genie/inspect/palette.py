"""Colours of labels, for every picture. Related words have related hues; what is unknown is grey."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

UNKNOWN = "#9aa3af"

PHASE: Mapping[str, str] = MappingProxyType(
    {
        "prefill": "#2f6fde",
        "decode": "#0d9488",
        "forward": "#6b84ad",
        "backward": "#c2544d",
        "optimizer": "#94653a",
        "vision_encode": "#8b5cd6",
        "text_encode": "#3ba0d8",
        "audio_encode": "#d05c9b",
        "fusion": "#e0861c",
        "embedding_lookup": "#96971b",
        "interaction": "#c9a20a",
        "dense_tower": "#5f8a3d",
        "sampling": "#e0484f",
        "denoise": "#5a5dc9",
    }
)

MODALITY: Mapping[str, str] = MappingProxyType(
    {"text": "#3b7dd8", "vision": "#8b5cd6", "audio": "#d05c9b", "tabular": "#96971b", "multimodal": "#e0861c"}
)

RESIDENCY: Mapping[str, str] = MappingProxyType(
    {
        "weight": "#c9a20a",
        "kv_cache": "#d4483f",
        "recurrent_state": "#b04fa8",
        "activation": "#4f8ad0",
        "input": "#2f9e68",
        "ephemeral": "#7d8896",
    }
)

SERIES = ("#3b7dd8", "#e0861c", "#2f9e68", "#8b5cd6", "#d4483f", "#c9a20a", "#0d9488", "#d05c9b")


def tint(color: str, share: float = 0.4) -> str:
    """``color`` on white paper: light enough for black text."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) * share):02x}" for part in parts)
