"""Graphs as the native executor loads them: any operator and any arguments, as far as they pass the rules."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from genie import graph as graphs
from genie.errors import GraphError, PlanError
from genie.graph import Graph
from genie_backend_local.native import NativeSession, load
from genie_fuzz.harness import Target, check, refuses
from genie_fuzz.plans import library
from genie_fuzz.targets.codec import examples

_decoder = msgspec.msgpack.Decoder(Graph)
_NATIVE = load()


def _session() -> NativeSession:
    return _NATIVE.Session("cpu", "cpu:0", 1 << 20)


_held = [_session()]
_loaded = 0


def one(data: bytes) -> None:
    """A graph's body, as the codec has it."""
    global _loaded
    try:
        graph = _decoder.decode(data)
        graphs.verify(graph)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError, GraphError):
        return
    _loaded += 1
    if _loaded % 256 == 0:
        _held[0] = _session()
    native = _held[0]
    before = native.counters()["plans"]
    refuses((PlanError,), lambda: native.load(_loaded, graph))
    check(native.counters()["plans"] - before in (0, 1), "a plan was half loaded")


def seeds() -> Iterator[bytes]:
    encode = msgspec.msgpack.Encoder().encode
    for graph in (*examples(), *(graph for _, graph in library())):
        yield encode(graph)


TARGET = Target(
    name="loader",
    one=one,
    seeds=seeds,
    modules=("genie.graph.rules",),
    bytes_per_byte=256,
    bytes_at_least=1 << 18,
    msgpack_at=0,
    share=3.0,
)
