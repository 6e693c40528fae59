"""Frames, records and the order of a conversation: pure values, hostile ones included."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genie.device import Device
from genie.errors import (
    BackendError,
    GenieError,
    LimitExceeded,
    LocalProtocolError,
    NodeError,
    OutOfMemory,
    ProtocolError,
    RemoteOpError,
    VersionMismatch,
)
from genie.graph import TensorSpec
from genie.wire import Assembler, Dialogue, Kind, Limits, State, frames, messages
from genie.wire.messages import Hello, Welcome

LIMITS = Limits(header=4096, records=64, buffers=1, tensor=1 << 16, plan=1 << 16)


def _fresh(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    assert sum(sizes) <= LIMITS.largest_buffer, "memory was asked for beyond the limit"
    return [memoryview(bytearray(size)) for size in sizes]


def _feed(assembler: Assembler, data: bytes, step: int) -> list[tuple[bytes, list[bytes]]]:
    """What comes out when ``data`` arrives ``step`` bytes at a time."""
    found: list[tuple[bytes, list[bytes]]] = []
    at = 0
    while True:
        while (message := assembler.pull(_fresh)) is not None:
            found.append((bytes(message.header), [bytes(buffer) for buffer in message.buffers]))
        if at == len(data):
            return found
        space = assembler.space()
        assert len(space), "no room to read into"
        count = min(step, len(space), len(data) - at)
        space[:count] = data[at : at + count]
        assembler.filled(count)
        at += count


# --- frames --------------------------------------------------------------------------------------

_payloads = st.binary(max_size=200) | st.integers(250, 260).map(bytes)  # a record's length is one byte or five
_records = st.lists(st.tuples(st.integers(0, 255), _payloads), min_size=1, max_size=8)


@st.composite
def _messages(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    records = draw(_records)
    buffers = draw(st.lists(st.binary(max_size=3000), max_size=1))
    body = b"".join(frames.record(kind, payload) for kind, payload in records)
    header = frames.message(draw(st.integers(0, (1 << 32) - 1)), len(records), body, [len(data) for data in buffers])
    return header, buffers


@given(st.integers(0, (1 << 32) - 1), _records)
def test_records_come_out_as_they_went_in(seq: int, records: list[tuple[int, bytes]]) -> None:
    header = frames.message(seq, len(records), b"".join(frames.record(kind, payload) for kind, payload in records))
    got, found = frames.split(header)
    assert got == seq == frames.sequence(header)
    assert [(kind, bytes(payload)) for kind, payload in found] == records
    if len(records) == 1:
        assert frames.one(seq, *records[0]) == header
        assert frames.single(header)[:2] == (seq, records[0][0])
        assert bytes(frames.single(header)[2]) == records[0][1]
    else:
        with pytest.raises(ProtocolError):
            frames.single(header)


def test_one_message_with_a_buffer() -> None:
    assert frames.one(3, 7, b"meta", 99) == frames.message(3, 1, frames.record(7, b"meta"), (99,))
    assert frames.sizes(frames.one(3, 7, b"meta", 99), LIMITS) == (99,)


@settings(max_examples=60, deadline=None)
@given(st.lists(_messages(), max_size=6), st.sampled_from([1, 2, 7, 16, 100, 5000]), st.sampled_from([16, 64, 4096]))
def test_a_stream_is_cut_where_messages_end(sent: list[tuple[bytes, list[bytes]]], step: int, ring: int) -> None:
    stream = b"".join(header + b"".join(buffers) for header, buffers in sent)
    assembler = Assembler(LIMITS, ring=ring)
    assert _feed(assembler, stream, step) == sent
    assert not assembler.midway


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([1, 13, 500]))
def test_noise_is_refused_or_waits(data: bytes, step: int) -> None:
    with contextlib.suppress(ProtocolError, VersionMismatch, LimitExceeded):
        _feed(Assembler(LIMITS, ring=64), data, step)


@settings(max_examples=500, deadline=None)
@given(_messages(), st.data())
def test_mutated_messages_never_surprise(message: tuple[bytes, list[bytes]], data: st.DataObject) -> None:
    stream = bytearray(message[0] + b"".join(message[1]))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        for header, _ in _feed(Assembler(LIMITS, ring=64), bytes(stream), 50):
            frames.split(header)
    except (ProtocolError, VersionMismatch, LimitExceeded):
        pass


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({0: 0x00}, ProtocolError, "does not speak"),
        ({2: 9}, VersionMismatch, "version 9"),
        ({3: 1}, ProtocolError, "flags"),
        ({10: 0xFF, 11: 0xFF}, LimitExceeded, "header"),
        ({12: 200}, LimitExceeded, "buffers"),
        ({14: 0}, LimitExceeded, "0 records"),
        ({15: 0xFF}, LimitExceeded, "records"),
    ],
)
def test_prefixes_that_are_refused(change: dict[int, int], error: type[GenieError], text: str) -> None:
    header = bytearray(frames.message(0, 1, frames.record(Kind.SYNC)))
    for at, byte in change.items():
        header[at] = byte
    with pytest.raises(error, match=text):
        frames.header_length(header, LIMITS)


def test_a_version_mismatch_names_both_versions_and_what_to_do() -> None:
    header = bytearray(frames.message(0, 1, frames.record(Kind.SYNC)))
    header[2] = 9
    with pytest.raises(VersionMismatch) as caught:
        frames.header_length(header, LIMITS)
    assert "9" in caught.value.message
    assert str(frames.VERSION) in caught.value.message
    assert "same version" in caught.value.hint


def test_an_oversized_buffer_is_refused_before_memory_is_asked_for() -> None:
    asked: list[object] = []

    def allocate(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
        asked.append(sizes)
        return []

    assembler = Assembler(LIMITS)
    header = frames.one(0, Kind.UPLOAD, b"", 1 << 60)
    assembler.space()[: len(header)] = header
    assembler.filled(len(header))
    with pytest.raises(LimitExceeded):
        assembler.pull(allocate)
    assert not asked


def test_records_that_lie_about_their_length() -> None:
    for body in (b"\x01\xff\xff\xff\xff\xff", b"\x01\xff\xff", b"\x01\xfe", b"\x01", b"\x01\0\0"):
        with pytest.raises(ProtocolError):
            frames.split(frames.message(0, 1, body))
        with pytest.raises(ProtocolError):
            frames.single(frames.message(0, 1, body))
    with pytest.raises(ProtocolError):
        frames.split(frames.message(0, 2, frames.record(1)))


def test_too_much_for_one_message_is_our_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        frames.message(0, 1 << 20, b"")


# --- payloads ------------------------------------------------------------------------------------


@given(st.integers(0, (1 << 35) - 1))
def test_plan_numbers(number: int) -> None:
    data = messages.put_varint(number)
    assert messages.get_varint(data + b"rest") == (number, len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff\xff\xff\xff\xff\x01"])
def test_plan_numbers_that_are_none(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.get_varint(data)


@given(
    st.integers(1, (1 << 63) - 1),
    st.lists(st.integers(0, 9), max_size=4),
    st.sampled_from(["float32", "bool", "complex128"]),
    st.binary(max_size=64),
)
def test_uploads(handle: int, shape: list[int], dtype: str, data: bytes) -> None:
    spec = TensorSpec(tuple(shape), dtype)
    got, found, rest = messages.get_value(memoryview(messages.put_value(handle, spec, data)))
    assert (got, found, bytes(rest)) == (handle, spec, data)


_handles = st.integers(1, (1 << 63) - 1)


@given(st.lists(_handles, max_size=20) | st.tuples(_handles, _handles).map(sorted).map(list))
def test_handles(handles: list[int]) -> None:
    assert messages.get_handles(memoryview(messages.put_handles(handles))) == handles


@given(_handles, st.lists(st.integers(-64, 63), max_size=100))
def test_handles_near_each_other_take_a_byte(first: int, steps: list[int]) -> None:
    handles = [first]
    for step in steps:
        handles.append(min(max(handles[-1] + step, 1), (1 << 63) - 1))
    data = messages.put_handles(handles)
    assert len(data) <= 10 + len(steps)
    assert messages.get_handles(memoryview(data)) == handles


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",  # handle 0
        b"\x02\x03",  # 1, then -1
        b"\x02\x82",  # cut short
        b"\xff" * 9 + b"\x01",  # below any handle
        b"\xfe" + b"\xff" * 8 + b"\x7f",  # above any handle
        b"\x80" * 10 + b"\x02",  # longer than 64 bits
    ],
)
def test_handles_that_are_none(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.get_handles(memoryview(data))


@given(st.lists(st.integers(0, 9), max_size=4), st.sampled_from(["float32", "bool"]), st.binary(max_size=64))
def test_values(shape: list[int], dtype: str, data: bytes) -> None:
    spec = TensorSpec(tuple(shape), dtype)
    head, found = messages.get_result(memoryview(messages.put_result(spec, data)))
    assert (messages.get_spec(head), bytes(found)) == (spec, data)


def test_content_records() -> None:
    digest = bytes(range(32))
    spec = TensorSpec((2, 3), "float16")
    assert messages.get_chunk(memoryview(messages.put_chunk(digest, 77))) == (digest, 77)
    assert messages.get_commit(memoryview(messages.put_commit(digest, 5, spec))) == (digest, 5, spec)
    assert messages.get_held(memoryview(messages.put_held(12, direct=True))) == (12, True)


@pytest.mark.parametrize(
    "read",
    [
        messages.get_value,
        messages.get_result,
        messages.get_chunk,
        messages.get_commit,
        messages.get_held,
        messages.get_handles,
        messages.get_hello,
        messages.get_welcome,
        messages.get_spec,
        messages.get_counters,
        lambda data: messages.get_error(data, "node"),
        lambda data: messages.get_pair(data, "FETCH"),
        lambda data: messages.get_handle(data, "DESCRIBE"),
    ],
)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=80))
def test_payloads_of_noise(read: object, data: bytes) -> None:
    with contextlib.suppress(ProtocolError, LimitExceeded):
        read(memoryview(data))  # type: ignore[operator]


def test_deeply_nested_payloads() -> None:
    with pytest.raises(ProtocolError):
        messages.get_hello(b"\x91" * 100_000)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (TensorSpec((1,), "float31"), ProtocolError),
        (TensorSpec((-1,), "float32"), ProtocolError),
        (TensorSpec((1 << 63,), "float32"), ProtocolError),
        (TensorSpec((1,) * 65, "float32"), LimitExceeded),
        (TensorSpec((1 << 14, 2), "float32"), LimitExceeded),
        (TensorSpec(((1 << 62),) * 64, "float32"), LimitExceeded),
    ],
)
def test_specs_beyond_bounds(spec: TensorSpec, error: type[GenieError]) -> None:
    with pytest.raises(error):
        messages.spec_bytes(spec, LIMITS)


def test_a_spec_in_bounds() -> None:
    assert messages.spec_bytes(TensorSpec((3, 5), "int16"), LIMITS) == 30
    assert messages.spec_bytes(TensorSpec((), "float64"), LIMITS) == 8
    assert messages.spec_bytes(TensorSpec((1 << 40, 0), "float64"), LIMITS) == 0


# --- greeting and errors -------------------------------------------------------------------------


def test_greetings_survive() -> None:
    hello = Hello(major=1, minor=2, genie="0.1", device=3, host="h", client="c")
    device = Device(id="cpu", type="CPU", memory_gb=2.5, compute_tflops=0.1)
    welcome = Welcome(
        major=1, minor=0, session="s", devices=(device,), limits=LIMITS, host="h", local_address="unix:/x"
    )
    assert messages.get_hello(messages.put_struct(hello)) == hello
    assert messages.get_welcome(messages.put_struct(welcome)) == welcome


def test_newer_minors_may_say_more() -> None:
    data = msgspec.msgpack.encode({"major": 1, "minor": 9, "device": 0, "news": [1, 2]})
    assert messages.get_hello(data).minor == 9


def test_an_impossible_device_is_the_peers_mistake() -> None:
    data = msgspec.msgpack.encode(
        {"major": 1, "minor": 0, "devices": [{"id": "x", "type": "CPU", "memory_gb": -1, "compute_tflops": 1}]}
    )
    with pytest.raises(ProtocolError):
        messages.get_welcome(data)


def test_an_operators_error_comes_home_whole() -> None:
    error = RemoteOpError("shapes", op="aten::mm", plan=2, step=5, kind="IndexError", device="cpu", source="f.py:3")
    home = messages.get_error(messages.put_error(error), "10.0.0.1:8888")
    assert type(home) is RemoteOpError
    fields = ("message", "op", "plan", "step", "kind", "device", "source")
    assert [getattr(home, name) for name in fields] == [getattr(error, name) for name in fields]
    assert home.where == "10.0.0.1:8888"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OutOfMemory("full", device="cpu"), OutOfMemory),
        (LimitExceeded("much", hint="less"), LimitExceeded),
        (MemoryError(), OutOfMemory),
        (KeyError("x"), NodeError),
    ],
)
def test_errors_keep_their_class(error: Exception, kind: type[GenieError]) -> None:
    assert type(messages.get_error(messages.put_error(error), "n")) is kind


@pytest.mark.parametrize("name", ["SystemExit", "GenieError.__init__", "annotations", "os", ""])
def test_only_our_own_errors_are_ever_built(name: str) -> None:
    error = messages.get_error(msgspec.msgpack.encode({"error": name, "message": "boo"}), "n")
    assert type(error) is NodeError
    assert isinstance(error, BackendError)


# --- the conversation ----------------------------------------------------------------------------


def test_a_conversation() -> None:
    client, node = Dialogue(client=True), Dialogue(client=False)
    for speaker, listener, kind in [
        (client, node, Kind.HELLO),
        (node, client, Kind.WELCOME),
        (client, node, Kind.EXECUTE),
        (client, node, Kind.FETCH),
        (node, client, Kind.VALUE),
        (client, node, Kind.BYE),
    ]:
        speaker.say(kind)
        listener.hear(kind)
    assert client.state is node.state is State.CLOSED


@pytest.mark.parametrize("kind", [Kind.EXECUTE, Kind.WELCOME, Kind.VALUE, 99])
def test_a_node_hears_hello_first(kind: int) -> None:
    with pytest.raises(ProtocolError):
        Dialogue(client=False).hear(kind)


def test_hello_is_said_once() -> None:
    node = Dialogue(client=False)
    node.hear(Kind.HELLO)
    node.say(Kind.WELCOME)
    with pytest.raises(ProtocolError, match="HELLO"):
        node.hear(Kind.HELLO)


def test_we_notice_when_we_would_break_the_rules() -> None:
    with pytest.raises(LocalProtocolError):
        Dialogue(client=True).say(Kind.EXECUTE)


def test_messages_are_numbered_without_gaps() -> None:
    client, node = Dialogue(client=True), Dialogue(client=False)
    for _ in range(3):
        node.numbered(client.next_seq())
    with pytest.raises(ProtocolError, match="5 arrived where 3"):
        node.numbered(5)


def test_kinds_do_not_change() -> None:
    """Numbers on the wire are for ever."""
    assert {kind.name: int(kind) for kind in Kind} == {
        "HELLO": 1,
        "WELCOME": 2,
        "ERROR": 3,
        "BYE": 4,
        "PROOF": 5,
        "WAIT": 6,
        "LOAD_PLAN": 16,
        "EXECUTE": 17,
        "UPLOAD": 18,
        "FREE": 19,
        "SEED": 20,
        "SET_GENERATOR_STATE": 21,
        "UPLOAD_CHUNK": 22,
        "UPLOAD_COMMIT": 23,
        "SEND": 24,
        "RECEIVE": 25,
        "OUTLET": 26,
        "TRACE": 27,
        "HEARD": 28,
        "SEND_MEMORY": 29,
        "UPLOAD_BEGIN": 32,
        "FETCH": 33,
        "DESCRIBE": 34,
        "GENERATOR_STATE": 35,
        "SYNC": 36,
        "STATS": 37,
        "INLET": 38,
        "PROFILE": 40,
        "LOOP": 41,
        "MARK": 42,
        "SNAPSHOT": 43,
        "READ_MEMORY": 44,
        "RESTORE": 45,
        "STAGE": 46,
        "HELD": 48,
        "VALUE": 49,
        "SPEC": 50,
        "STATE": 51,
        "DONE": 52,
        "COUNTERS": 53,
        "INLET_OPEN": 54,
        "PROFILED": 56,
        "LOOPED": 57,
        "MARKED": 58,
    }
    assert struct.calcsize("<2sBBIIHH") == frames.PREFIX.size == 16
