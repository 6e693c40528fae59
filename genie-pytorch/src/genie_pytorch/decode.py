"""Hugging Face's sampling loop, handed to the node: the steps are those of its ``generate``, operator by operator."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch

from genie import telemetry
from genie.api import settings
from genie_pytorch.device import NAME
from genie_pytorch.lift import on_device
from genie_pytorch.masks import KnownMasks
from genie_pytorch.repeat import UNSEEN, Repeated, State

Tensor = torch.Tensor

log = telemetry.get_logger("genie.pytorch")

STEPWISE = ("greedy_search", "sample")  # modes that choose token by token
_CRITERIA = frozenset(("MaxLengthCriteria", "EosTokenCriteria", "StopStringCriteria"))
# Those of their module that keep something between calls, or ask a function of the host.
_PROCESSORS_WITH_STATE = frozenset(
    (
        "PrefixConstrainedLogitsProcessor",
        "SynthIDTextWatermarkLogitsProcessor",
        "UnbatchedClassifierFreeGuidanceLogitsProcessor",
        "WatermarkLogitsProcessor",
        "WhisperTimeStampLogitsProcessor",
    )
)
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_NEEDED = ("_prefill", "_optimize_model_for_decode", "_valid_auto_compile_criteria", "prepare_inputs_for_generation")
_MOST = (1 << 31) - 1


def decode_loop(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    **model_kwargs: Any,
) -> Any:
    """For ``model.generate(..., custom_generate=genie_pytorch.decode_loop)``: the loop over tokens runs on the node.

    Takes and returns what ``GenerationMixin._sample`` does. Transformers gives its streamer to no custom loop: bind it
    (``functools.partial(decode_loop, streamer=streamer)``). What the node cannot loop over runs as without this.
    """
    decoding = Decoding(
        model, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, model_kwargs
    )
    return decoding.run()


class Decoding:
    """One call of ``generate``. :meth:`run` it, or iterate over the tokens of each step, on the host."""

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool,
        streamer: Any,
        model_kwargs: dict[str, Any],
        *,
        offload: bool | None = None,
        stream: bool = False,
    ) -> None:
        self._model = model
        self._given = self._home = input_ids
        self._processors = logits_processor
        self._criteria = stopping_criteria
        self._config = generation_config
        self._synced = synced_gpus
        self._streamer = streamer
        self._kwargs = model_kwargs
        self._offload = settings().decode_loop if offload is None else offload
        self._stream = stream
        self._state: State = {}
        self._tokens: list[Tensor] = []

    def run(self) -> Any:
        """What ``_sample`` would return."""
        reason = self._why_not()
        if reason:
            log.info("generate() as it is", reason=reason)
            return self._as_it_is(self._streamer)
        for token in self._steps():
            if self._streamer is not None:
                self._streamer.put(token)
        if self._streamer is not None:
            self._streamer.end()
        return self._result()

    def __iter__(self) -> Iterator[Tensor]:
        reason = self._why_not()
        if not reason:
            yield from self._steps()
            return
        log.info("generate() as it is: tokens come when it has ended", reason=reason)
        collected = _Collected()
        self._as_it_is(collected)
        yield from collected.tokens

    # --- what can be done

    def _why_not(self) -> str:
        """Why the steps cannot be taken here, one by one or by the node; nothing if they can."""
        model, config = self._model, self._config
        if config.get_generation_mode() not in STEPWISE:
            return f"it is {config.get_generation_mode().value}"
        if model.device.type != NAME:
            return f"the model is on {model.device}"
        if not all(hasattr(model, name) for name in _NEEDED):
            return "this version of Transformers has another loop"
        if self._synced:
            return "it is synchronized with other processes"
        if config.return_dict_in_generate and any(getattr(config, name, None) for name in _OUTPUTS):
            return "scores, logits, attentions or hidden states of each step are wanted"
        if model._valid_auto_compile_criteria(self._kwargs, config):
            return "the model is compiled"
        for criterion in self._criteria:
            if not _is_theirs(criterion, "transformers.generation.stopping_criteria", _CRITERIA):
                return f"{type(criterion).__name__} decides on the host when to stop"
        for processor in self._processors:
            name = type(processor).__name__
            if not _is_theirs(processor, "transformers.generation.logits_process") or name in _PROCESSORS_WITH_STATE:
                return f"{name} may keep something between steps"
        for module in model.modules():
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                if not getattr(hook, "__module__", "").startswith("transformers."):
                    return f"{type(module).__name__} has a hook, {getattr(hook, '__qualname__', hook)}"
        return ""

    def _as_it_is(self, streamer: Any) -> Any:
        mapping = import_module("transformers.generation.utils").GENERATION_MODES_MAPPING
        method = getattr(type(self._model), mapping[self._config.get_generation_mode()])
        here = self._given.device
        if self._model.device.type == NAME:
            self._to_device(self._model.device)
        result = method(
            self._model,
            self._given,
            logits_processor=self._processors,
            stopping_criteria=self._criteria,
            generation_config=self._config,
            synced_gpus=self._synced,
            **({} if streamer is None else {"streamer": streamer}),
            **self._kwargs,
        )
        return result.to(here) if isinstance(result, Tensor) else result

    def _to_device(self, device: torch.device) -> None:
        self._given = self._given.to(device)
        self._kwargs = {name: _moved(value, device) for name, value in self._kwargs.items()}
        self._processors = type(self._processors)(_on(processor, device) for processor in self._processors)

    # --- the steps

    def _steps(self) -> Iterator[Tensor]:
        model, config, device = self._model, self._config, self._model.device
        masks = self._known_masks()
        self._to_device(device)
        ids, kwargs = self._given, self._kwargs
        limits = [each.max_length for each in self._criteria if type(each).__name__ == "MaxLengthCriteria"]
        self._criteria = type(self._criteria)(
            each for each in self._criteria if type(each).__name__ != "MaxLengthCriteria"
        )
        self._masks = masks
        self._ends = any(hasattr(each, "eos_token_id") for each in self._criteria)
        self._pad = config._pad_token_tensor
        self._pad = self._pad.to(device) if self._pad is not None else None
        most = max(1, min(limits, default=_MOST) - ids.shape[1])
        with torch.no_grad():
            unfinished = torch.ones(ids.shape[0], dtype=torch.long, device=device)
            state = self._state = {"ids": ids, "kwargs": kwargs, "unfinished": unfinished}
            outputs = model._prefill(ids, config, kwargs, is_first_iteration=not config.is_assistant)
            cache = _cache_of(kwargs) or outputs.get("past_key_values")
            seen = config.return_dict_in_generate or getattr(cache, "_is_user_defined", False)
            self._choose(state, outputs)
            del outputs, cache, ids, kwargs, unfinished
        # Steps after the end would be in a cache that others see; where nothing ends it early, there are none.
        shown = self._stream or self._streamer is not None
        ahead = 0 if seen and self._criteria else 1 if shown else UNSEEN
        self.repeated = Repeated(self._step, state, most - 1, device.index or 0, ahead=ahead, offload=self._offload)
        with model._optimize_model_for_decode():
            for token in self.repeated:
                self._tokens.append(token)
                yield token

    @torch.no_grad()
    def _step(self, state: State) -> None:
        kwargs = state["kwargs"]
        with self._masks.told():
            inputs = self._model.prepare_inputs_for_generation(
                state["ids"], next_sequence_length=1 if kwargs["use_cache"] else None, **kwargs
            )
            self._choose(state, self._model(**inputs, return_dict=True))

    def _known_masks(self) -> KnownMasks:
        kwargs, model = self._kwargs, self._model
        if model._update_model_kwargs_for_generation.__module__ != "transformers.generation.utils":
            return KnownMasks(None, None)  # it has ways of its own
        if model.config.is_encoder_decoder:
            return KnownMasks(kwargs.get("decoder_attention_mask"), kwargs.get("attention_mask"))
        return KnownMasks(kwargs.get("attention_mask"), None)

    def _choose(self, state: State, outputs: Any) -> None:
        """The next token from a forward pass, and what follows from it; as in ``GenerationMixin._sample``."""
        ids, unfinished = state["ids"], state["unfinished"]
        state["kwargs"] = self._model._update_model_kwargs_for_generation(
            outputs, state["kwargs"], is_encoder_decoder=self._model.config.is_encoder_decoder
        )
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=ids.device)
        scores = self._processors(ids, logits)
        if self._config.do_sample:
            token = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            token = torch.argmax(scores, dim=-1)
        if self._ends:
            token = token * unfinished + self._pad * (1 - unfinished)
        ids = torch.cat([ids, token[:, None]], dim=-1)
        unfinished = unfinished & ~self._criteria(ids, None)
        state |= {"ids": ids, "unfinished": unfinished, "token": token, "done": unfinished.max() == 0}

    def _result(self) -> Any:
        length = self._home.shape[1] + len(self._tokens)
        if on_device(self._home):
            ids = self._state["ids"]
            ids = ids if ids.shape[1] == length else ids[:, :length]  # steps after the end were run ahead
        else:
            ids = torch.cat([self._home, torch.stack(self._tokens, dim=1)], dim=1)
        if not self._config.return_dict_in_generate:
            return ids
        theirs = import_module("transformers.generation.utils")
        kind = "GenerateEncoderDecoderOutput" if self._model.config.is_encoder_decoder else "GenerateDecoderOnlyOutput"
        return getattr(theirs, kind)(sequences=ids, past_key_values=_cache_of(self._state["kwargs"]))


class _Collected:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.tokens.append(value)

    def end(self) -> None: ...


def _is_theirs(value: object, module: str, names: frozenset[str] | None = None) -> bool:
    kind = type(value)
    return kind.__module__ == module and (names is None or kind.__name__ in names)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if type(value) is Tensor and value.device.type == "cpu" else value


def _on(processor: Any, device: torch.device) -> Any:
    """The processor with its tensors on the device."""
    tensors = {name: each.to(device) for name, each in vars(processor).items() if isinstance(each, Tensor)}
    if not tensors:
        return processor
    moved = copy.copy(processor)
    vars(moved).update(tensors)
    return moved


def _cache_of(kwargs: dict[str, Any]) -> Any:
    names = import_module("transformers.generation.utils").ALL_CACHE_NAMES
    return next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
