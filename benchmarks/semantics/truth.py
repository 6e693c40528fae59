"""What is true of a model: written down from its configuration and the definitions of ``genie.graph.vocabulary``,
before anything runs. Plain data.

A set of several words stands only where the definitions allow each of them; the model's file says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs
from torch import Tensor, nn

if TYPE_CHECKING:
    from semantics.stages import Stage

WORKLOADS: Mapping[str, str] = MappingProxyType(
    {
        "language_model": "text is generated, by a decoder or a recurrent model alone",
        "encoder_decoder": "text becomes text, with an encoder",
        "text_encoder": "text becomes features, classes, scores",
        "vision": "images become features, classes, boxes, maps",
        "audio": "sound becomes features, classes, text",
        "multimodal": "several modalities meet in one model",
        "diffusion": "noise becomes data in steps",
        "recommendation": "sparse features are looked up and meet",
        "tabular": "numbers in columns, by dense layers",
        "recurrent": "sequences of features, by a recurrent network; no text is generated",
    }
)


def _words(given: str | Iterable[str]) -> frozenset[str]:
    return frozenset((given,)) if isinstance(given, str) else frozenset(given)


@attrs.frozen
class Call:
    """One call of a model. ``main`` is the phase of most of its work; all of ``also`` must have a notable share.
    ``alone`` are workloads that the call captured by itself is, too: an encoder of an encoder-decoder is an encoder."""

    main: frozenset[str] = attrs.field(converter=_words)
    also: frozenset[str] = attrs.field(converter=_words, default=())
    alone: frozenset[str] = attrs.field(converter=_words, default=())


@attrs.frozen
class Tower:
    """A part of a model that works on one modality: everything in the module at ``place`` and below (``""`` is
    everything), or in the part of the program the harness was told of (``"@name"``). ``but`` are places inside that are
    other towers' or fusion. ``calls`` are the calls in which this holds; ``None`` is all."""

    place: str
    modality: frozenset[str] = attrs.field(converter=_words)
    but: tuple[str, ...] = ()
    calls: tuple[int, ...] | None = None


@attrs.frozen
class Fusion:
    """Where modalities first meet: in the modules at ``places`` and below, or the parts of those names. With
    ``operations``, only these operators of those very modules; with ``shape``, only those that make such a value."""

    places: tuple[str, ...]
    operations: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    calls: tuple[int, ...] | None = None
    alone: bool = True  # it shows in the call captured by itself, too


@attrs.frozen
class Truth:
    """``fusion=None``: modalities never meet, and a fusion found is a wrong one, unless ``fusion_open`` says that the
    definitions leave it open."""

    workload: frozenset[str] = attrs.field(converter=_words)
    calls: tuple[Call, ...]
    towers: tuple[Tower, ...]
    fusion: Fusion | None = None
    fusion_open: bool = False

    @workload.validator
    def _known(self, _: object, words: frozenset[str]) -> None:
        if unknown := words - WORKLOADS.keys():
            raise ValueError(f"no workload is called {', '.join(sorted(unknown))}: {', '.join(WORKLOADS)}")


@attrs.frozen
class Program:
    """A model, built. The harness moves ``modules`` and takes their parameters and buffers for weights; ``tensors`` are
    weights that belong to no module, already where the stage wants them."""

    run: Callable[[Stage], Sequence[Tensor]]
    modules: tuple[nn.Module, ...] = ()
    tensors: Mapping[str, Tensor] = attrs.field(factory=dict)


@attrs.frozen
class Model:
    """``build`` makes the same program each time. ``needs`` are libraries beyond PyTorch."""

    name: str
    build: Callable[[Stage], Program]
    truth: Truth
    needs: tuple[str, ...] = ()
    origin: str = "handwritten"  # who wrote the model: transformers, diffusers, handwritten, …


def calls(*phases: str | Call) -> tuple[Call, ...]:
    return tuple(phase if isinstance(phase, Call) else Call(phase) for phase in phases)


def generation(new_tokens: int) -> tuple[Call, ...]:
    """A prompt is read, and gives the first token; then one call per token."""
    return calls("prefill", *["decode"] * (new_tokens - 1))
