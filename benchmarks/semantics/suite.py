"""All models, in the order they run."""

from __future__ import annotations

from semantics import language, multimodal, noise, odd, plain, recommend, recurrent, senses, text, training
from semantics.truth import Model

MODELS: tuple[Model, ...] = (
    *language.MODELS,
    *odd.MODELS,
    *recurrent.MODELS,
    *text.MODELS,
    *senses.MODELS,
    *multimodal.MODELS,
    *plain.MODELS,
    *noise.MODELS,
    *recommend.MODELS,
    *training.MODELS,
)
