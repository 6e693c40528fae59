"""Bytes behind values."""

from __future__ import annotations

from math import prod

from genie.graph.model import DTYPES, Graph, TensorSpec


def nbytes(spec: TensorSpec) -> int:
    """Bytes of memory behind a value: an expanded dimension (stride 0) has one element."""
    if spec.stride is None or 0 not in spec.stride:
        return prod(spec.shape) * DTYPES[spec.dtype]
    kept = (dim if step else min(dim, 1) for dim, step in zip(spec.shape, spec.stride, strict=True))
    return prod(kept) * DTYPES[spec.dtype]


def sizes(graph: Graph) -> list[int]:
    """:func:`nbytes` of all the graph's values."""
    memo: dict[TensorSpec, int] = {}
    found: list[int] = []
    for spec in graph.values:
        size = memo.get(spec)
        if size is None:
            size = memo[spec] = nbytes(spec)
        found.append(size)
    return found
