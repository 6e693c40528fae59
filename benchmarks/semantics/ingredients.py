"""How models of transformers become programs of the suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from semantics.stages import Kept, Stage
from semantics.truth import Program

Inputs: TypeAlias = dict[str, Tensor]
Settings: TypeAlias = Mapping[str, Any]

BATCH, LENGTH, VOCABULARY, NEW_TOKENS = 2, 10, 96, 5

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


def tokens(length: int = LENGTH, batch: int = BATCH, seed: int = 7) -> Tensor:
    return torch.randint(3, VOCABULARY - 1, (batch, length), generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(batch: int = BATCH, seed: int = 7) -> Inputs:
    ids = tokens(batch=batch, seed=seed)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded(seed: int = 7) -> Inputs:
    """The second row is padded on the left, as generation wants it."""
    inputs = text(seed=seed)
    inputs["input_ids"][1, :3] = 0
    inputs["attention_mask"][1, :3] = 0
    return inputs


def image(seed: int = 7, size: int = 32) -> Inputs:
    return {"pixel_values": numbers(BATCH, 3, size, size, seed=seed)}


def built(model: str, config: str, settings: Settings) -> Any:
    """A model of transformers with random weights, for inference."""
    import transformers

    made = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # zeros and ones at the start would hide what a parameter does
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return made


def generating(
    make: Callable[[], Any],
    inputs: Callable[[], Inputs] = text,
    held: Callable[[Any, Mapping[str, Any], Any], Kept] | None = None,
    encoder: Callable[[Any], nn.Module] | None = None,
    **options: Any,
) -> Callable[[Stage], Program]:
    """``generate()``, greedy. ``encoder`` finds what generate() calls once, before the decoder."""

    def build(stage: Stage) -> Program:
        model = make()
        if "grouped_mm" in model.get_experts_implementation().values():
            # Left alone, generate() takes other kernels on a CPU than on any other device.
            model.set_experts_implementation("eager")

        def run(stage: Stage) -> Sequence[Tensor]:
            if encoder is not None:
                stage.watch(encoder(model))
            stage.watch(model, lambda kwargs, output: (held or _in_cache)(model, kwargs, output))
            given = {name: stage.put(tensor) for name, tensor in inputs().items()}
            length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
            out: Tensor = model.generate(**given, **length, do_sample=False, pad_token_id=0, **options)
            return [out]

        return Program(run, (model,))

    return build


def forwards(make: Callable[[], Any], inputs: Callable[[int], Inputs], **options: Any) -> Callable[[Stage], Program]:
    """Two plain calls, with inputs of two seeds."""

    def build(stage: Stage) -> Program:
        model = make()

        @torch.no_grad()
        def run(stage: Stage) -> Sequence[Tensor]:
            results: list[Tensor] = []
            for seed in (7, 8):
                given = {name: stage.put(tensor) for name, tensor in inputs(seed).items()}
                with stage.call():
                    output = model(**given, **options)
                results += tensors_of(output)
            return results

        return Program(run, (model,))

    return build


def stepping(make: Callable[[], Any], inputs: Callable[[], Inputs]) -> Callable[[Stage], Program]:
    """A greedy loop written out. The first call is given everything, images too."""

    def build(stage: Stage) -> Program:
        model = make()

        @torch.no_grad()
        def run(stage: Stage) -> Sequence[Tensor]:
            given: dict[str, Any] = {name: stage.put(tensor) for name, tensor in inputs().items()}
            made: list[Tensor] = []
            for _ in range(NEW_TOKENS):
                with stage.call():
                    output = model(**given, use_cache=True)
                    stage.keep(**of_cache(output.past_key_values))
                made.append(output.logits[:, -1:].argmax(-1))
                given = {"input_ids": made[-1], "past_key_values": output.past_key_values}
            return made

        return Program(run, (model,))

    return build


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)


def _in_cache(_: Any, kwargs: Mapping[str, Any], output: Any) -> Kept:
    """What a cache object of transformers holds."""
    for name in ("past_key_values", "cache_params"):
        cache = output.get(name) if isinstance(output, Mapping) else None
        cache = cache if cache is not None else kwargs.get(name)
        if cache is not None:
            return of_cache(cache)
    raise ValueError("the model keeps no cache the harness knows")


def of_cache(cache: Any) -> Kept:
    kept: Kept = {"kv_cache": [], "recurrent_state": []}
    for part in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, part):
            for residency, tensors in of_cache(getattr(cache, part)).items():
                kept[residency].extend(tensors)
    for layer in getattr(cache, "layers", ()):
        for name in ("keys", "values"):
            kept["kv_cache"] += _living(getattr(layer, name, None))
        for name in ("conv_states", "recurrent_states"):
            kept["recurrent_state"] += _living(getattr(layer, name, None))
    for name in ("rnn_state", "conv_states", "ssm_states"):
        kept["recurrent_state"] += _living(getattr(cache, name, None))
    return kept


def _living(value: Any) -> list[Tensor]:
    """Tensors with elements: layers start with empty ones. Dictionaries count by number."""
    return [tensor for tensor in tensors_of(value) if tensor.numel()]
