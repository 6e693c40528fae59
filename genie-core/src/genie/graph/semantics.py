"""What nodes and values of a graph mean, and why: labels with their evidence."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

# ``gc=False`` below: trees of frozen values make no cycles, and graphs have many thousands of them.


class Evidence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Why a label holds. ``source`` is ordered: user > framework > lineage > structure. ``label`` names the field."""

    label: str
    source: Literal["user", "framework", "lineage", "structure"]
    reason: str
    confidence: float = 1.0


class Semantics(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a node means. ``None`` is *unknown*: later stages must not read it as anything else."""

    role: str | None = None
    phase: str | None = None
    modality: str | None = None
    residency: str | None = None
    memory_pattern: str | None = None
    flops: int | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None
    parallelizable: bool | None = None
    critical_path: bool | None = None
    priority: int | None = None
    colocation_group: str | None = None
    kv_cache_related: bool | None = None
    call: int | None = None  # which call of the program's model, counted from 0
    device: str | None = None  # where the user wants it to run
    evidence: tuple[Evidence, ...] = ()


class ValueSemantics(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a value means; ``None`` is unknown."""

    residency: str | None = None
    modality: str | None = None
    memory_pattern: str | None = None
    colocation_group: str | None = None
    evidence: tuple[Evidence, ...] = ()


_PUBLIC_KEYS = {"role": "semantic_role", "flops": "compute_flops", "parallelizable": "can_parallelize"}


def known_labels(semantics: Semantics | ValueSemantics | None) -> dict[str, Any]:
    """What is known, by public key; what is unknown is absent."""
    said: dict[str, Any] = {}
    if semantics is not None:
        for field in semantics.__struct_fields__:
            label = getattr(semantics, field)
            if label is not None and label != ():
                said[_PUBLIC_KEYS.get(field, field)] = label
    return said


def node_labels(semantics: Semantics | None) -> dict[str, Any]:
    """The same of a node, with what follows from it."""
    said = known_labels(semantics)
    if semantics is None:
        return said
    if semantics.flops is not None and semantics.bytes_read is not None and semantics.bytes_written is not None:
        moved = semantics.bytes_read + semantics.bytes_written
        said["arithmetic_intensity"] = semantics.flops / moved if moved else 0.0
    return said
