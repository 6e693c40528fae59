from __future__ import annotations

import pytest
from core.graph_examples import graphs
from core.programs import Program, decoder, recurrent
from hypothesis import given, settings

from genie.graph import Ref, verify
from genie.graph.calls import calls, weights
from genie.graph.lineage import lineage
from genie.graph.structure import short, structure


def chains(graph):
    found = {id(each): each for each in lineage(graph).values()}
    return sorted({(each.kind, each.axis, len(each.versions)) for each in found.values()})


def test_structure_follows_views_copies_and_parts():
    p = Program()
    x = p.input((4, 6))
    turned = p.op("t", Ref(x), shape=(6, 4), view=True)
    copy = p.op("clone", Ref(turned), shape=(6, 4))
    row = p.op("select", Ref(copy), 0, 1, shape=(4,), view=True)
    p.write("add_", Ref(row), 1)
    view = structure(p.graph(copy))
    assert view.names == ["t", "clone", "select", "add"]
    assert (view.storage[turned], view.storage[copy], view.storage[row]) == (x, copy, copy)
    assert (view.source[copy], view.source[row], view.part[row]) == (x, row, x)
    assert view.writes == {copy: [3]}
    assert (view.users[copy], view.maker[row], view.made_by(x)) == ([2], 2, "")


@pytest.mark.parametrize(
    ("name", "is_"),
    [
        ("aten::add_", "add"),
        ("aten::mm", "mm"),
        ("mine::add", "mine::add"),
        ("aten::__and__", "__and__"),
        ("aten::_softmax", "_softmax"),
    ],
)
def test_short_names(name, is_):
    assert short(name) == is_


@given(graphs())
@settings(max_examples=50)
def test_any_graph_has_a_structure_calls_and_lineage(graph):
    verify(graph)
    assert len(calls(graph)) == len(graph.steps)
    for value, chain in lineage(graph).items():
        assert value in chain.versions
    assert all(0 <= value < len(graph.values) for value in weights(graph).known)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_call_begins_where_data_is_looked_up_again(count):
    graph = decoder(count)
    numbers = calls(graph)
    assert sorted(set(numbers)) == list(range(count))
    lookups = [at for at, name in enumerate(structure(graph).names) if name == "embedding"]
    assert [numbers[at] for at in lookups] == list(range(count))
    # The choice of a token ends its call, though the next one reads it.
    choices = [at for at, name in enumerate(structure(graph).names) if name == "argmax"]
    assert [numbers[at] for at in choices] == list(range(count))


def test_what_prepares_a_call_belongs_to_it():
    graph = decoder(3, static=True)
    places = [at for at, name in enumerate(structure(graph).names) if name == "arange"]
    assert [calls(graph)[at] for at in places] == [0, 1, 2]


def test_layers_that_share_weights_are_one_call():
    p = Program()
    table, shared = p.weight(50, 16), p.weight(16, 16)
    x = p.op("embedding", Ref(table), Ref(p.input((1, 5), "int64")), shape=(1, 5, 16))
    for _ in range(4):
        x = p.linear(x, shared)
    assert set(calls(p.graph(x))) == {0}


def test_a_cache_that_grows():
    assert chains(decoder(4)) == [("grown", 2, 4)]


def test_a_cache_that_slides():
    [(kind, axis, _)] = chains(decoder(4, window=1))
    assert (kind, axis) == ("grown", 2)


def test_a_cache_written_in_place():
    assert chains(decoder(4, static=True)) == [("written", 2, 1)]


def test_a_state_that_is_replaced():
    [(kind, _, versions)] = chains(recurrent(4))
    assert kind == "replaced"
    assert versions == 5  # the zeros it starts from, and one a call


def test_one_call_is_no_lineage():
    assert chains(recurrent(1)) == []


def test_ids_and_masks_that_grow_have_no_lineage():
    p = Program()
    table = p.weight(50, 16)
    ids = p.input((1, 3), "int64")
    for _ in range(3):
        x = p.op("embedding", Ref(table), Ref(ids), shape=(1, 3, 16))
        new = p.op("argmax", Ref(x), -1, shape=(1, 1), dtype="int64")
        ids = p.cat(ids, new, axis=1)
    assert lineage(p.graph(ids)) == {}


def test_a_decode_step_by_itself_shows_its_cache():
    p = Program()
    weight = p.weight(16, 16)
    old = p.input((1, 2, 7, 8), origin="state")
    x = p.linear(p.input((1, 1, 16), origin="input"), weight)
    new = p.op("view", Ref(x), shape=(1, 2, 1, 8), view=True)
    keys = p.cat(old, new, axis=2)
    graph = p.graph(keys)
    assert lineage(graph)[keys] == lineage(graph)[old] == ("grown", 2, (old, keys))


def test_what_the_frontend_saw_before_counts():
    p = Program()
    weight = p.weight(8, 8)
    state = p.input((1, 8), origin="state", lineage="replaced")
    new = p.op("tanh", Ref(p.linear(state, weight)), shape=(1, 8))
    assert lineage(p.graph(new)) == dict.fromkeys((state, new), ("replaced", -1, (state, new)))


def test_weights_are_known_or_used_as_weights_are():
    p = Program()
    known = p.weight(4, 4)
    x, told = p.input((2, 4)), p.input((4, 4))
    both = p.input((4, 4))  # on either side of a product: no weight
    y = p.op("mm", Ref(x), Ref(told), shape=(2, 4))
    p.op("mm", Ref(both), Ref(both), shape=(4, 4))
    p.linear(y, known)
    found = weights(p.graph())
    assert (found.known, found.told) == ({known}, {told})
