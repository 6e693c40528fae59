from __future__ import annotations

import math

import pytest
from core.graph_examples import attention_step, graphs
from hypothesis import given
from hypothesis import strategies as st

from genie.bindings import Prediction, bits_float, float_bits, parameters
from genie.errors import LocalProtocolError, ProtocolError
from genie.graph import Graph, Many, Node, ScalarTensor

WORD = st.integers(0, 2**64 - 1)


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[int], list[list[int]]]:
    inputs, first = draw(st.integers(0, 4)), draw(st.lists(WORD, max_size=5))
    length = 1 + inputs + len(first)
    near = st.integers(0, 5) | WORD
    return inputs, first, draw(st.lists(st.lists(near, min_size=length, max_size=length), max_size=6))


@given(streams())
def test_the_receiver_reads_what_the_sender_wrote(stream):
    inputs, first, vectors = stream
    sender, receiver = Prediction(inputs, first), Prediction(inputs, first)
    for words in vectors:
        assert list(receiver.decode(sender.encode(words))) == words


@given(streams(), st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_sender_may_rely_on_nothing_the_receiver_remembers(stream, anew):
    inputs, first, vectors = stream
    sender, receiver = Prediction(inputs, first), Prediction(inputs, first)
    for words, relying_on_nothing in zip(vectors, anew, strict=False):
        data = sender.encode(words, relying_on_nothing)
        if relying_on_nothing:  # what was sent before got lost
            receiver = Prediction(inputs, [~word for word in first])
        assert list(receiver.decode(data)) == words


@given(streams(), st.binary(max_size=30))
def test_garbage_is_refused_and_forgotten(stream, garbage):
    inputs, first, vectors = stream
    sender, receiver = Prediction(inputs, first), Prediction(inputs, first)
    try:
        receiver.decode(garbage)
    except ProtocolError:
        for words in vectors:
            assert list(receiver.decode(sender.encode(words))) == words


def test_what_moves_steadily_costs_one_byte():
    sender = Prediction(2, [10, float_bits(0.5)])
    for step in range(4):
        data = sender.encode([100 + 3 * step, 7, 50 + step, 10 + step, float_bits(0.5)])
    assert data == b"\x00"


def test_the_bytes_are_as_documented():
    # Expected 0, 0, 5; sent 1, 0, 4: word 0 is off by +1 (zigzag 2), word 2, one further on, by -1 (zigzag 1).
    assert Prediction(1, [5]).encode([1, 0, 4]) == bytes([2, 0, 2, 1, 1])


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x01", b"\x01\x00", b"\x09", b"\x01\x03\x02", b"\x00\x00", b"\xff" * 30]
)
def test_malformed_bytes(data):
    with pytest.raises(ProtocolError):
        Prediction(1, [5]).decode(data)


def test_a_vector_of_another_length_is_ours_to_mend():
    with pytest.raises(LocalProtocolError, match="2 words"):
        Prediction(1, [5]).encode([1, 2])


@given(st.floats())
def test_floats_travel_as_their_bits(number):
    back = bits_float(float_bits(number))
    assert back == number or (math.isnan(back) and math.isnan(number))
    assert math.copysign(1, back) == math.copysign(1, number)


def test_parameters_are_numbers_in_order_and_nothing_else():
    step = Node(0, "a::b", "", (True, -1, Many((2, Many((0.5,)), None)), "7", ScalarTensor("int64", 9, True)), ())
    flag = Node(1, "a::b", "", (ScalarTensor("bool", True, False), -0.0), ())
    graph = Graph((), (), (step, flag), ())
    assert parameters(graph) == (2**64 - 1, 2, float_bits(0.5), 9, 1 << 63)
    assert parameters(attention_step())[:4] == (1, 2, 1, 4)


@given(graphs())
def test_any_graph_has_word_parameters(graph):
    assert all(0 <= word < 2**64 for word in parameters(graph))
