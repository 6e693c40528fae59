"""What a whole annotated graph is: its kind of work, its calls, its encoders; read off the labels of its nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from genie.graph import Graph

# The kinds of work, and what each is.
WORKLOADS: Mapping[str, str] = MappingProxyType(
    {
        "diffusion": "an iterative denoiser",
        "recommendation": "rows of tables of sparse features, brought together",
        "multimodal": "several modalities, brought together",
        "encoder_decoder": "one sequence is read, another is generated from it",
        "language_model": "text is generated, token by token",
        "text_encoder": "text becomes features",
        "vision": "images or video become features, classes, boxes, masks",
        "audio": "sound becomes features",
        "recurrent": "state replaced in every call, over features",
        "tabular": "columns of numbers and categories",
    }
)


class Call(msgspec.Struct, frozen=True):
    """One call of the program's model: the phase of most of its work, and ids of its nodes."""

    number: int
    phase: str | None
    nodes: tuple[int, ...]
    flops: int


class Summary(msgspec.Struct, frozen=True):
    """``workload`` is one of :data:`WORKLOADS`, or ``None``: unknown. ``training`` says that gradients are computed.
    ``encoders`` maps modalities to the phases that encode them; ``fusion`` has the ids of nodes that bring several
    modalities together first; ``phases`` maps phases to FLOPs."""

    workload: str | None
    training: bool
    calls: tuple[Call, ...]
    encoders: Mapping[str, str]
    fusion: tuple[int, ...]
    phases: Mapping[str, int]


class _Seen:
    """How much of each label a graph has."""

    def __init__(self, graph: Graph) -> None:
        self.phases: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.modalities: Counter[str] = Counter()
        self.roles: Counter[str] = Counter()
        self.encodes: dict[str, Counter[str]] = {}
        self.states = 0
        self._see(graph)

    def _see(self, graph: Graph) -> None:
        self.states += sum(1 for each in graph.meanings if each is not None and each.residency == "recurrent_state")
        for node in graph.steps:
            its = node.semantics
            for region in node.regions:
                self._see(region)
            if its is None:
                continue
            if its.phase:
                self.phases[its.phase] += 1
                self.flops[its.phase] += its.flops or 0
                if its.modality and its.flops and its.phase.endswith("_encode"):
                    self.encodes.setdefault(its.modality, Counter())[its.phase] += 1
            if its.modality:
                self.modalities[its.modality] += 1
            if its.role:
                self.roles[its.role] += 1

    def generates(self) -> bool:
        return bool(self.phases["prefill"] or self.phases["decode"])

    def kinds(self) -> set[str]:
        return {each for each in ("text", "vision", "audio") if self.modalities[each]}


_RULES: tuple[tuple[str, Callable[[_Seen], bool]], ...] = (
    ("diffusion", lambda seen: bool(seen.phases["denoise"])),
    ("recommendation", lambda seen: bool(seen.phases["embedding_lookup"])),
    ("encoder_decoder", lambda seen: seen.generates() and bool(seen.phases["audio_encode"])),
    ("multimodal", lambda seen: len(seen.kinds()) > 1 or bool(seen.modalities["multimodal"])),
    ("encoder_decoder", lambda seen: seen.generates() and bool(seen.flops["text_encode"])),
    ("encoder_decoder", lambda seen: seen.generates() and bool(seen.roles["cross_attention"])),
    ("language_model", lambda seen: seen.generates()),
    ("language_model", lambda seen: bool(seen.roles["lm_head"] and seen.roles["causal_attention"])),
    ("vision", lambda seen: bool(seen.modalities["vision"])),
    ("audio", lambda seen: bool(seen.modalities["audio"])),
    ("text_encoder", lambda seen: bool(seen.modalities["text"] or seen.phases["text_encode"])),
    # What an optimizer keeps is state, too, and says nothing of the model.
    ("recurrent", lambda seen: (seen.states > 0 and not seen.phases["optimizer"]) or bool(seen.roles["recurrent"])),
    ("tabular", lambda seen: bool(seen.modalities["tabular"])),
)


def summary(graph: Graph) -> Summary:
    """The summary of an annotated graph (see ``genie.annotate``)."""
    seen = _Seen(graph)
    workload = next((name for name, holds in _RULES if holds(seen)), None)
    training = bool(seen.phases["backward"])
    encoders = {modality: phases.most_common(1)[0][0] for modality, phases in sorted(seen.encodes.items())}
    fusion = tuple(
        node.id for node in graph.steps if node.semantics is not None and node.semantics.role == "fusion"
    ) or tuple(node.id for node in graph.steps if node.semantics is not None and node.semantics.phase == "fusion")
    phases = {phase: seen.flops[phase] for phase, _ in seen.phases.most_common()}
    return Summary(workload, training, _calls(graph), encoders, fusion, phases)


def _calls(graph: Graph) -> tuple[Call, ...]:
    nodes: dict[int, list[int]] = {}
    flops: dict[int, Counter[str]] = {}
    counts: dict[int, Counter[str]] = {}
    for node in graph.steps:
        its = node.semantics
        number = (its.call or 0) if its is not None else 0
        nodes.setdefault(number, []).append(node.id)
        if its is not None and its.phase is not None:
            flops.setdefault(number, Counter())[its.phase] += its.flops or 0
            counts.setdefault(number, Counter())[its.phase] += 1
    found = []
    for number in sorted(nodes):
        its_flops, its_counts = flops.get(number, Counter()), counts.get(number, Counter())
        phase = max(its_counts, key=lambda each: (its_flops[each], its_counts[each]), default=None)
        found.append(Call(number, phase, tuple(nodes[number]), sum(its_flops.values())))
    return tuple(found)
