"""Recommendation models: rows of tables, where they meet, and dense towers."""

from __future__ import annotations

import pytest
import torch
from patterns.recording import annotated, forward, having, ids, in_module, labelled, numbers, put, said
from torch import Tensor, nn

import genie

ROWS = (40, 60, 30)


class Ranks(nn.Module):
    """DLRM-like: bags of rows and dense numbers, dot products of all pairs, a tower."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, 8, mode="sum") for rows in ROWS)
        self.bottom = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(8 + 6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, bags: list[Tensor]) -> Tensor:
        x = self.bottom(dense)
        rows = [table(bag) for table, bag in zip(self.tables, bags, strict=True)]
        all_ = torch.stack([x, *rows], 1)
        met = torch.bmm(all_, all_.transpose(1, 2))
        i, j = torch.tril_indices(4, 4, -1)
        return torch.sigmoid(self.top(torch.cat([x, met[:, i, j]], 1)))


class Crosses(nn.Module):
    """DeepFM-like: one table for all columns, pairs by the square of the sum, a deep tower."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(sum(ROWS), 8), nn.Embedding(sum(ROWS), 1)
        self.register_buffer("start", torch.tensor([0, ROWS[0], ROWS[0] + ROWS[1]]))
        self.deep = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, columns: Tensor) -> Tensor:
        columns = columns + self.start
        rows = self.table(columns)
        pairs = 0.5 * (rows.sum(1).square() - rows.square().sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.first(columns).sum(1) + pairs + self.deep(rows.flatten(1)))


class Finds(nn.Module):
    """Two towers: a user's row and an item's."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 16), nn.Embedding(50, 16)
        self.u, self.i = (nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.u(self.users(user)) * self.i(self.items(item))).sum(-1)


def ranks():
    return forward(Ranks(), numbers(4, 13), [ids(4, 5, of=rows) for rows in ROWS])


def crosses():
    return forward(Crosses(), ids(4, 3, of=30))


def finds():
    return forward(Finds(), ids(4), ids(4))


@pytest.mark.parametrize("graph_of", [ranks, crosses, finds])
def test_recommendation(graph_of):
    graph = graph_of()
    assert genie.summary(graph).workload == "recommendation"
    found = labelled(graph, "phase")
    assert found["embedding_lookup"] >= 2
    assert found["dense_tower"]
    assert not found.keys() & {"prefill", "decode", "text_encode", "sampling"}
    assert labelled(graph, "modality").keys() == {"tabular"}


def test_look_ups_and_towers_by_their_modules():
    graph = ranks()
    assert said(in_module(graph, "tables"), "phase") == {"embedding_lookup"}
    assert said(in_module(graph, "tables"), "role") == {"embedding_hot"}
    assert said(in_module(graph, "bottom"), "phase") == {"dense_tower"}
    assert said(in_module(graph, "top"), "phase") == {"dense_tower"}
    [met] = [node for node in graph.nodes() if node.operation == "aten::bmm"]
    assert met.semantics.phase == "interaction"
    views = [node for node in graph.nodes() if node.operation == "aten::transpose" and node.inputs == met.inputs[:1]]
    assert said(views, "phase") == {"interaction"}


def test_tables_may_be_placed_alone():
    groups = [node.semantics.colocation_group for node in having(ranks(), "embedding_hot")]
    assert len(set(groups)) == len(ROWS)
    assert None not in groups


def test_a_large_table_is_cold():
    """Its shape is enough: the rows themselves are never made here."""
    from core.programs import Program

    from genie.graph import Ref

    p = Program()
    large, small = p.weight(1 << 22, 8), p.weight(1 << 8, 8)
    rows = [
        p.op("embedding", Ref(table), Ref(p.input((4,), "int64", origin="input")), shape=(4, 8))
        for table in (large, small)
    ]
    met = p.op("mul", *map(Ref, rows), shape=(4, 8))
    graph = genie.annotate(p.graph(p.linear(met, p.weight(1, 8))))
    assert [node.semantics.role for node in graph.steps[:2]] == ["embedding_cold", "embedding_hot"]


def test_columns_of_numbers_alone_are_tabular():
    model = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 2))
    graph = forward(model, numbers(4, 13))
    assert genie.summary(graph).workload == "tabular"
    assert labelled(graph, "phase").keys() <= {"forward"}


def test_a_table_of_words_is_no_recommendation():
    class Bag(nn.Module):
        """Words, averaged, and a class: the words are looked up a position each."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, words: Tensor) -> Tensor:
            return self.b(self.a(words).mean(1))

    graph = forward(Bag(), ids(2, 9))
    assert genie.summary(graph).workload != "recommendation"


def test_rows_of_a_bag_by_offsets():
    table, tower = nn.EmbeddingBag(50, 8).eval(), nn.Linear(8, 1)
    model = nn.ModuleList([table, tower]).to("remote_accelerator")
    rows, starts = ids(12), put(torch.tensor([0, 3, 7]))
    graph = annotated(lambda: model[1](model[0](rows, starts)))
    assert genie.summary(graph).workload == "recommendation"
