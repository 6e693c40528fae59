"""What is kept to be said again: numbers, bytes, and whose memory it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from genie.remote.kept import Kept, Said

_STEPS = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.tuples(st.binary(max_size=20), st.binary(min_size=1, max_size=50), st.booleans()),
        st.integers(-3, 60),
        st.sampled_from(["own", "give back"]),
    ),
    max_size=60,
)


@given(first=st.integers(0, 5), steps=_STEPS)
def test_as_a_list_of_messages(first: int, steps: list[object]) -> None:
    kept = Kept(first)
    model: dict[int, Said] = {}
    number = first
    for step in steps:
        if isinstance(step, bytes):
            kept.add(step)
            model[number] = Said(step)
            number += 1
        elif isinstance(step, tuple):
            header, data, mutable = step
            view = memoryview(bytearray(data)) if mutable else memoryview(data)
            kept.add(header, view)
            model[number] = Said(header, view)
            number += 1
        elif isinstance(step, int):
            kept.acknowledge(step)
            model = {at: said for at, said in model.items() if at > step}
        elif step == "own":
            kept.own()
        else:
            kept.give_back()
            for at, said in model.items():
                if said.data is not None and isinstance(said.data.obj, bytearray):
                    model[at] = said._replace(data=None, lost=True)
        if step == "own":
            model = {
                at: said if said.data is None else said._replace(data=memoryview(bytes(said.data)))
                for at, said in model.items()
            }
        assert kept.next == number
        assert kept.first == min(model, default=number)
        assert kept.since(first - 9) == list(model.values())
        assert kept.since(number - 2) == [said for at, said in model.items() if at >= number - 1]
        assert kept.bytes == sum(said.size for said in model.values())
        assert kept.borrowed == sum(
            len(said.data) for said in model.values() if said.data is not None and isinstance(said.data.obj, bytearray)
        )


def test_memory_that_is_given_back_may_change() -> None:
    memory = bytearray(b"before")
    kept = Kept(0)
    kept.add(b"h", memoryview(memory))
    kept.own()
    memory[:] = b"after!"
    (said,) = kept.since(-1)
    assert said.data == b"before"
