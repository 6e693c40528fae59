from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
from hashlib import blake2b

import msgspec
import pytest
from core.graph_examples import CPU, GPU, attention_step, graphs
from core.region_examples import nested
from hypothesis import given, settings
from hypothesis import strategies as st

from genie import codec
from genie.annotate import annotate
from genie.codec import HEADER, decode, decode_graph, decode_plan, encode
from genie.errors import CodecError, GraphError, PlanError, VersionMismatch
from genie.graph import Graph, Node, Ref
from genie.schedule import Scheduler

REFUSALS = (CodecError, VersionMismatch, GraphError, PlanError)


def plan():
    return Scheduler([GPU, CPU]).schedule(annotate(attention_step()))


def sealed(body: bytes, kind: int = 1, major: int = 1, minor: int = 0) -> bytes:
    """A body with a right header: what an enemy sends, who can hash too."""
    prefix = struct.pack("<5sBBBQ4x", b"GENIE", kind, major, minor, len(body))
    return prefix + blake2b(prefix + body, digest_size=16).digest() + body


@given(graphs())
def test_any_graph_comes_back(graph):
    data = encode(graph)
    back = decode_graph(data)
    assert encode(back) == data
    assert back.text() == graph.text()
    assert back.fingerprint == graph.fingerprint
    if "nan" not in graph.text():
        assert back == graph


@given(graphs())
def test_any_plan_comes_back(graph):
    made = Scheduler([GPU, CPU]).schedule(annotate(graph))
    data = encode(made)
    back = decode_plan(data)
    assert encode(back) == data
    assert back.text() == made.text()
    assert dict(back.placement) == dict(made.placement)


def test_both_kinds_of_buffer_and_both_kinds_of_content():
    data = encode(plan())
    assert decode(bytearray(data)) == decode(memoryview(data)) == plan()
    with pytest.raises(CodecError, match="a plan, not a graph"):
        decode_graph(data)
    with pytest.raises(CodecError, match="a graph, not a plan"):
        decode_plan(encode(attention_step()))


def test_the_digest_names_the_content():
    graph = attention_step()
    assert codec.digest(encode(graph)) == codec.digest(encode(attention_step()))
    other = msgspec.structs.replace(graph, name="other")
    assert codec.digest(encode(other)) != codec.digest(encode(graph))
    assert codec.read_header(encode(plan())).kind == "plan"


@settings(max_examples=400)
@given(st.sampled_from([encode(attention_step()), encode(plan()), encode(nested())]), st.data())
def test_mutated_files_are_refused_or_keep_the_rules(data, draw):
    """Damage below a right hash: whatever decodes has passed every rule, everything else is refused by us."""
    body = bytearray(data[HEADER:])
    for _ in range(draw.draw(st.integers(1, 4))):
        where = draw.draw(st.integers(0, len(body) - 1))
        match draw.draw(st.sampled_from(["flip", "insert", "delete", "cut"])):
            case "flip":
                body[where] = draw.draw(st.integers(0, 255))
            case "insert":
                body[where:where] = draw.draw(st.binary(min_size=1, max_size=9))
            case "delete":
                del body[where : where + draw.draw(st.integers(1, 9))]
            case "cut":
                del body[max(where, 1) :]
        body = body or bytearray(b"\x00")
    try:
        value = decode(sealed(bytes(body), kind=data[5]))
    except REFUSALS:
        return
    assert decode(encode(value)).text() == value.text()


@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_are_refused(garbage, kind):
    for data in (garbage, b"GENIE" + garbage, sealed(garbage, kind=kind)):
        with pytest.raises(REFUSALS):
            decode(data)


@given(st.integers(0, 2000), st.integers(1, 255))
def test_damage_is_noticed(where, flip):
    data = bytearray(encode(attention_step()))
    data[where % len(data)] ^= flip
    with pytest.raises((CodecError, VersionMismatch)):
        decode(data)


def test_every_truncation_is_refused():
    data = encode(attention_step())
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode(data[:length])
    with pytest.raises(CodecError, match="announced"):
        decode(data + b"\x00")


def test_another_major_says_what_to_do():
    body = encode(attention_step())[HEADER:]
    with pytest.raises(VersionMismatch, match=r"2\.0.*reads 1\.x") as caught:
        decode(sealed(body, major=2), where="old.plan")
    assert caught.value.where == "old.plan"
    assert caught.value.hint


def test_a_newer_minor_with_more_to_say_is_read():
    raw = msgspec.msgpack.decode(encode(attention_step())[HEADER:])
    raw["invented"] = {"later": [1, 2]}
    raw["steps"][0] += [None] * (10 - len(raw["steps"][0])) + ["a field of the future"]
    assert decode(sealed(msgspec.msgpack.encode(raw), minor=9)) == attention_step()


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 200_000 + b"\x00",
        b"\x81\xa6values" + b"\x91" * 200_000,
        b"\x81\xa6values\xdd\xff\xff\xff\xff",
        b"\x81\xa6values" + b"\xdd\xff\xff\xff\xff" * 2000,
        b"\x81\xa7unknown" + b"\xdd\xff\xff\xff\xff" * 500,
        b"\x81\xa4name\xdb\xff\xff\xff\xff",
        b"\x81\xa4name\xa2\xff\xfe",
        b"\xdf\xff\xff\xff\xff",
    ],
    ids=["deep", "deep list", "huge list", "huge lists", "huge unknown", "huge text", "no UTF-8", "huge map"],
)
def test_bombs_are_refused_cheaply(body):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in (1, 2):
        with pytest.raises(CodecError):
            decode(sealed(body, kind=kind))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_limit_is_checked_before_anything_is_read():
    data = encode(attention_step())
    with pytest.raises(CodecError, match="more than the 10 allowed"):
        decode(data, limit=10)
    header = struct.pack("<5sBBBQ4x", b"GENIE", 1, 1, 0, 1 << 40) + bytes(16)
    with pytest.raises(CodecError, match="larger"):
        decode(header)


def test_what_breaks_a_rule_is_not_even_written():
    with pytest.raises(GraphError, match="operand %7"):
        encode(Graph((), (), (Node(0, "a::b", "", (Ref(7),), ()),), ()))


def test_what_decodes_but_breaks_a_rule_is_refused():
    raw = msgspec.msgpack.decode(encode(attention_step())[HEADER:])
    raw["outputs"] = [99]
    with pytest.raises(GraphError, match="output %99"):
        decode(sealed(msgspec.msgpack.encode(raw)))


@pytest.mark.parametrize("make", [attention_step, plan])
def test_files(tmp_path, make):
    path = tmp_path / "x.genie"
    codec.save(make(), path)
    codec.save(make(), path)
    assert codec.load(path) == make()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.genie"]


def test_files_that_fail_are_named(tmp_path):
    with pytest.raises(CodecError, match="cannot read") as caught:
        codec.load(tmp_path / "none")
    assert caught.value.where == str(tmp_path / "none")
    with pytest.raises(CodecError, match="cannot write"):
        codec.save(attention_step(), tmp_path / "no" / "such" / "place")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(encode(plan())[:-3])
    with pytest.raises(CodecError) as caught:
        codec.load(damaged)
    assert caught.value.where == str(damaged)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.genie"
    codec.save(attention_step(), path)
    with pytest.raises(GraphError):
        codec.save(msgspec.structs.replace(attention_step(), outputs=(99,)), path)
    assert codec.load(path) == attention_step()


def test_a_plan_file_explains_itself_without_a_framework(tmp_path):
    path = tmp_path / "x.genie"
    codec.save(plan(), path)
    code = (
        "import sys; from genie.codec import load; plan = load(sys.argv[1]); print(plan.explain(4));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60, capture_output=True, text=True)
    assert "aten::scaled_dot_product_attention" in done.stdout


def test_json_is_canonical():
    text = codec.to_json(plan())
    assert text == codec.to_json(decode(encode(plan())))
    assert json.loads(text)["graph"]["name"] == "decode"
