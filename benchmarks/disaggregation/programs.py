"""The workloads: plain PyTorch programs around models nobody changed.

A program is given its model, and ``place``, which moves an input to where the program computes. Natively both are what
they are; for an application-blind system the model is a stub that ships each call and the program stays on the client;
for Genie the model is on the device, and so is the program. The text of a program is the same in all modes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import workloads
from torch import Tensor, nn

Place = Callable[[Tensor], Tensor]
Sample = Callable[[Tensor], Tensor]

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "03_multimodal.py"


class Workload(Protocol):
    """``unit`` is what latency is said per; a run has ``units`` of them. Results are on the host."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def units(self) -> int: ...

    def build(self) -> nn.Module: ...

    def run(self, model: Any, place: Place) -> Tensor: ...

    def short(self) -> Workload:
        """The same with as few calls as show what a call takes."""


class Stream(Workload, Protocol):
    """One input after the other, each answered by itself: of each what the program makes of it before the model's
    call, and after."""

    @property
    def in_flight(self) -> int:
        """Inputs under way at once, where that is done."""

    def inputs(self) -> Iterator[tuple[Tensor, ...]]: ...

    def prepared(self, *inputs: Tensor) -> tuple[Tensor, ...]: ...

    def finished(self, out: Any) -> Tensor: ...


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _whole(low: int, high: int, *shape: int, seed: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- language -------------------------------------------------------------------------------------


def argmax(logits: Tensor) -> Tensor:
    """Greedy sampling: (batch, 1, vocabulary) → (batch, 1)."""
    return logits.argmax(-1)


@dataclass(frozen=True)
class Chat:
    """Turns of a user, each answered by ``new`` tokens that are shown as they come; the KV cache lives on."""

    name: str
    factory: Callable[[], nn.Module]
    turns: tuple[int, ...]  # tokens of each
    new: int
    vocabulary: int
    unit: str = "token"

    @property
    def units(self) -> int:
        return len(self.turns) * self.new

    def build(self) -> nn.Module:
        model: Any = self.factory()
        model.generation_config.eos_token_id = None  # answers of one length in every mode, whatever is said
        return model  # type: ignore[no-any-return]

    def short(self) -> Chat:
        return replace(self, turns=self.turns[:1], new=2)

    def words(self) -> list[Tensor]:
        return [_whole(3, self.vocabulary, 1, length, seed=turn) for turn, length in enumerate(self.turns)]

    def run(self, model: Any, place: Place, sample: Sample = argmax) -> Tensor:
        past, token, said = None, None, []
        for turn in self.words():
            ids = turn if token is None else torch.cat([place(token), place(turn)], 1)
            for _ in range(self.new):
                out = model(input_ids=place(ids), past_key_values=past, use_cache=True)
                past = out.past_key_values
                token = ids = sample(out.logits[:, -1:])
                said.append(token.cpu())  # the user sees it
        return torch.cat(said, 1)


def gpt2_like(tiny: bool = False) -> Chat:
    layers, width = (2, 64) if tiny else (6, 384)
    model = workloads.gpt2(layers, width).model
    return Chat("GPT-2-like", model, (8,) if tiny else (64,), 3 if tiny else 32, 50257)


def smollm2_chat(tiny: bool = False) -> Chat:
    """The real weights; tiny: a Llama of random ones."""
    if tiny:
        return Chat("SmolLM2 chat", workloads.llama(layers=2, width=64, dtype=torch.float32).model, (8, 4), 3, 1024)
    return Chat("SmolLM2 chat", workloads.smollm2().model, (40, 24), 32, 49152)


def best(logits: Tensor) -> Tensor:
    """(n, classes) → (2, n): the score of the best class, and the class."""
    scores = logits.softmax(-1)
    return torch.stack([scores.amax(-1), scores.argmax(-1).float()])


# --- pictures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """One picture, several questions about it, asked at once: the answer to each and its score."""

    questions: int = 4
    length: int = 12  # words of each
    width: int = 64  # the example's, as all that follows
    side: int = 64
    answers: int = 100
    name: str = "VQA"
    unit: str = "question"

    @property
    def units(self) -> int:
        return self.questions

    def build(self) -> nn.Module:
        spec = importlib.util.spec_from_file_location("multimodal_example", _EXAMPLE)
        assert spec is not None and spec.loader is not None
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        torch.manual_seed(0)
        model: nn.Module = example.Answerer(width=self.width, heads=self.width // 16).eval()
        return model

    def short(self) -> Questions:
        return replace(self, questions=1)

    def run(self, model: Any, place: Place) -> Tensor:
        picture = place(_random(1, 3, self.side, self.side, seed=1))
        words = [_whole(0, 1000, 1, self.length, seed=number) for number in range(self.questions)]
        return torch.cat([best(model(picture, place(question))) for question in words], 1).cpu()


def normalised(pictures: Tensor) -> Tensor:
    return (pictures.float() - 127.5) / 63.75


@dataclass(frozen=True)
class Pictures:
    """A stream of batches of decoded pictures (8 bits a colour), classified: the class of each and its score."""

    batches: int = 6
    size: int = 8  # pictures per batch
    side: int = 64
    classes: int = 1000
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    in_flight: int = 2
    name: str = "CNN stream"
    unit: str = "batch"

    @property
    def units(self) -> int:
        return self.batches

    def build(self) -> nn.Module:
        from transformers import ResNetConfig, ResNetForImageClassification

        torch.manual_seed(0)
        config = ResNetConfig(
            embedding_size=self.widths[0],
            hidden_sizes=list(self.widths),
            depths=list(self.depths),
            layer_type="basic",
            num_labels=self.classes,
        )
        model: nn.Module = ResNetForImageClassification(config).eval()
        return model

    def short(self) -> Pictures:
        return replace(self, batches=1)

    def inputs(self) -> Iterator[tuple[Tensor]]:
        shape = (self.size, 3, self.side, self.side)
        return ((_whole(0, 256, *shape, seed=number, dtype=torch.uint8),) for number in range(self.batches))

    def prepared(self, *inputs: Tensor) -> tuple[Tensor]:
        (pictures,) = inputs
        return (normalised(pictures),)

    def finished(self, out: Any) -> Tensor:
        return best(out.logits)

    def run(self, model: Any, place: Place) -> Tensor:
        results = [self.finished(model(*self.prepared(*map(place, inputs)))) for inputs in self.inputs()]
        return torch.cat(results, 1).cpu()


# --- recommendation -------------------------------------------------------------------------------


class Dlrm(nn.Module):
    """Dense features (n, dense) and one id per table (n, tables) → scores (n,)."""

    def __init__(self, dense: int, tables: int, rows: int, width: int) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(dense, 128), nn.ReLU(), nn.Linear(128, width), nn.ReLU())
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(tables))
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 256), nn.ReLU(), nn.Linear(256, 1))
        self.below = nn.Buffer(torch.tril_indices(tables + 1, tables + 1, -1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.bottom(dense)
        z = torch.stack([x, *(table(ids[:, i]) for i, table in enumerate(self.tables))], 1)
        met = torch.bmm(z, z.transpose(1, 2))[:, self.below[0], self.below[1]]
        scores: Tensor = self.top(torch.cat([x, met], 1)).squeeze(1)
        return scores


@dataclass(frozen=True)
class Ranking:
    """Requests one by one: a user's features and candidate items; back go the best of them and their scores."""

    requests: int = 32
    candidates: int = 128
    best: int = 10
    dense: int = 13
    tables: int = 8  # the first is of items
    rows: int = 100_000
    width: int = 64
    in_flight: int = 8
    name: str = "DLRM-like"
    unit: str = "request"

    @property
    def units(self) -> int:
        return self.requests

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return Dlrm(self.dense, self.tables, self.rows, self.width).eval()

    def short(self) -> Ranking:
        return replace(self, requests=1)

    def inputs(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for number in range(self.requests):
            user = _random(1, self.dense, seed=number)
            habits = _whole(0, self.rows, 1, self.tables - 1, seed=number)
            yield user, habits, _whole(0, self.rows, self.candidates, seed=100 + number)

    def prepared(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        user, habits, items = inputs
        ids = torch.cat([items[:, None], habits.expand(self.candidates, -1)], 1)
        return user.expand(self.candidates, -1), ids

    def finished(self, out: Tensor) -> Tensor:
        scores, which = out.topk(self.best)
        return torch.stack([scores, which.float()])

    def run(self, model: Any, place: Place) -> Tensor:
        each = (self.finished(model(*self.prepared(*map(place, inputs)))) for inputs in self.inputs())
        return torch.cat([result.cpu() for result in each], 1)


def suite(names: Sequence[str], tiny: bool = False) -> list[Workload]:
    """By the names of the command line, in its order."""
    makers: dict[str, Callable[[], Workload]] = {
        "gpt2": lambda: gpt2_like(tiny),
        "smollm2": lambda: smollm2_chat(tiny),
        "vqa": lambda: Questions(questions=2, width=32) if tiny else Questions(),
        "cnn": lambda: (
            Pictures(batches=2, size=2, side=32, classes=10, depths=(1, 1), widths=(8, 16)) if tiny else Pictures()
        ),
        "dlrm": lambda: Ranking(requests=2, candidates=16, best=3, rows=100, width=8) if tiny else Ranking(),
    }
    unknown = [name for name in names if name not in makers]
    if unknown:
        raise ValueError(f"no workload {unknown[0]!r}: {', '.join(makers)}")
    return [makers[name]() for name in (names or makers)]


def sizes_of(model: nn.Module) -> tuple[int, int]:
    """Of a language model: bytes of its KV cache per position (float32), and its vocabulary."""
    config: Any = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * 4, config.vocab_size


def weight_bytes(model: nn.Module) -> int:
    """Parameters and buffers, shared ones once."""
    return sum(each.nbytes for each in weights(model).values())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
