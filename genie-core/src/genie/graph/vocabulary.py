"""The words labels are written in. Phases, modalities, residencies, memory patterns and priorities are closed lists;
roles are open, and :data:`ROLES` lists those that genie's own patterns give."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PHASES: Mapping[str, str] = MappingProxyType(
    {
        "prefill": "a language model reads a prompt: many query positions, the cache is filled",
        "decode": "a language model makes the next tokens: few query positions against a longer cache",
        "forward": "a forward pass of which nothing more is known",
        "backward": "gradients",
        "optimizer": "parameters are updated from gradients",
        "vision_encode": "images or video become features",
        "text_encode": "text becomes features, all positions at once",
        "audio_encode": "sound becomes features",
        "fusion": "what several modalities gave is brought together",
        "embedding_lookup": "rows of sparse features' tables are gathered",
        "interaction": "features of a recommendation model meet",
        "dense_tower": "the dense layers of a recommendation model",
        "sampling": "the next token is chosen",
        "denoise": "a step of an iterative denoiser",
    }
)

MODALITIES: Mapping[str, str] = MappingProxyType(
    {
        "text": "token ids and what is computed from them",
        "vision": "images, video",
        "audio": "waveforms, spectrograms",
        "tabular": "numbers and categories in columns",
        "multimodal": "computed from more than one of the others",
    }
)

RESIDENCIES: Mapping[str, str] = MappingProxyType(
    {
        "weight": "a parameter or buffer, or a view of one: the same in every call",
        "kv_cache": "keys or values of attention kept from call to call",
        "recurrent_state": "state replaced in every call: of an RNN, a state-space model, an optimizer",
        "activation": "computed from inputs or weights on the way to the outputs",
        "input": "given by the program for this call",
        "ephemeral": "scratch: masks, positions, constants; cheaper to make again than to move",
    }
)

MEMORY_PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "streaming": "written once, read once",
        "reused": "read by several operators of the graph",
        "persistent": "lives from call to call",
        "ephemeral": "never leaves the operators around it",
    }
)

# The higher is served first. A priority may also be any other integer.
PRIORITIES: Mapping[str, int] = MappingProxyType({"batch": 0, "interactive": 100, "realtime": 200})

ROLES: Mapping[str, str] = MappingProxyType(
    {
        "attention": "queries meet keys and values (of its parts: attention_scores, attention_softmax)",
        "causal_attention": "the same, where a position sees none after it",
        "cross_attention": "the same, with keys of another sequence",
        "attention_query": "makes queries; attention_key and attention_value make the others",
        "attention_projection": "takes what attention gives",
        "kv_append": "puts new keys or values into a cache",
        "rotary": "turns queries and keys by their position",
        "embedding": "rows of words; position_embedding: of positions",
        "norm": "normalisation",
        "mlp_up": "into the hidden layer of an MLP; mlp_gate its gate, mlp_activation between, mlp_down out of it",
        "moe_router": "chooses experts; moe_expert: what they compute",
        "residual": "a sum of a layer's result with what it was given",
        "lm_head": "a score for each word",
        "sampling": "from scores to a choice",
        "conv": "a convolution; conv_stem the first, depthwise_conv and pointwise_conv by their shape",
        "patch_embedding": "a picture in patches becomes a sequence",
        "downsample": "fewer positions; upsample: more; pool: a summary of them",
        "squeeze_excite": "channels weighed by a summary of all positions",
        "skip": "an encoder's map meets a decoder's",
        "classifier_head": "classes; detection_head: boxes and classes; segmentation_head: classes by pixel",
        "timestep_embedding": "the time of a denoising step",
        "embedding_hot": "rows of a table of categories, small enough to keep near; embedding_cold: of a large one",
        "fusion": "modalities meet for the first time",
    }
)
