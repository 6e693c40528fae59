"""``genie.generate`` for PyTorch: models of Hugging Face's, and callables that give logits."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from genie.errors import ConfigError
from genie_pytorch import twin
from genie_pytorch.capture import Capture, suspended
from genie_pytorch.decode import STEPWISE, Decoding
from genie_pytorch.device import NAME
from genie_pytorch.lift import Lifts, on_device
from genie_pytorch.repeat import UNSEEN, Repeated, State
from genie_pytorch.sampling import Sampling, check

Tensor = torch.Tensor
Options = dict[str, Any]

# Modes of theirs that are no loop over single tokens; they run on the device as they are.
_OTHER_MODES = ("assistant_model", "prompt_lookup_num_tokens", "custom_generate")


def generate(program: Any, ids: Any, index: int, offload: bool, stream: bool, options: Options) -> Any:
    """See :func:`genie.generate`."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
        shape = f"a {type(ids).__name__}" if not isinstance(ids, Tensor) else f"{tuple(ids.shape)}, {ids.dtype}"
        raise ConfigError(f"ids are integers of shape (batch, length), not {shape}")
    if ids.numel() == 0:
        raise ConfigError("ids are empty: a prompt of at least one token per row is needed")
    check(options)
    device = torch.device(NAME, index)
    if hasattr(program, "prepare_inputs_for_generation") and isinstance(program, torch.nn.Module):
        return _of_theirs(_moved(program, device), ids, offload, stream, options)
    sampling = Sampling.of({name: value for name, value in options.items() if name != "streamer"})
    tokens = _of_callable(program, ids, device, offload, stream, sampling, options.get("streamer"))
    if stream:
        return tokens
    made = list(tokens)
    return torch.cat([ids, torch.stack(made, dim=1).to(ids.device, ids.dtype)], dim=1)


def _moved(module: torch.nn.Module, device: torch.device) -> Any:
    first = next(iter(module.parameters()), None)
    return module if first is None or on_device(first) else twin.on(module, device)


# --- Hugging Face ------------------------------------------------------------------------------


def _of_theirs(model: Any, ids: Tensor, offload: bool, stream: bool, options: Options) -> Any:
    other = any(options.get(name) is not None for name in _OTHER_MODES)
    if stream and other:
        way = next(name for name in _OTHER_MODES if options.get(name) is not None)
        raise _unstreamable(f"with {way}=")
    # What it prepares it looks at: on the host that costs no round trip. An encoder wants its input on the device,
    # and so do ways that are not ours.
    where = model.device if other or model.config.is_encoder_decoder else torch.device("cpu")
    given = {name: each.to(where) if type(each) is Tensor else each for name, each in options.items()}
    if not other:
        given["custom_generate"] = _custom(offload, stream, given.get("streamer"))
    result = model.generate(ids.to(where), **given)
    if stream:
        return iter(result)
    if isinstance(result, Tensor):
        return result.to(ids.device)
    result.sequences = result.sequences.to(ids.device)
    return result


def _custom(offload: bool, stream: bool, streamer: Any) -> Callable[..., Any]:
    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        if stream and (mode := generation_config.get_generation_mode().value) not in STEPWISE:
            raise _unstreamable(f"in {mode.replace('_', ' ')}")
        decoding = Decoding(
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus,
            streamer,
            model_kwargs,
            offload=offload,
            stream=stream,
        )
        return decoding if stream else decoding.run()

    return decode


def _unstreamable(how: str) -> ConfigError:
    return ConfigError(
        f"generate(stream=True) gives tokens as they are chosen; {how} they can be had at the end only",
        hint="leave out stream=True, or choose token by token: greedily (num_beams=1) or with do_sample=True",
    )


# --- callables -----------------------------------------------------------------------------------

_lifts: weakref.WeakKeyDictionary[Any, Lifts] = weakref.WeakKeyDictionary()


def _of_callable(
    program: Callable[[Tensor], Any],
    ids: Tensor,
    device: torch.device,
    offload: bool,
    stream: bool,
    sampling: Sampling,
    streamer: Any,
) -> Iterator[Tensor]:
    """The tokens of each step, (batch,), on the host."""
    # What was written for the host makes tensors there; a module on the device knows where it is.
    there = isinstance(program, torch.nn.Module) and _moved(program, device) is program
    capture = contextlib.nullcontext() if there else Capture(device, _lifts_of(program))
    if isinstance(program, torch.nn.Module):
        program = _moved(program, device)
    ends = torch.tensor(sampling.ends, dtype=ids.dtype, device=device) if sampling.ends else None

    @torch.no_grad()
    def step(state: State) -> None:
        logits = program(state["ids"])
        logits = getattr(logits, "logits", logits)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise ConfigError("the program gives no logits of shape (batch, length, vocabulary)")
        token = sampling.choose(state["ids"], logits[:, -1]).to(state["ids"].dtype)
        unfinished = state["unfinished"]
        if ends is not None:
            token = token * unfinished + sampling.pad * (1 - unfinished)
            unfinished = unfinished & ~torch.isin(token, ends)
        ids = torch.cat([state["ids"], token[:, None]], dim=-1)
        state |= {"ids": ids, "unfinished": unfinished, "token": token, "done": unfinished.max() == 0}

    if streamer is not None:
        streamer.put(ids.cpu())
    with capture:
        state: State = {"ids": ids.to(device), "unfinished": torch.ones(ids.shape[0], dtype=ids.dtype, device=device)}
        step(state)
        ahead = 1 if stream or streamer is not None else UNSEEN
        repeated = Repeated(step, state, sampling.max_new_tokens - 1, device.index or 0, ahead=ahead, offload=offload)
        for token in repeated:
            with suspended():
                if streamer is not None:
                    streamer.put(token)
                yield token
    if streamer is not None:
        streamer.end()


def _lifts_of(program: object) -> Lifts:
    try:
        return _lifts.setdefault(program, Lifts())
    except TypeError:  # it cannot be referred to weakly
        return Lifts()


def forget() -> None:
    """The sessions end: nothing that was on them is there any more."""
    _lifts.clear()
    twin.forget()
