"""Models of plain torch.nn, written by hand: images, tables, translation, questions about images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semantics.ingredients import VOCABULARY, numbers, tokens
from semantics.stages import Stage
from semantics.truth import Call, Fusion, Model, Program, Tower, Truth, calls

WIDTH = 32

SEES = Truth("vision", calls("vision_encode", "vision_encode"), (Tower("", "vision"),))
TABLE = Truth("tabular", calls("forward", "forward"), (Tower("", "tabular"),))
# A decoder given all of its text at once, without labels, reads many positions: prefill. Sizes say which works more.
TRANSLATES = Truth(
    "encoder_decoder",
    (Call(("text_encode", "prefill"), ("text_encode", "prefill")),) * 2,
    (Tower("", "text"),),
)
VQA_PHASES = ("vision_encode", "text_encode", "fusion")
VQA = Truth(
    "multimodal",
    (Call(VQA_PHASES, VQA_PHASES),) * 2,
    (
        Tower("vision", "vision"),
        Tower("text", "text"),
        Tower("fusion", "multimodal", ("fusion.to_query", "fusion.to_key", "fusion.to_value")),
        Tower("answer", "multimodal"),
    ),
    Fusion(("fusion",)),
)
ODD_VQA = Truth(
    "multimodal",
    (Call(VQA_PHASES, VQA_PHASES),) * 2,
    (Tower("@sees", "vision"), Tower("@reads", "text"), Tower("@after", "multimodal")),
    Fusion(("@meets",)),
)


def _twice(model: nn.Module, inputs: Callable[[int], Sequence[Tensor]]) -> Program:
    model.eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        made: list[Tensor] = []
        for seed in (7, 8):
            given = [stage.put(tensor) for tensor in inputs(seed)]
            with stage.call():
                made.append(model(*given))
        return made

    return Program(run, (model,))


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.c2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.n1, self.n2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.skip = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.n1(self.c1(x)))
        return F.relu(self.n2(self.c2(y)) + self.skip(x))


def _resnet(stage: Stage) -> Program:
    stages = [Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 32, 2)]
    stem = [nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)]
    return _twice(nn.Sequential(*stem, *stages, *head), lambda seed: [numbers(2, 3, 32, 32, seed=seed)])


class SegmentingUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self._pair(3, 8), self._pair(8, 16)
        self.middle, self.up1, self.up2 = self._pair(16, 32), self._pair(32, 16), self._pair(16, 8)
        self.grow1, self.grow2 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(8, 4, 1)

    def _pair(self, before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, 1, 1), nn.ReLU(), nn.Conv2d(after, after, 3, 1, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        b = self.up1(torch.cat([self.grow1(c), b], 1))
        return self.out(self.up2(torch.cat([self.grow2(b), a], 1)))  # type: ignore[no-any-return]


def _unet(stage: Stage) -> Program:
    return _twice(SegmentingUNet(), lambda seed: [numbers(2, 3, 32, 32, seed=seed)])


class Mixer(nn.Module):
    """Patches mixed by dense layers, over places and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.places = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2))
        self.channels = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for n in range(2):
            x = x + self.places[n](self.norms[2 * n](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[n](self.norms[2 * n + 1](x))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def _mixer(stage: Stage) -> Program:
    return _twice(Mixer(), lambda seed: [numbers(2, 3, 32, 32, seed=seed)])


def _table(stage: Stage) -> Program:
    layers = [nn.BatchNorm1d(12), nn.Linear(12, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 24), nn.ReLU()]
    return _twice(nn.Sequential(*layers, nn.Linear(24, 2)), lambda seed: [numbers(16, 12, seed=seed)])


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.place = nn.Parameter(torch.randn(16, WIDTH) * 0.1)
        self.transformer = nn.Transformer(WIDTH, 4, 2, 2, 48, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], target.device)
        x = self.source(source) + self.place[: source.shape[1]]
        y = self.target(target) + self.place[: target.shape[1]]
        return self.head(self.transformer(x, y, tgt_mask=mask))  # type: ignore[no-any-return]


def _translator(stage: Stage) -> Program:
    return _twice(Translator(), lambda seed: [tokens(10, seed=seed), tokens(9, seed=seed + 5)])


class SeesTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.positions = nn.Parameter(torch.randn(1, 16, WIDTH) * 0.1)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.positions)  # type: ignore[no-any-return]


class ReadsTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(16, WIDTH)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True), 2)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.blocks(self.words(ids) + self.positions(places))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Words ask, the image answers."""

    def __init__(self) -> None:
        super().__init__()
        self.to_query, self.to_key, self.to_value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, words: Tensor, sight: Tensor) -> Tensor:
        q, k, v = (
            each.view(*each.shape[:2], 4, WIDTH // 4).transpose(1, 2)
            for each in (self.to_query(words), self.to_key(sight), self.to_value(sight))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(words.shape)
        x = self.norm(words + self.out(seen))
        return x + self.mlp(x)  # type: ignore[no-any-return]


class QuestionAnswering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision, self.text, self.fusion = SeesTower(), ReadsTower(), CrossAttention()
        self.answer = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        return self.answer(self.fusion(self.text(ids), self.vision(image))[:, 0])  # type: ignore[no-any-return]


def _vqa(stage: Stage) -> Program:
    return _twice(QuestionAnswering(), lambda seed: [numbers(2, 3, 32, 32, seed=seed), tokens(seed=seed)])


def _odd_vqa(stage: Stage) -> Program:
    """The same idea without modules: a net of convolutions, a bag of words, features side by side."""
    made = {
        "a": numbers(8, 3, 3, 3, seed=1) * 0.3,
        "b": numbers(16, 8, 3, 3, seed=2) * 0.2,
        "c": numbers(VOCABULARY, WIDTH, seed=3),
        "d": numbers(WIDTH, WIDTH, seed=4) * 0.2,
        "e": numbers(16 + WIDTH, 48, seed=5) * 0.2,
        "f": numbers(48, 10, seed=6) * 0.2,
    }
    w = {name: stage.put(tensor) for name, tensor in made.items()}

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        results: list[Tensor] = []
        for seed in (7, 8):
            x, ids = stage.put(numbers(2, 3, 32, 32, seed=seed)), stage.put(tokens(seed=seed))
            with stage.call():
                with stage.part("sees"):
                    x = F.relu(F.conv2d(F.relu(F.conv2d(x, w["a"], stride=2)), w["b"], stride=2)).mean((2, 3))
                with stage.part("reads"):
                    y = torch.tanh(w["c"][ids].mean(1) @ w["d"])
                with stage.part("meets"):
                    z = torch.cat([x, y], 1) @ w["e"]
                with stage.part("after"):
                    results.append(torch.relu(z) @ w["f"])
        return results

    return Program(run, tensors=w)


MODELS = (
    Model("plain-resnet", _resnet, SEES),
    Model("plain-unet-segmentation", _unet, SEES),
    Model("plain-mixer", _mixer, SEES),
    Model("plain-table-mlp", _table, TABLE),
    Model("nn-transformer", _translator, TRANSLATES),
    Model("vqa", _vqa, VQA),
    Model("odd-vqa", _odd_vqa, ODD_VQA),
)
