"""Models of transformers that see or hear. Features and what heads make of them – classes, boxes, maps – are one
vision_encode or audio_encode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semantics.ingredients import BATCH, IMAGE, TEXT, Inputs, Settings, built, forwards, image, numbers
from semantics.truth import Model, Tower, Truth, calls

SEES = Truth("vision", calls("vision_encode", "vision_encode"), (Tower("", "vision"),))
HEARS = Truth("audio", calls("audio_encode", "audio_encode"), (Tower("", "audio"),))

WAVE: dict[str, Any] = {
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
}
RESNET: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 2, 1],
    "layer_type": "basic",
    "num_labels": 5,
}


def _model(
    name: str, model: str, config: str, settings: Settings, inputs: Callable[[int], Inputs] = image, truth: Truth = SEES
) -> Model:
    def make() -> Any:
        return built(model, config, settings)

    return Model(name, forwards(make, inputs), truth, ("transformers",), "transformers")


def _classifier(name: str, family: str, settings: Settings) -> Model:
    return _model(name, f"{family}ForImageClassification", f"{family}Config", settings)


def _larger(seed: int) -> Inputs:
    return image(seed, 64)


def _detr() -> dict[str, Any]:
    from transformers import ResNetConfig

    return {
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": ResNetConfig(**RESNET, out_features=["stage4"]),
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_queries": 6,
        "num_labels": 5,
    }


def _detector(seed: int) -> Inputs:
    return image(seed, 64)


def _make_detr() -> Any:
    return built("DetrForObjectDetection", "DetrConfig", _detr())


def _wave(seed: int) -> Inputs:
    return {"input_values": numbers(BATCH, 2000, seed=seed)}


def _spectrogram(seed: int) -> Inputs:
    return {"input_values": numbers(BATCH, 64, 16, seed=seed)}


def _mel(seed: int) -> Inputs:
    return {"input_features": numbers(BATCH, 16, 40, seed=seed)}


MODELS = (
    _classifier("vit", "ViT", IMAGE),
    _classifier("deit", "DeiT", IMAGE),
    _classifier("beit", "Beit", {**IMAGE, "use_relative_position_bias": True}),
    _classifier("dinov2", "Dinov2", IMAGE),
    _classifier(
        "swin",
        "Swin",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "num_labels": 5,
        },
    ),
    _classifier("convnext", "ConvNext", {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "num_labels": 5}),
    _classifier("resnet", "ResNet", RESNET),
    _classifier("mobilenet-v2", "MobileNetV2", {"image_size": 32, "depth_multiplier": 0.25, "num_labels": 5}),
    _classifier(
        "regnet",
        "RegNet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4, "num_labels": 5},
    ),
    _classifier("poolformer", "PoolFormer", {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_labels": 5}),
    _model(
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
            "num_labels": 5,
        },
        _larger,
    ),
    _model(
        "yolos", "YolosForObjectDetection", "YolosConfig", {**IMAGE, "image_size": [32, 32], "num_detection_tokens": 4}
    ),
    Model("detr", forwards(_make_detr, _detector), SEES, ("transformers",), "transformers"),
    _model(
        "videomae",
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        {**IMAGE, "num_frames": 4, "tubelet_size": 2},
        lambda seed: {"pixel_values": numbers(BATCH, 4, 3, 32, 32, seed=seed)},
    ),
    _model("wav2vec2", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", WAVE, _wave, HEARS),
    _model("wav2vec2-ctc", "Wav2Vec2ForCTC", "Wav2Vec2Config", {**WAVE, "vocab_size": 32}, _wave, HEARS),
    _model("hubert", "HubertModel", "HubertConfig", WAVE, _wave, HEARS),
    _model(
        "audio-spectrogram",
        "ASTForAudioClassification",
        "ASTConfig",
        {**IMAGE, "patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 64, "num_mel_bins": 16},
        _spectrogram,
        HEARS,
    ),
    _model(
        "whisper-classifier",
        "WhisperForAudioClassification",
        "WhisperConfig",
        {
            "vocab_size": 96,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "num_mel_bins": 16,
            "max_source_positions": 20,
            "pad_token_id": 0,
            "classifier_proj_size": 16,
            "num_labels": 5,
        },
        _mel,
        HEARS,
    ),
)
