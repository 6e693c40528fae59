"""Several modalities in one program: who encodes what, and where they meet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from patterns.recording import DEVICE, annotated, forward, having, ids, in_module, labelled, numbers, phases, said
from torch import Tensor, nn

import genie
from genie.graph import Graph

WIDTH, HEADS = 32, 4


class Quux(nn.Module):
    """A block of a transformer, which may look elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c, self.d, self.e = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.f, self.g, self.h = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.a(x)
        z = y if other is None else other
        q, k, v = (e.view(*e.shape[:2], HEADS, -1).transpose(1, 2) for e in (self.c(y), self.d(z), self.e(z)))
        x = x + self.f(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.h(F.gelu(self.g(self.b(x))))


class Sees(nn.Module):
    def __init__(self, by: str = "convolution") -> None:
        super().__init__()
        self.by = by
        self.cut = nn.Conv2d(3, WIDTH, 8, 8) if by == "convolution" else nn.Linear(3 * 64, WIDTH)
        self.places = nn.Parameter(torch.randn(1, 16, WIDTH) * 0.1)
        self.blocks = nn.ModuleList(Quux() for _ in range(2))

    def forward(self, picture: Tensor) -> Tensor:
        if self.by == "convolution":
            x = self.cut(picture).flatten(2).transpose(1, 2)
        elif self.by == "reshape":
            x = picture.view(-1, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, 3 * 64)
            x = self.cut(x)
        else:
            x = self.cut(F.unfold(picture, 8, stride=8).transpose(1, 2))
        x = x + self.places
        for block in self.blocks:
            x = block(x)
        return x


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, WIDTH), nn.Embedding(20, WIDTH)
        self.blocks = nn.ModuleList(Quux() for _ in range(2))

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places(torch.arange(words.shape[1], device=words.device))
        for block in self.blocks:
            x = block(x)
        return x


class Answers(nn.Module):
    """A question about a picture: it reads, sees, looks at the picture for each word, and chooses an answer."""

    def __init__(self, by: str = "convolution") -> None:
        super().__init__()
        self.left, self.right, self.joint, self.out = Sees(by), Reads(), Quux(), nn.Linear(WIDTH, 7)

    def forward(self, picture: Tensor, words: Tensor) -> Tensor:
        return self.out(self.joint(self.right(words), self.left(picture))[:, 0])


def picture() -> Tensor:
    return numbers(2, 3, 32, 32)


@pytest.fixture(params=["convolution", "reshape", "unfold"])
def answers(request: pytest.FixtureRequest) -> Graph:
    return forward(Answers(request.param), picture(), ids(2, 9))


def test_a_question_about_a_picture(answers):
    summary = genie.summary(answers)
    assert summary.workload == "multimodal"
    assert dict(summary.encoders) == {"text": "text_encode", "vision": "vision_encode"}
    for path, modality, phase in (("left", "vision", "vision_encode"), ("right", "text", "text_encode")):
        blocks = in_module(answers, f"{path}.blocks")
        assert said(blocks, "modality") == {modality}
        assert said(blocks, "phase") == {phase}
    assert said(in_module(answers, "out"), "modality") == {"multimodal"}


def test_the_place_where_modalities_meet(answers):
    [meets] = [answers.get_node(id) for id in genie.summary(answers).fusion]
    assert (meets.module_path, meets.operation) == ("joint", "aten::scaled_dot_product_attention")
    assert said(in_module(answers, "joint.h"), "phase") == {"fusion"}


def test_words_for_pictures_as_tokens():
    """LLaVA-like: a picture's features are put where its words are, and a language model goes on."""

    class Says(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eye, self.bridge = Sees(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
            self.words, self.blocks = nn.Embedding(50, WIDTH), nn.ModuleList(Quux() for _ in range(2))
            self.head = nn.Linear(WIDTH, 50)

        def forward(self, picture: Tensor, words: Tensor) -> Tensor:
            x = torch.cat([self.bridge(self.eye(picture)), self.words(words)], 1)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    graph = forward(Says(), picture(), ids(2, 9))
    assert genie.summary(graph).workload == "multimodal"
    assert said(in_module(graph, "eye"), "modality") == {"vision"}
    assert said(in_module(graph, "bridge"), "modality") == {"vision"}
    assert said(in_module(graph, "blocks"), "modality") == {"multimodal"}
    assert [node.operation for node in having(graph, "fusion")] == ["aten::cat"]


def test_one_stream_of_patches_and_words():
    """ViLT-like: no encoders, one transformer over both."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.words = nn.Conv2d(3, WIDTH, 8, 8), nn.Embedding(50, WIDTH)
            self.kinds, self.blocks = nn.Parameter(torch.randn(2, WIDTH)), nn.ModuleList(Quux() for _ in range(2))
            self.out = nn.Linear(WIDTH, 5)

        def forward(self, picture: Tensor, words: Tensor) -> Tensor:
            seen = self.cut(picture).flatten(2).transpose(1, 2) + self.kinds[0]
            x = torch.cat([self.words(words) + self.kinds[1], seen], 1)
            for block in self.blocks:
                x = block(x)
            return self.out(x[:, 0])

    graph = forward(Both(), picture(), ids(2, 9))
    assert genie.summary(graph).workload == "multimodal"
    assert said(in_module(graph, "blocks"), "modality") == {"multimodal"}
    assert said(in_module(graph, "blocks"), "phase") == {"fusion"}
    assert [node.operation for node in having(graph, "fusion")] == ["aten::cat"]
    assert having(graph, "patch_embedding")[0].module_path == "cut"


def test_two_towers_that_are_compared():
    class Compares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = Sees(), Reads()
            self.p, self.q = nn.Linear(WIDTH, 16, bias=False), nn.Linear(WIDTH, 16, bias=False)

        def forward(self, picture: Tensor, words: Tensor) -> Tensor:
            a = F.normalize(self.p(self.left(picture)[:, 0]), dim=-1)
            b = F.normalize(self.q(self.right(words)[:, -1]), dim=-1)
            return a @ b.t()

    graph = forward(Compares(), picture(), ids(2, 9))
    assert genie.summary(graph).workload == "multimodal"
    assert said(in_module(graph, "left"), "modality") == {"vision"}
    assert said(in_module(graph, "right"), "modality") == {"text"}
    [meets] = having(graph, "fusion")
    assert meets.operation in ("aten::mm", "aten::matmul")
    assert labelled(graph)["classifier_head"] == 0


def test_sounds_become_features():
    class Hears(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(1, 16, 10, 5), nn.Conv1d(16, WIDTH, 3, 2)
            self.blocks = nn.ModuleList(Quux() for _ in range(2))

        def forward(self, wave: Tensor) -> Tensor:
            x = F.gelu(self.b(F.gelu(self.a(wave)))).transpose(1, 2)
            for block in self.blocks:
                x = block(x)
            return x

    graph = forward(Hears(), numbers(2, 1, 400))
    assert phases(graph) == ["audio_encode"]
    assert genie.summary(graph).workload == "audio"


def test_a_number_beside_a_picture_is_no_text():
    """A picture of a class, told by its number, is a picture's work alone."""

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kind, self.a, self.b = nn.Embedding(10, 8), nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)

        def forward(self, picture: Tensor, kind: Tensor) -> Tensor:
            return self.b(F.relu(self.a(picture) + self.kind(kind)[:, :, None, None]))

    graph = forward(Told(), picture(), ids(2, of=10))
    assert "text" not in labelled(graph, "modality")
    assert genie.summary(graph).workload == "vision"


transformers = pytest.importorskip("transformers")
TEXT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
EYE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32}


def test_clip():
    words = TEXT | {"max_position_embeddings": 20, "eos_token_id": 59, "bos_token_id": 58, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=words, vision_config=EYE | {"patch_size": 8}, projection_dim=16)
    graph = forward(transformers.CLIPModel(config), pixel_values=picture(), input_ids=ids(2, 9))
    summary = genie.summary(graph)
    assert summary.workload == "multimodal"
    assert dict(summary.encoders) == {"text": "text_encode", "vision": "vision_encode"}
    assert said(in_module(graph, "text_model"), "modality") == {"text"}
    assert said(in_module(graph, "vision_model"), "modality") == {"vision"}


def test_llava():
    words = TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 64, "model_type": "llama"}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**EYE, patch_size=8),
        text_config=transformers.LlamaConfig(**{k: v for k, v in words.items() if k != "model_type"}),
        image_token_index=59,
        vision_feature_layer=-1,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval().to(DEVICE)
    words = torch.randint(3, 50, (1, 24))
    words[:, 2:18] = 59
    words, seen = words.to(DEVICE), numbers(1, 3, 32, 32)

    def program() -> Tensor:
        return model(input_ids=words, pixel_values=seen, use_cache=True).logits.argmax(-1)

    graph = annotated(program)
    assert genie.summary(graph).workload == "multimodal"
    assert said(in_module(graph, "model.vision_tower"), "modality") == {"vision"}
    assert said(in_module(graph, "model.vision_tower"), "phase") <= {"vision_encode", "forward"}
    assert said(in_module(graph, "model.language_model.layers"), "modality") == {"multimodal"}
    assert "prefill" in said(in_module(graph, "model.language_model.layers"), "phase")
    assert "block:0" in said(in_module(graph, "model.vision_tower"), "colocation_group")
    groups = said(in_module(graph, "model.language_model.layers"), "colocation_group")
    assert not any(group.startswith("block:") for group in groups)
