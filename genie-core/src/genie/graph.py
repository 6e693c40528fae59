"""The Semantically Rich Graph: what a program asked for, in order, with what it means.

A graph is the verbatim list of operators a frontend saw — views and in-place operators included —
over numbered values. Nothing here knows a framework: operators and dtypes are names.

Rules every graph obeys are in :func:`verify`; they run on each side of every process boundary.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from genie.errors import GraphError

# --- arguments ---------------------------------------------------------------------------------


class Ref(msgspec.Struct, frozen=True, array_like=True, tag="v"):
    """An operand: the value numbered ``value``."""

    value: int


class Many(msgspec.Struct, frozen=True, array_like=True, tag="l"):
    """A list argument (``int[]``, ``Tensor[]``, ``Tensor?[]``, …)."""

    items: tuple[Arg, ...]


class Const(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """An argument that is part of the structure, never a parameter.

    ``kind`` is one of ``dtype``, ``layout``, ``memory_format``, ``device``, ``generator``,
    ``complex``. The device ``self`` is the device the node is placed on. A generator is named by the
    decimal number the frontend gave it.
    """

    kind: Literal["dtype", "layout", "memory_format", "device", "generator", "complex"]
    text: str


class ScalarTensor(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A zero-dimensional host tensor used as an operand, carried by value.

    ``wrapped`` marks a Python number that became a tensor (it yields in dtype promotion).
    """

    dtype: str
    number: bool | int | float
    wrapped: bool


# Every ``int`` and ``float`` below, in the order of nodes, arguments and list items, is a *parameter* of
# the graph: two graphs that differ in parameters alone share one plan (see ``bindings``).
Arg: TypeAlias = None | bool | int | float | str | Ref | Many | Const | ScalarTensor

# --- values and nodes --------------------------------------------------------------------------


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """Shape, dtype and layout of a value. ``stride=None`` means contiguous; strides are in elements."""

    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...] | None = None


class Evidence(msgspec.Struct, frozen=True, array_like=True):
    """Why a label holds. ``source`` is ordered: user > framework > lineage > structure."""

    label: str
    source: Literal["user", "framework", "lineage", "structure"]
    reason: str
    confidence: float = 1.0


class Semantics(msgspec.Struct, frozen=True, omit_defaults=True):
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
    evidence: tuple[Evidence, ...] = ()


class Node(msgspec.Struct, frozen=True, array_like=True):
    """One operator call, arguments in the order of the operator's schema.

    ``outputs`` numbers the *fresh* values it makes, flattened over the schema's returns; ``-1`` stands for a
    return that is no fresh value: an undefined tensor, or the very tensor that was passed in (``add_``,
    ``out=``). ``mutates`` lists operands written in place; ``aliases`` pairs (output, operand) that share memory.
    ``module`` and ``source`` index :attr:`Graph.modules` and :attr:`Graph.sources`; ``-1`` is none.
    """

    id: int
    operation: str  # "aten::add"
    overload: str  # "Tensor", or "" for the default overload
    args: tuple[Arg, ...]
    outputs: tuple[int, ...]
    mutates: tuple[int, ...] = ()
    aliases: tuple[tuple[int, int], ...] = ()
    module: int = -1
    source: int = -1
    semantics: Semantics | None = None


class Input(msgspec.Struct, frozen=True, array_like=True):
    """A value that enters the graph. ``origin`` is what the frontend *knows* it to be.

    A ``donated`` input is not needed after this graph: the executor releases it after its last use.
    """

    value: int
    name: str = ""
    origin: Literal["", "parameter", "buffer", "input", "state", "constant"] = ""
    donated: bool = False


class Module(msgspec.Struct, frozen=True, array_like=True):
    """A module of the user's program: dotted path and class name."""

    path: str
    type: str


class Graph(msgspec.Struct, frozen=True):
    """An ordered list of nodes (``steps``) over the values ``0 .. len(values) - 1``; see :func:`verify` for the rules."""

    values: tuple[TensorSpec, ...]
    inputs: tuple[Input, ...]
    steps: tuple[Node, ...]
    outputs: tuple[int, ...]  # values that outlive the graph, in the order their handles are numbered
    modules: tuple[Module, ...] = ()
    sources: tuple[str, ...] = ()  # "path/to/file.py:12"
    backend_type: Literal["fx", "lazy_dag"] = "lazy_dag"
    name: str = ""
