"""Models of transformers from text to text or to features, that are no decoders alone.

An encoder reads all positions at once (text_encode), heads for classes or masked words included. ``generate()`` calls
the encoder of an encoder-decoder once. Its decoder's first call fills the caches, its own and that of the encoder's
states (prefill, though the prompt is one token); the others are decode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semantics.ingredients import (
    NEW_TOKENS,
    TEXT,
    VOCABULARY,
    Inputs,
    Settings,
    built,
    forwards,
    generating,
    numbers,
    padded,
    text,
    tokens,
)
from semantics.truth import Call, Model, Tower, Truth, calls, generation

ENCODER = Truth("text_encoder", calls("text_encode", "text_encode"), (Tower("", "text"),))
TRANSLATION = Truth(
    "encoder_decoder",
    calls(Call("text_encode", alone="text_encoder"), *generation(NEW_TOKENS)),
    (Tower("", "text"),),
)
# Sound becomes text, by an encoder and a decoder: the first two words of the definitions that fit, both do. What the
# decoder computes comes from the tokens and, by cross-attention, from the sound.
SPEECH = Truth(
    ("encoder_decoder", "audio"),
    calls("audio_encode", *generation(NEW_TOKENS)),
    (
        Tower("", "audio", calls=(0,)),
        Tower("", ("text", "multimodal"), calls=tuple(range(1, NEW_TOKENS + 1))),
    ),
    # The definitions call any cross-attention over another modality fusion, and the whole a decoder: either may win.
    fusion_open=True,
)

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
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}


def _encoder(name: str, model: str, settings: Settings) -> Model:
    def make() -> Any:
        family = model.partition("For")[0].removesuffix("Model")
        return built(model, f"{family}Config", {**TEXT, **settings})

    def inputs(seed: int) -> Inputs:
        return text(seed=seed)

    return Model(name, forwards(make, inputs), ENCODER, ("transformers",), "transformers")


def _seq2seq(
    name: str,
    model: str,
    config: str,
    settings: Settings,
    inputs: Callable[[], Inputs] = text,
    truth: Truth = TRANSLATION,
    **options: Any,
) -> Model:
    def make() -> Any:
        return built(model, config, settings)

    def encoder(model: Any) -> Any:
        return model.get_encoder()

    return Model(name, generating(make, inputs, encoder=encoder, **options), truth, ("transformers",), "transformers")


def _spectrogram() -> Inputs:
    return {"input_features": numbers(2, 16, 40)}


def _alone() -> Inputs:
    return {"input_ids": tokens(batch=1)}


MODELS = (
    _encoder("bert-classifier", "BertForSequenceClassification", {"num_labels": 3}),
    _encoder("distilbert-masked", "DistilBertForMaskedLM", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    _encoder("albert", "AlbertModel", {"embedding_size": 16}),
    _encoder(
        "deberta-v2",
        "DebertaV2ForTokenClassification",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    ),
    _encoder("electra", "ElectraForQuestionAnswering", {"embedding_size": 16}),
    _encoder("mpnet", "MPNetModel", {}),
    _encoder("modernbert", "ModernBertForMaskedLM", {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2}),
    _seq2seq("t5", "T5ForConditionalGeneration", "T5Config", T5),
    _seq2seq(
        "t5-gated-static-cache",
        "T5ForConditionalGeneration",
        "T5Config",
        {**T5, "feed_forward_proj": "gated-gelu"},
        cache_implementation="static",
    ),
    _seq2seq("bart", "BartForConditionalGeneration", "BartConfig", SEQ2SEQ, padded),
    _seq2seq("marian", "MarianMTModel", "MarianConfig", SEQ2SEQ, _alone),
    _seq2seq(
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32},
        _spectrogram,
        SPEECH,
    ),
)
