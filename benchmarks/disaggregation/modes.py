"""The modes: how much the system between program and kernels knows.

All run on one node process, over one session, with the same recorder, plans and kernels; they differ in what comes
home and what goes up again. See :func:`modes`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import genie
from disaggregation.forms import Moved, form
from disaggregation.programs import (
    Chat,
    Pictures,
    Ranking,
    Stream,
    Workload,
    argmax,
    sizes_of,
    weight_bytes,
    weights,
)

DEVICE = torch.device("remote_accelerator", 0)

Weights = Callable[[], dict[str, Tensor]] | None


def to_device(tensor: Tensor) -> Tensor:
    return tensor.to(DEVICE)


def stay(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Mode:
    """``run`` is one run of ``work``, which is shorter than the others' where a whole one would take minutes. ``moves``
    is the closed form, None for what stays in this process."""

    name: str
    what: str
    work: Workload
    run: Callable[[], Tensor]
    moves: Moved | None
    between: int | None = None  # bytes of tensors that nodes send to each other; None: as the scheduler decides

    @property
    def is_short(self) -> bool:
        return self.name == "blind-naive"


class Blind:
    """A stub for a model on the node, as an application-blind system has it: host tensors in, host tensors out.

    Strong: one message there with all operands, one execution, one value back with all results, and no copy of them on
    the host. With ``ship`` the weights go along with every call.
    """

    def __init__(self, model: nn.Module, ship: bool) -> None:
        self._model = model
        self._ship = ship

    def _call(self, *args: Tensor, **kwargs: Any) -> Any:
        if not self._ship:
            return self._model(*args, **kwargs)
        # Plain tensors: parameters would be offered by content, and the node has them.
        shipped = {name: to_device(weight.detach()) for name, weight in weights(self._model).items()}
        return torch.func.functional_call(self._model, shipped, args, kwargs)

    def __call__(self, *args: Tensor) -> Any:
        out = self._call(*(to_device(each.contiguous()) for each in args))
        return out.cpu() if isinstance(out, Tensor) else SimpleNamespace(logits=out.logits.cpu())


class _HostCache:
    """A KV cache at home: all layers' keys and values one after the other, as they came and as they go."""

    def __init__(self, flat: Tensor, shape: tuple[int, ...]) -> None:
        self.flat = flat
        self.shape = shape  # of keys and values of one layer: (batch, heads, positions, width)


class BlindLanguage(Blind):
    """The same for a language model: its cache is an operand and a result like others."""

    def __call__(self, *, input_ids: Tensor, past_key_values: _HostCache | None, use_cache: bool) -> Any:  # type: ignore[override]
        from transformers import DynamicCache

        ids, cache = to_device(input_ids), DynamicCache()
        if past_key_values is not None:
            parts = to_device(past_key_values.flat).view(-1, 2, *past_key_values.shape)
            for layer, (keys, values) in enumerate(part.unbind(0) for part in parts.unbind(0)):
                cache.update(keys, values, layer)
        out = self._call(input_ids=ids, past_key_values=cache, use_cache=use_cache)
        layers = out.past_key_values.layers
        kept = [each for layer in layers for each in (layer.keys, layer.values)]
        flat = torch.cat([each.reshape(-1) for each in (out.logits, *kept)]).cpu()
        logits, state = flat.split([out.logits.numel(), sum(each.numel() for each in kept)])
        return SimpleNamespace(
            logits=logits.view(out.logits.shape), past_key_values=_HostCache(state, tuple(kept[0].shape))
        )


class Whole:
    """A model on the node whose state stays there, and of whose calls all results come home."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, *args: Tensor, **kwargs: Any) -> Any:
        out = self._model(*args, **kwargs)
        if isinstance(out, Tensor):
            return out.cpu()
        return SimpleNamespace(logits=out.logits.cpu(), past_key_values=getattr(out, "past_key_values", None))


def at_home(logits: Tensor) -> Tensor:
    return argmax(logits.cpu())


def looped(work: Chat, model: Any, stream: bool) -> Tensor:
    """The chat by ``genie.generate``: the node runs each answer's loop and sends tokens as they come (or at once)."""
    from transformers import DynamicCache

    ids, cache, said = None, DynamicCache(config=model.config), []
    for turn in work.words():
        ids = turn if ids is None else torch.cat([ids, turn], 1)
        options = {"max_new_tokens": work.new, "do_sample": False, "past_key_values": cache, "pad_token_id": 0}
        if stream:
            ids = torch.cat([ids, torch.stack(list(genie.generate(model, ids, stream=True, **options)), 1)], 1)
        else:
            ids = genie.generate(model, ids, **options)
        said.append(ids[:, -work.new :])
    return torch.cat(said, 1)


def modes(work: Workload, native: nn.Module) -> dict[str, Mode]:
    """What there is for this workload, from knowing nothing to all Genie does, one thing more each time."""
    remote = copy.deepcopy(native).to(DEVICE)
    torch.remote_accelerator.synchronize()  # type: ignore[attr-defined]  # weights are there before bytes are counted
    language = isinstance(work, Chat)
    cache, vocabulary = sizes_of(native) if language else (0, 0)
    expect = functools.partial(form, cache=cache, vocabulary=vocabulary, weights=weight_bytes(native))
    stub = BlindLanguage if language else Blind
    naive, blind, whole = stub(native, True), stub(remote, False), Whole(remote)
    short = work.short()
    made = [
        Mode("local", "native PyTorch", work, lambda: work.run(native, stay), None),
        Mode(
            "blind-naive",
            "weights, inputs and caches go up and all outputs come back with every call",
            short,
            lambda: short.run(naive, stay),
            expect(short, "blind-naive"),
        ),
        Mode(
            "blind",
            "weights stay; inputs and caches go up and all outputs come back with every call",
            work,
            lambda: work.run(blind, stay),
            expect(work, "blind"),
        ),
        Mode(
            "partial",
            "caches and what was sent stay, too; each call's outputs come back whole",
            work,
            lambda: work.run(whole, to_device),
            expect(work, "partial"),
        ),
    ]
    match work:
        case Chat():
            made += _language(work, remote, expect)
        case Pictures() | Ranking():
            made += _streams(work, native, remote, expect)
        case _:
            what = "the program runs on the node; what it looks at comes back"
            made.append(Mode("full", what, work, lambda: work.run(remote, to_device), expect(work, "full")))
    return {mode.name: mode for mode in made}


def _language(work: Chat, remote: Any, expect: Callable[[Workload, str], Moved]) -> list[Mode]:
    made = [
        Mode(
            "last",
            "of the logits only the last position comes back",
            work,
            lambda: work.run(remote, to_device, at_home),
            expect(work, "last"),
        ),
        Mode(
            "sample",
            "tokens are sampled on the node, and only they come back",
            work,
            lambda: work.run(remote, to_device),
            expect(work, "sample"),
        ),
    ]
    shown, whole = (
        "the node runs the loop over tokens and sends them as they come",
        "… and they are shown when all are there",
    )
    made += [
        Mode("loop", shown, work, lambda: looped(work, remote, True), expect(work, "loop")),
        Mode("loop-whole", whole, work, lambda: looped(work, remote, False), expect(work, "loop")),
    ]
    return made


def _streams(work: Stream, native: Any, remote: Any, expect: Callable[[Workload, str], Moved]) -> list[Mode]:
    """The program on the node as well; captured whole; and with further inputs under way while one is computed."""
    device = genie.devices()[:1]

    def answer(*inputs: Tensor) -> Tensor:
        return work.finished(native(*work.prepared(*inputs)))

    def call(*inputs: Tensor) -> Any:
        out = native(*inputs)
        return out if isinstance(out, Tensor) else out.logits

    def whole() -> Tensor:
        return torch.cat([genie.run(answer, *inputs, devices=device) for inputs in work.inputs()], 1)

    def ahead(program: Callable[..., Tensor], inputs: Iterable[tuple[Tensor, ...]]) -> Iterator[Tensor]:
        return genie.map(program, inputs, devices=device, in_flight=work.in_flight)

    def blind_ahead() -> Tensor:
        outs = ahead(call, (tuple(each.contiguous() for each in work.prepared(*inputs)) for inputs in work.inputs()))
        return torch.cat([work.finished(_Answer(out) if isinstance(work, Pictures) else out) for out in outs], 1)

    moves = expect(work, "full")
    return [
        Mode("blind-ahead", "as blind, with several calls under way", work, blind_ahead, expect(work, "blind")),
        Mode(
            "program",
            "the program runs on the node; what it looks at comes back",
            work,
            lambda: work.run(remote, to_device),
            moves,
        ),
        Mode("whole", "… captured whole, as one plan per input", work, whole, moves),
        Mode(
            "full",
            "… with several inputs under way, for they are independent",
            work,
            lambda: torch.cat(list(ahead(answer, work.inputs())), 1),
            moves,
        ),
    ]


class _Answer(NamedTuple):
    """A model's, as its program reads it."""

    logits: Tensor
