"""Graphs and plans from files and from clients: decoded, verified, encoded again, printed."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import msgspec

from genie import codec
from genie.bindings import parameters
from genie.device import Device
from genie.errors import CodecError, GraphError, PlanError, VersionMismatch
from genie.graph import (
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
    bare,
)
from genie.graph.regions import COND, SCAN, cond, scan
from genie.plan import ExecutionPlan
from genie.plan import bare as bare_plan
from genie.schedule import Scheduler
from genie_fuzz.harness import Target, check, refuses

REFUSALS = (CodecError, GraphError, PlanError, VersionMismatch)
_RAW, _GRAPH, _PLAN = range(3)


def one(data: bytes) -> None:
    """The first byte says what the rest is: encoded bytes as they are, or the body of a graph or plan, to which the
    header is made, since no fuzzer finds its hash."""
    if not data:
        return
    kind, body = data[0] % 3, data[1:]
    encoded = body if kind == _RAW else headed(kind, body)
    value = refuses(REFUSALS, lambda: codec.decode(encoded, where="fuzz"))
    if isinstance(value, Graph | ExecutionPlan):
        look(value)


def headed(kind: int, body: bytes) -> bytes:
    prefix = b"GENIE" + bytes((kind, codec.MAJOR, codec.MINOR)) + len(body).to_bytes(8, "little") + bytes(4)
    return prefix + blake2b(prefix + body, digest_size=16).digest() + body


def look(value: Graph | ExecutionPlan) -> None:
    """What was verified can be written, read, named, printed and explained."""
    again = codec.encode(value)
    check(codec.encode(codec.decode(again)) == again, "what was encoded decodes as something else")
    graph = value if isinstance(value, Graph) else value.graph
    check(len(graph.fingerprint) > 0, "a graph without a fingerprint")
    parameters(graph)
    check(str(value).isprintable() or "\n" in str(value), "a text with characters that do more than print")
    codec.encode(bare(graph))
    if isinstance(value, ExecutionPlan):
        codec.encode(bare_plan(value))
        for node in graph.steps[:4]:
            str(value.explain(node))


def examples() -> Iterator[Graph]:
    """Small graphs that use every part of the format."""
    token, cache = TensorSpec((1, 2, 1, 4), "float32"), TensorSpec((1, 2, 8, 4), "float32")
    why = Semantics(role="attention", phase="decode", evidence=(Evidence("role", "framework", "its name"),), priority=1)
    yield Graph(
        values=(token, cache, TensorSpec((1, 2, 1, 4), "float32", (64, 32, 4, 1)), token, TensorSpec((), "int64")),
        inputs=(Input(0, "x", "input", donated=True), Input(1, "", "state", lineage="grown", axis=2)),
        steps=(
            Node(0, "aten::slice", "Tensor", (Ref(1), 2, 3, 4, 1), (2,), aliases=((2, 1),), module=0, source=0),
            Node(1, "aten::copy_", "", (Ref(2), Ref(0), False), (-1,), mutates=(2,), module=0, source=0),
            Node(2, "aten::mul", "Tensor", (Ref(0), ScalarTensor("float64", 2.5, True)), (3,), semantics=why, mark=0),
            Node(
                3, "aten::full", "", (Many(()), 7, Const("dtype", "int64"), None, Const("device", "self"), None), (4,)
            ),
        ),
        outputs=(3, 4),
        modules=(Module("model.layer", "Layer"),),
        sources=("program.py:3",),
        marks=(Semantics(residency="kv_cache"),),
        value_marks=((1, 0),),
    )
    spec = TensorSpec((2, 3), "float32")
    yield Graph(
        values=(spec, spec, spec),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, "aten::add", "Tensor", (Ref(0), Ref(1), 1), (2,)),),
        outputs=(2,),
    )
    yield from looping()
    yield Graph(values=(), inputs=(), steps=(), outputs=())


def looping() -> Iterator[Graph]:
    """A branch and a scan, each with graphs inside."""
    row, truth, rows = TensorSpec((3,), "float32"), TensorSpec((), "bool"), TensorSpec((2, 3), "float32")
    half = Node(0, "aten::mul", "Tensor", (Ref(0), ScalarTensor("float64", 0.5, True)), (1,))
    still = Graph(values=(row,), inputs=(Input(0),), steps=(), outputs=(0,), name="still")
    halved = Graph(values=(row, row), inputs=(Input(0),), steps=(half,), outputs=(1,), name="halved")
    yield Graph(
        values=(truth, row, row),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, COND, "", cond(Ref(0), [halved, still], [Ref(1)]), (2,)),),
        outputs=(2,),
    )
    body = Graph(
        values=(row, row, row),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, "aten::add", "Tensor", (Ref(0), Ref(1), 1), (2,)),),
        outputs=(2, 2),
    )
    yield Graph(
        values=(row, rows, row, rows),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, SCAN, "", scan(body, [Ref(0)], [Ref(1)], length=2), (2, 3)),),
        outputs=(2, 3),
    )


def plans() -> Iterator[ExecutionPlan]:
    near = Device(id="a", type="CPU", memory_gb=1, compute_tflops=1)
    far = Device(id="b", type="GPU", memory_gb=1, compute_tflops=9, address="host:1", index=1)
    for graph in examples():
        yield Scheduler(devices=[near]).schedule(graph)
        yield Scheduler(devices=[near, far]).schedule(graph)


def seeds() -> Iterator[bytes]:
    encode = msgspec.msgpack.Encoder().encode
    for graph in examples():
        yield bytes((_GRAPH,)) + encode(graph)
        yield bytes((_RAW,)) + codec.encode(graph)
    for plan in plans():
        yield bytes((_PLAN,)) + encode(plan)
        yield bytes((_PLAN,)) + encode(bare_plan(plan))


TARGET = Target(
    name="codec",
    one=one,
    seeds=seeds,
    modules=("genie.codec", "genie.graph", "genie.plan", "genie.bindings"),
    bytes_per_byte=256,
    bytes_at_least=1 << 18,
    msgpack_at=1,
    share=4.0,
)
