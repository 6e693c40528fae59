"""Models of transformers in which modalities meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from semantics.ingredients import (
    BATCH,
    IMAGE,
    LENGTH,
    NEW_TOKENS,
    TEXT,
    Inputs,
    built,
    forwards,
    generating,
    image,
    numbers,
    stepping,
    text,
    tokens,
)
from semantics.truth import Call, Fusion, Model, Tower, Truth, calls

PRODUCTS = ("aten::mm", "aten::matmul", "aten::bmm", "aten::linear", "aten::addmm")
IMAGE_TOKEN = 95
PATCHES = (IMAGE["image_size"] // IMAGE["patch_size"]) ** 2
LATER = tuple(range(1, NEW_TOKENS))

# Which tower works more is a matter of sizes: both must be there.
BOTH_ENCODE = Call(("vision_encode", "text_encode"), ("vision_encode", "text_encode"))
READS_AND_SEES = Call(("vision_encode", "prefill"), ("vision_encode", "prefill"))
# By itself a later call is a language model's: the image is in its cache, as words are.
DECODES = Call("decode", alone="language_model")
# generate() calls the encoder of images before the model, whose call is given features.
SEES = Call("vision_encode", alone="vision")
READS = Call("prefill", alone="language_model")


def _two_towers(fusion: Fusion, *projections: Tower) -> Truth:
    """Encoders whose features are compared, nothing more."""
    towers = (Tower("text_model", "text"), Tower("vision_model", "vision"), *projections)
    return Truth("multimodal", calls(BOTH_ENCODE, BOTH_ENCODE), towers, fusion)


CLIP = _two_towers(Fusion(("",), PRODUCTS), Tower("text_projection", "text"), Tower("visual_projection", "vision"))
SIGLIP = _two_towers(Fusion(("",), PRODUCTS))

# Features of an image take the place of some words' embeddings. Later calls have a word, and a cache that holds both.
LLAVA = Truth(
    "multimodal",
    (READS_AND_SEES, *[DECODES] * (NEW_TOKENS - 1)),
    (
        Tower("model.vision_tower", "vision", calls=(0,)),
        Tower("model.multi_modal_projector", "vision", calls=(0,)),
        Tower("model.language_model", "multimodal", ("model.language_model.embed_tokens",), (0,)),
        Tower("model.language_model", ("multimodal", "text"), calls=LATER),
    ),
    Fusion(("model",), ("aten::masked_scatter",), calls=(0,)),
)
# By itself the call is given words and numbers of which nothing more is known.
LLAVA_APART = Truth(
    "multimodal",
    (SEES, READS, *[DECODES] * (NEW_TOKENS - 1)),
    (
        Tower("", "vision", calls=(0,)),
        Tower(
            "model.language_model",
            ("multimodal", "text"),
            ("model.language_model.embed_tokens",),
            tuple(range(1, NEW_TOKENS + 1)),
        ),
    ),
    Fusion(("model",), ("aten::masked_scatter",), calls=(1,), alone=False),
)
# Patches go before the words, through one decoder.
GIT = Truth(
    "multimodal",
    (READS_AND_SEES, *[DECODES] * (NEW_TOKENS - 1)),
    (
        Tower("git.image_encoder", "vision", calls=(0,)),
        Tower("git.visual_projection", "vision", calls=(0,)),
        Tower("git.embeddings", "text"),
        Tower("git.encoder", "multimodal", calls=(0,)),
        Tower("git.encoder", ("multimodal", "text"), calls=LATER),
    ),
    Fusion(("git",), ("aten::cat",), (BATCH, PATCHES + 1 + LENGTH, 32), calls=(0,)),
)
# A text decoder that looks at the image's features in every layer, after its own attention.
BLIP = Truth(
    "multimodal",
    (READS_AND_SEES, READS_AND_SEES),
    (
        Tower("vision_model", "vision"),
        Tower("text_decoder.bert.embeddings", "text"),
        Tower("text_decoder.bert.encoder.layer.0.attention", "text"),
        Tower("text_decoder.bert.encoder.layer.1", "multimodal"),
    ),
    Fusion(("text_decoder.bert.encoder.layer.0.crossattention",)),
)
# Words and patches in one sequence from the start: the whole encoder brings them together.
VILT = Truth(
    "multimodal",
    calls("fusion", "fusion"),
    (
        Tower("vilt.embeddings.text_embeddings", "text"),
        Tower("vilt.embeddings.patch_embeddings", "vision"),
        Tower("vilt.encoder", "multimodal"),
        Tower("classifier", "multimodal"),
    ),
    Fusion(("vilt.embeddings",), ("aten::cat",), (BATCH, LENGTH + PATCHES + 1, 32)),
)
FLAVA_PHASES = ("vision_encode", "text_encode", "fusion")
FLAVA = Truth(
    "multimodal",
    (Call(FLAVA_PHASES, FLAVA_PHASES),) * 2,
    (
        Tower("image_model", "vision"),
        Tower("text_model", "text"),
        Tower("image_to_mm_projection", "vision"),
        Tower("text_to_mm_projection", "text"),
        Tower("multimodal_model", "multimodal"),
    ),
    Fusion(("",), ("aten::cat",)),
)


def _forward(name: str, make: Callable[[], Any], truth: Truth, inputs: Callable[[int], Inputs]) -> Model:
    return Model(name, forwards(make, inputs), truth, ("transformers",), "transformers")


def _generate(
    name: str,
    make: Callable[[], Any],
    truth: Truth,
    inputs: Callable[[], Inputs],
    encoder: Callable[[Any], nn.Module] | None = None,
) -> Model:
    return Model(name, generating(make, inputs, encoder=encoder), truth, ("transformers",), "transformers")


def _both(seed: int = 7) -> Inputs:
    return {**text(seed=seed), **image(seed)}


def _with_image_tokens() -> Inputs:
    words = tokens()
    patches = torch.full((BATCH, PATCHES), IMAGE_TOKEN)
    ids = torch.cat([patches, words], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **image()}


def _for_qwen() -> Inputs:
    """One image of 4 × 4 patches, that become 2 × 2 tokens, in one row."""
    ids = torch.cat([torch.tensor([[90]]), torch.full((1, 4), IMAGE_TOKEN), torch.tensor([[91]]), tokens(batch=1)], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": numbers(16, 3 * 2 * 8 * 8),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
    }


def _clip() -> Any:
    return built("CLIPModel", "CLIPConfig", {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16})


def _siglip() -> Any:
    return built(
        "SiglipModel", "SiglipConfig", {"text_config": {**TEXT, "projection_size": 32}, "vision_config": IMAGE}
    )


def _llava() -> Any:
    return built(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {**TEXT, "num_key_value_heads": 2, "model_type": "llama"},
            "vision_config": {**IMAGE, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_id": IMAGE_TOKEN,
            "vision_feature_select_strategy": "default",
        },
    )


def _qwen_vl() -> Any:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return built(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": {**TEXT, "num_key_value_heads": 2, "rope_parameters": rope},
            "vision_config": vision,
            "image_token_id": IMAGE_TOKEN,
            "vision_start_token_id": 90,
            "vision_end_token_id": 91,
        },
    )


def _git() -> Any:
    return built("GitForCausalLM", "GitConfig", {**TEXT, "vision_config": IMAGE})


def _blip() -> Any:
    words = {**TEXT, "encoder_hidden_size": 32, "sep_token_id": 2}
    return built(
        "BlipForConditionalGeneration",
        "BlipConfig",
        {"text_config": words, "vision_config": IMAGE, "projection_dim": 16},
    )


def _vilt() -> Any:
    return built("ViltForQuestionAnswering", "ViltConfig", {**TEXT, **IMAGE, "max_image_length": -1})


def _flava() -> Any:
    return built(
        "FlavaModel",
        "FlavaConfig",
        {
            "image_config": IMAGE,
            "text_config": TEXT,
            "multimodal_config": {k: v for k, v in IMAGE.items() if k not in ("image_size", "patch_size")},
            "image_codebook_config": {"hidden_size": 8, "num_groups": 1},
            "hidden_size": 32,
            "projection_dim": 16,
        },
    )


def _paligemma() -> Any:
    return built(
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        {
            "text_config": {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "model_type": "gemma"},
            "vision_config": {**IMAGE, "model_type": "siglip_vision_model", "projection_dim": 32},
            "image_token_id": IMAGE_TOKEN,
            "projection_dim": 32,
        },
    )


MODELS = (
    _forward("clip", _clip, CLIP, _both),
    _forward("siglip", _siglip, SIGLIP, lambda seed: {"input_ids": tokens(seed=seed), **image(seed)}),
    Model("llava", stepping(_llava, _with_image_tokens), LLAVA, ("transformers",), "transformers"),
    _generate("llava-generate", _llava, LLAVA_APART, _with_image_tokens, lambda model: model.model.vision_tower),
    _generate("paligemma", _paligemma, LLAVA_APART, _with_image_tokens, lambda model: model.model.vision_tower),
    _generate("qwen2-vl", _qwen_vl, LLAVA_APART, _for_qwen, lambda model: model.model.visual),
    _generate("git", _git, GIT, _both),
    _forward("blip", _blip, BLIP, _both),
    _forward("vilt", _vilt, VILT, _both),
    _forward("flava", _flava, FLAVA, _both),
)
