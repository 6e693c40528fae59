"""The Semantically Rich Graph: what a program asked for, in order, with what it means."""

from genie.graph.model import (
    DTYPES,
    Arg,
    BoundNode,
    Const,
    Evidence,
    Graph,
    Input,
    Many,
    Module,
    Node,
    Ref,
    ScalarTensor,
    Semantics,
    TensorSpec,
    node_text,
    refs,
    spec_text,
)
from genie.graph.rules import verify

__all__ = [
    "DTYPES",
    "Arg",
    "BoundNode",
    "Const",
    "Evidence",
    "Graph",
    "Input",
    "Many",
    "Module",
    "Node",
    "Ref",
    "ScalarTensor",
    "Semantics",
    "TensorSpec",
    "node_text",
    "refs",
    "spec_text",
    "verify",
]
