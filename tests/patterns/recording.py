"""Programs on the device as annotated graphs, and what is asked of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import genie
from genie.graph import BoundNode, Graph

DEVICE = "remote_accelerator"


def put(tensor: Tensor) -> Tensor:
    return tensor.to(DEVICE)


def ids(*shape: int, of: int = 50) -> Tensor:
    return put(torch.randint(3, of, shape))


def numbers(*shape: int) -> Tensor:
    return put(torch.randn(*shape))


def record(program: Callable[[], Any]) -> Graph:
    """The bare graph of ``program``, whose results are looked at."""
    with torch.no_grad(), genie.capture():
        result = program()
        for tensor in _tensors(result):
            tensor.cpu()
    return genie.get_graph()


def annotated(program: Callable[[], Any]) -> Graph:
    return genie.annotate(record(program))


def forward(model: nn.Module, *args: Tensor, **kwargs: Any) -> Graph:
    """The annotated graph of one call of a model, moved to the device."""
    model = model.eval().to(DEVICE)
    return annotated(lambda: model(*args, **kwargs))


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict):
        for each in result.values():
            yield from _tensors(each)
    elif isinstance(result, (list, tuple)):
        for each in result:
            yield from _tensors(each)


def labelled(graph: Graph, label: str = "role") -> Counter[str]:
    """How many nodes have each value of a label."""
    said = (getattr(node.semantics, label) for node in graph.steps if node.semantics is not None)
    return Counter(each for each in said if each is not None)


def attends(graph: Graph) -> list[BoundNode]:
    """Nodes that apply attention to values, of whatever kind."""
    return [node for role in ("attention", "causal_attention", "cross_attention") for node in having(graph, role)]


def having(graph: Graph, role: str) -> list[BoundNode]:
    return [node for node in graph.nodes() if node.semantics is not None and node.semantics.role == role]


def in_module(graph: Graph, path: str) -> list[BoundNode]:
    """Nodes issued inside a module."""
    return [node for node in graph.nodes() if node.module_path == path or node.module_path.startswith(f"{path}.")]


def said(nodes: Iterable[BoundNode], label: str) -> set[str]:
    """What is said of some nodes, where something is."""
    return {each for node in nodes if node.semantics is not None and (each := getattr(node.semantics, label))}


def phases(graph: Graph) -> list[str | None]:
    """The phase of most of the work of each call."""
    return [call.phase for call in genie.summary(graph).calls]


def kept(graph: Graph, residency: str) -> list[int]:
    """Values of a residency."""
    return [
        value for value, meaning in enumerate(graph.meanings) if meaning is not None and meaning.residency == residency
    ]
