"""Language models of transformers that generate.

A prompt is read in one call (prefill: many positions, an empty cache), then each call gets the token of the last
(decode: one position against a longer cache). The last token chosen is never read, so five tokens are five calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from semantics.ingredients import (
    NEW_TOKENS,
    TEXT,
    Inputs,
    Settings,
    built,
    generating,
    of_cache,
    padded,
    tensors_of,
    text,
)
from semantics.stages import Kept
from semantics.truth import Model, Tower, Truth, generation

TRUTH = Truth("language_model", generation(NEW_TOKENS), (Tower("", "text"),))

GPT: dict[str, Any] = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS: dict[str, Any] = {**GROUPED, "moe_intermediate_size": 24, "num_experts_per_tok": 2, "num_experts": 4}
STATES: dict[str, Any] = {**TEXT, "state_size": 8}


def _model(
    name: str,
    family: str,
    settings: Settings,
    inputs: Callable[[], Inputs] = text,
    head: str = "ForCausalLM",
    config: str = "",
    held: Callable[[Any, Mapping[str, Any], Any], Kept] | None = None,
    **options: Any,
) -> Model:
    def make() -> Any:
        return built(f"{family}{head}", config or f"{family}Config", settings)

    return Model(name, generating(make, inputs, held, **options), TRUTH, ("transformers",), "transformers")


def _alone() -> Inputs:
    return text(batch=1)


def _of_rwkv(_: Any, kwargs: Mapping[str, Any], output: Any) -> Kept:
    return {"recurrent_state": list(output.state)}


def _of_recurrent_gemma(model: Any, kwargs: Mapping[str, Any], output: Any) -> Kept:
    """Its recurrent layers keep their state themselves; its attention layers have a cache of keys and values."""
    state = [
        tensor
        for module in model.modules()
        for name in ("conv1d_state", "recurrent_states")
        for tensor in tensors_of(getattr(module, name, None))
    ]
    return {"recurrent_state": state, "kv_cache": of_cache(kwargs["past_key_values"])["kv_cache"]}


MODELS = (
    _model("gpt2", "GPT2", GPT, head="LMHeadModel"),
    _model("gpt2-static-cache", "GPT2", GPT, head="LMHeadModel", cache_implementation="static"),
    _model("llama", "Llama", GROUPED | {"num_key_value_heads": 4}, _alone),
    _model("llama-static-cache", "Llama", GROUPED, padded, cache_implementation="static"),
    _model("qwen2-padded", "Qwen2", GROUPED, padded),
    _model("qwen3", "Qwen3", GROUPED, _alone),
    _model("falcon-multi-query", "Falcon", {**TEXT, "multi_query": True, "new_decoder_architecture": False}, _alone),
    _model("gpt-bigcode", "GPTBigCode", GPT, padded),
    # The window is shorter than the prompt: the cache is cut at each step, and does not grow.
    _model("mistral-sliding", "Mistral", {**GROUPED, "sliding_window": 6}, _alone),
    _model("gemma2", "Gemma2", {**GROUPED, "sliding_window": 6, "query_pre_attn_scalar": 8}, _alone),
    _model(
        "gemma3", "Gemma3", {**GROUPED, "sliding_window": 12, "query_pre_attn_scalar": 8}, config="Gemma3TextConfig"
    ),
    _model(
        "gemma2-static-cache",
        "Gemma2",
        {**GROUPED, "sliding_window": 12, "query_pre_attn_scalar": 8},
        _alone,
        cache_implementation="static",
    ),
    _model("gpt-neox", "GPTNeoX", TEXT, _alone),
    _model("bloom", "Bloom", {**TEXT, "n_layer": 2, "n_head": 4}, padded),
    _model("opt", "OPT", {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    _model("phi", "Phi", GROUPED),
    _model("stablelm", "StableLm", GROUPED, _alone),
    _model(
        "deepseek-v3",
        "DeepseekV3",
        {
            **TEXT,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
        },
    ),
    _model("mixtral", "Mixtral", {**EXPERTS, "num_local_experts": 4}, _alone),
    _model("olmoe", "Olmoe", {**EXPERTS, "num_experts": 4}),
    _model("qwen3-moe", "Qwen3Moe", EXPERTS, _alone),
    _model("mamba", "Mamba", STATES),
    _model("mamba2", "Mamba2", {**STATES, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4}, _alone),
    _model(
        "rwkv",
        "Rwkv",
        {"vocab_size": 96, "context_length": 64, "hidden_size": 32, "num_hidden_layers": 2},
        _alone,
        held=_of_rwkv,
    ),
    _model(
        "xlstm",
        "xLSTM",
        {
            "vocab_size": 96,
            "hidden_size": 64,
            "num_blocks": 2,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "chunk_size": 8,
            "qk_dim_factor": 1.0,
            "v_dim_factor": 1.0,
            "autocast_kernel_dtype": "float32",
        },
        _alone,
    ),
    _model(
        "recurrent-gemma",
        "RecurrentGemma",
        {**GROUPED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
        held=_of_recurrent_gemma,
    ),
    _model("lfm2", "Lfm2", {**GROUPED, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}),
    _model(
        "jamba",
        "Jamba",
        {
            **GROUPED,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
)
