"""The native decoder of bindings against genie.bindings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genie.bindings import Prediction
from genie.errors import ProtocolError
from genie_backend_local import native

NATIVE = native.load()
WORD = st.one_of(st.integers(0, 5), st.integers(0, (1 << 64) - 1), st.sampled_from([(1 << 63), (1 << 64) - 1]))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 4), st.lists(WORD, max_size=6), st.data())
def test_what_python_encodes_arrives(inputs: int, parameters: list[int], data: st.DataObject) -> None:
    sender, receiver = Prediction(inputs, parameters), NATIVE.Prediction(inputs, parameters)
    size = 1 + inputs + len(parameters)
    previous = [0] * (1 + inputs) + parameters
    for _ in range(data.draw(st.integers(1, 6))):
        # Mostly vectors that move by steps, which is what the encoding expects.
        moved = [(word + data.draw(st.integers(-2, 2))) % (1 << 64) for word in previous]
        vector = data.draw(st.one_of(st.just(previous), st.just(moved), st.lists(WORD, min_size=size, max_size=size)))
        anew = data.draw(st.booleans())
        words, changed = receiver.decode(sender.encode(vector, anew))
        assert words == vector
        assert sorted(changed) == [i for i in range(size) if anew or vector[i] != previous[i]]
        previous = vector


@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, 3),
    st.lists(WORD, max_size=3),
    st.lists(st.one_of(st.binary(max_size=12), st.lists(st.integers(0, 4), max_size=8).map(bytes)), max_size=6),
)
def test_any_bytes_mean_the_same_to_both(inputs: int, parameters: list[int], messages: list[bytes]) -> None:
    python, receiver = Prediction(inputs, parameters), NATIVE.Prediction(inputs, parameters)
    for message in messages:
        try:
            expected = python.decode(message)
        except ProtocolError:
            with pytest.raises(ProtocolError):
                receiver.decode(message)
        else:
            assert tuple(receiver.decode(message)[0]) == expected


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "cut short"),
        (b"\x80", "cut short"),
        (b"\xff" * 10, "cut short"),
        (b"\x01\x00", "cut short"),
        (b"\x05", "count of 5"),
        (b"\x04\x01\x02", "cut short"),
        (b"\x04\x01\x02\x03\x04", "1 bytes after"),
        (b"\x01\x03\x02", "a word after 0"),
        (b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02", "a word after 0"),
        (b"\x00\x00", "1 bytes after"),
    ],
)
def test_malformed_bindings_change_nothing(message: bytes, says: str) -> None:
    receiver = NATIVE.Prediction(2, [])
    receiver.decode(Prediction(2, []).encode([1, 2, 3]))
    with pytest.raises(ProtocolError, match=says):
        receiver.decode(message)
    assert receiver.decode(b"\x00")[0] == [2, 4, 6]
