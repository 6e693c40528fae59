"""Architectures of transformers, small enough to run everywhere; their weights are random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
import transformers
from torch import Tensor, nn

Inputs = dict[str, Tensor]

BATCH, LENGTH, VOCABULARY = 2, 10, 96

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED: dict[str, Any] = {**TEXT, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8, "attention_dropout": 0.1}
EXPERTS: dict[str, Any] = {**GROUPED, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "num_labels": 5,
}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _tokens(length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, length), generator=_generator())


def text() -> Inputs:
    """The second row is padded on the left, as generation wants it."""
    ids, mask = _tokens(), torch.ones(BATCH, LENGTH, dtype=torch.long)
    ids[1, :3], mask[1, :3] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def image(size: int = 32) -> Inputs:
    return {"pixel_values": torch.randn(BATCH, 3, size, size, generator=_generator())}


def spectrogram() -> Inputs:
    return {"input_features": torch.randn(BATCH, 16, 40, generator=_generator())}


def wave() -> Inputs:
    return {"input_values": torch.randn(BATCH, 2000, generator=_generator())}


def text_and_image() -> Inputs:
    return {**text(), **image()}


def next_tokens(inputs: Inputs) -> Inputs:
    return {"labels": inputs["input_ids"].clone()}


def answers(inputs: Inputs) -> Inputs:
    return {"labels": _tokens(6)}


def one_class(inputs: Inputs) -> Inputs:
    return {"labels": torch.tensor([1, 3])}


def class_per_pixel(inputs: Inputs) -> Inputs:
    return {"labels": torch.randint(0, 5, (BATCH, 64, 64), generator=_generator())}


def contrastive(inputs: Inputs) -> Inputs:
    return {"return_loss": torch.tensor(True)}


@attrs.frozen
class Architecture:
    name: str
    model: str  # class of transformers
    config: str  # class of transformers
    settings: Mapping[str, Any]
    inputs: Callable[[], Inputs] = text
    labels: Callable[[Inputs], Inputs] = next_tokens
    generates: bool = False

    def build(self) -> nn.Module:
        """The same model each time."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.settings)
        model: nn.Module = getattr(transformers, self.model)(config)
        generator = _generator()
        with torch.no_grad():
            for parameter in model.parameters():  # zeros and ones at the start would hide what a parameter does
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        return model.eval()

    def batch(self) -> Inputs:
        """Inputs that have a loss. A decoder's inputs come from its labels."""
        inputs = self.inputs()
        return {**inputs, **self.labels(inputs)}


def _decoder(name: str, family: str, settings: Mapping[str, Any]) -> Architecture:
    return Architecture(name, f"{family}ForCausalLM", f"{family}Config", settings, generates=True)


def _masked(name: str, family: str, settings: Mapping[str, Any]) -> Architecture:
    return Architecture(name, f"{family}ForMaskedLM", f"{family}Config", {**TEXT, **SPECIAL, **settings})


def _vision(name: str, family: str, settings: Mapping[str, Any]) -> Architecture:
    return Architecture(name, f"{family}ForImageClassification", f"{family}Config", settings, image, one_class)


GPT: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **SPECIAL}

DECODERS = (
    Architecture("gpt2", "GPT2LMHeadModel", "GPT2Config", GPT, generates=True),
    _decoder("gptj", "GPTJ", {**GPT, "rotary_dim": 4}),
    _decoder("gpt-neox", "GPTNeoX", {**TEXT, **SPECIAL, "attention_dropout": 0.1, "hidden_dropout": 0.1}),
    _decoder("gpt-bigcode", "GPTBigCode", GPT),
    _decoder("llama", "Llama", GROUPED),
    _decoder("mistral", "Mistral", {**GROUPED, "sliding_window": 6}),
    _decoder("qwen2", "Qwen2", GROUPED),
    _decoder("qwen3", "Qwen3", GROUPED),
    _decoder("gemma2", "Gemma2", {**GROUPED, "sliding_window": 6, "query_pre_attn_scalar": 8}),
    _decoder("phi", "Phi", {**GROUPED, "resid_pdrop": 0.1}),
    _decoder(
        "opt", "OPT", {**TEXT, **SPECIAL, "ffn_dim": 48, "word_embed_proj_dim": 32, "activation_function": "gelu"}
    ),
    _decoder("bloom", "Bloom", {**TEXT, **SPECIAL, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.1}),
    _decoder(
        "falcon",
        "Falcon",
        {**TEXT, **SPECIAL, "hidden_dropout": 0.1, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    _decoder("olmo2", "Olmo2", GROUPED),
    _decoder("mixtral", "Mixtral", {**EXPERTS, "num_local_experts": 4}),
    _decoder("qwen2-moe", "Qwen2Moe", {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24}),
    _decoder(
        "mamba",
        "Mamba",
        {**SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    ),
    _decoder(
        "mamba2",
        "Mamba2",
        {
            **SPECIAL,
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 4,
        },
    ),
    _decoder(
        "recurrent-gemma",
        "RecurrentGemma",
        {**GROUPED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    ),
)

ENCODERS = (
    _masked("bert", "Bert", {}),
    _masked("roberta", "Roberta", {"type_vocab_size": 1}),
    _masked("distilbert", "DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    _masked(
        "deberta-v2",
        "DebertaV2",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "conv_kernel_size": 3},
    ),
    _masked("electra", "Electra", {"embedding_size": 16}),
    _masked("albert", "Albert", {"embedding_size": 16, "hidden_dropout_prob": 0.1}),
    _masked(
        "modernbert", "ModernBert", {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2, "mlp_dropout": 0.1}
    ),
)

ENCODER_DECODERS = (
    Architecture(
        "t5",
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "feed_forward_proj": "gated-gelu",
        },
        labels=answers,
        generates=True,
    ),
    Architecture("bart", "BartForConditionalGeneration", "BartConfig", SEQ2SEQ, labels=answers, generates=True),
    Architecture(
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32, "dropout": 0.1},
        spectrogram,
        answers,
        generates=True,
    ),
)

OTHERS = (
    _vision("vit", "ViT", VISION),
    _vision("dinov2", "Dinov2", {**VISION, "drop_path_rate": 0.1}),
    _vision(
        "convnext",
        "ConvNext",
        {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "num_labels": 5, "drop_path_rate": 0.1},
    ),
    _vision(
        "swin",
        "Swin",
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
        | {"num_labels": 5, "hidden_dropout_prob": 0.1},
    ),
    _vision(
        "resnet",
        "ResNet",
        {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 1, 1], "layer_type": "basic", "num_labels": 5},
    ),
    Architecture(
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
        | {"decoder_hidden_size": 16, "num_labels": 5},
        lambda: image(64),
        class_per_pixel,
    ),
    Architecture(
        "wav2vec2",
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        {
            **TEXT,
            "conv_dim": [16, 16],
            "conv_stride": [5, 4],
            "conv_kernel": [10, 4],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 4,
            "classifier_proj_size": 16,
            "mask_time_prob": 0.0,
            "layerdrop": 0.0,
            "num_labels": 5,
        },
        wave,
        one_class,
    ),
    Architecture(
        "clip",
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**TEXT, **SPECIAL, "attention_dropout": 0.1},
            "vision_config": {**VISION, "attention_dropout": 0.1},
            "projection_dim": 16,
        },
        text_and_image,
        contrastive,
    ),
    Architecture(
        "llava",
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {**GROUPED, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_id": 95,
            "vision_feature_select_strategy": "default",
        },
        lambda: _with_image_tokens(text_and_image()),
        generates=True,
    ),
)


def _with_image_tokens(inputs: Inputs) -> Inputs:
    """16 patches of an image, then words."""
    words = inputs["input_ids"].clamp(max=94)
    patches = torch.full((BATCH, 16), 95)
    return {
        "input_ids": torch.cat([patches, words], dim=1),
        "attention_mask": torch.cat([torch.ones_like(patches), inputs["attention_mask"]], dim=1),
        "pixel_values": inputs["pixel_values"],
    }


ALL = (*DECODERS, *ENCODERS, *ENCODER_DECODERS, *OTHERS)
GENERATING = tuple(architecture for architecture in ALL if architecture.generates)


def named(name: str) -> Architecture:
    return next(architecture for architecture in ALL if architecture.name == name)
