"""Recommendation models: rows of tables of sparse features are gathered, meet, and pass dense layers. Each part must be
told; which works most is a matter of sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from semantics.ingredients import numbers
from semantics.stages import Stage
from semantics.truth import Call, Model, Program, Tower, Truth

PARTS = ("embedding_lookup", "interaction", "dense_tower")
ROWS, WIDTH, BATCH = 50, 8, 16
FIELDS = [20, 30, 10, 40]

WITH_INTERACTION = Truth("recommendation", (Call(PARTS, PARTS),) * 2, (Tower("", "tabular"),))
# Wide and deep parts are added up; nothing is multiplied with anything.
WITHOUT = Truth("recommendation", (Call(PARTS, ("embedding_lookup", "dense_tower")),) * 2, (Tower("", "tabular"),))


def _ids(*shape: int, below: int, seed: int) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def _twice(model: nn.Module, inputs: Callable[[int, Stage], Sequence[Any]]) -> Program:
    model.eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        made: list[Tensor] = []
        for seed in (7, 8):
            given = inputs(seed, stage)
            with stage.call():
                made.append(model(*given))
        return made

    return Program(run, (model,))


class Dlrm(nn.Module):
    def __init__(self, fields: int = 3) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(ROWS, WIDTH, mode="sum") for _ in range(fields))
        self.bottom = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, WIDTH), nn.ReLU())
        pairs = (fields + 1) * fields // 2
        self.top = nn.Sequential(nn.Linear(WIDTH + pairs, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
        self.below = nn.Buffer(torch.tril_indices(fields + 1, fields + 1, -1))

    def forward(self, dense: Tensor, bags: Tensor, offsets: Tensor) -> Tensor:
        x = self.bottom(dense)
        rows = [table(ids, offsets) for table, ids in zip(self.tables, bags, strict=True)]
        z = torch.stack([x, *rows], 1)
        met = torch.bmm(z, z.transpose(1, 2))[:, self.below[0], self.below[1]]
        return self.top(torch.cat([x, met], 1))  # type: ignore[no-any-return]


def _dlrm(stage: Stage) -> Program:
    def inputs(seed: int, stage: Stage) -> Sequence[Tensor]:
        bags, offsets = _ids(3, BATCH * 4, below=ROWS, seed=seed), torch.arange(0, BATCH * 4, 4)
        return [stage.put(numbers(BATCH, 6, seed=seed)), stage.put(bags), stage.put(offsets)]

    return _twice(Dlrm(), inputs)


class TwoTowers(nn.Module):
    """Users and things, each by their own tables and dense layers; a product says how well they go together."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.things = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
        self.history = nn.EmbeddingBag(ROWS, WIDTH, mode="mean")
        self.left = nn.Sequential(nn.Linear(2 * WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH))
        self.right = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH))

    def forward(self, user: Tensor, history: Tensor, thing: Tensor) -> Tensor:
        left = self.left(torch.cat([self.users(user), self.history(history)], 1))
        return (left * self.right(self.things(thing))).sum(1).sigmoid()  # type: ignore[no-any-return]


def _two_towers(stage: Stage) -> Program:
    def inputs(seed: int, stage: Stage) -> Sequence[Tensor]:
        shapes: tuple[tuple[int, ...], ...] = ((BATCH,), (BATCH, 5), (BATCH,))
        return [stage.put(_ids(*shape, below=ROWS, seed=seed + n)) for n, shape in enumerate(shapes)]

    return _twice(TwoTowers(), inputs)


def _columns(seed: int, stage: Stage) -> Sequence[Tensor]:
    return [stage.put(torch.stack([_ids(BATCH, below=size, seed=seed + n) for n, size in enumerate(FIELDS)], 1))]


def _deep_fm(stage: Stage) -> Program:
    from torchfm.model.dfm import DeepFactorizationMachineModel  # type: ignore[import-not-found,unused-ignore]

    return _twice(DeepFactorizationMachineModel(FIELDS, WIDTH, (16, 16), 0.0), _columns)


def _wide_and_deep(stage: Stage) -> Program:
    from torchfm.model.wd import WideAndDeepModel  # type: ignore[import-not-found,unused-ignore]

    return _twice(WideAndDeepModel(FIELDS, WIDTH, (16, 16), 0.0), _columns)


def _dcn(stage: Stage) -> Program:
    """Crosses of features, beside dense layers, over categories and numbers."""
    from torch_rechub.basic.features import DenseFeature, SparseFeature  # type: ignore[import-not-found,unused-ignore]
    from torch_rechub.models.ranking import DCN  # type: ignore[import-not-found,unused-ignore]

    features = [DenseFeature(f"d{n}") for n in range(3)]
    features += [SparseFeature(f"s{n}", vocab_size=size, embed_dim=WIDTH) for n, size in enumerate(FIELDS)]

    def inputs(seed: int, stage: Stage) -> Sequence[dict[str, Tensor]]:
        dense = {f"d{n}": numbers(BATCH, seed=seed + n) for n in range(3)}
        sparse = {f"s{n}": _ids(BATCH, below=size, seed=seed + n) for n, size in enumerate(FIELDS)}
        return [{name: stage.put(column) for name, column in {**dense, **sparse}.items()}]

    return _twice(DCN(features, 2, {"dims": [16, 16], "dropout": 0.0}), inputs)


MODELS = (
    Model("dlrm", _dlrm, WITH_INTERACTION),
    Model("two-tower-recommender", _two_towers, WITH_INTERACTION),
    Model("torchfm-deepfm", _deep_fm, WITH_INTERACTION, ("torchfm",), "torchfm"),
    Model("torchfm-wide-deep", _wide_and_deep, WITHOUT, ("torchfm",), "torchfm"),
    Model("rechub-dcn", _dcn, WITH_INTERACTION, ("torch_rechub",), "torch_rechub"),
)
