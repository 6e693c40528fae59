"""Vision models: kinds of convolutions, stages and where they may be cut, blocks, heads, denoisers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from patterns.recording import (
    DEVICE,
    annotated,
    forward,
    having,
    ids,
    in_module,
    kept,
    labelled,
    numbers,
    phases,
    put,
    said,
)
from torch import Tensor, nn

import genie
from genie.graph import BoundNode, Graph


def role_of(graph: Graph, path: str) -> str | None:
    """The role of a module's convolution or product."""
    products = ("aten::convolution", "aten::linear", "aten::addmm", "aten::mm")
    [node] = [n for n in in_module(graph, path) if n.operation in products]
    return node.semantics.role


def group_of(node: BoundNode) -> str | None:
    return node.semantics.colocation_group


def boundary(graph: Graph) -> list[tuple[str, str]]:
    """(operator, what is said) of every node at the end of a stage."""
    return [
        (node.operation, why.reason)
        for node in graph.nodes()
        for why in node.semantics.evidence
        if why.label == "colocation_group" and "go on" in why.reason
    ]


# --- classifiers


class Twice(nn.Module):
    """A residual block; in place, as people write it."""

    def __init__(self, wide: int, stride: int = 1, before: int = 0) -> None:
        super().__init__()
        before = before or wide
        self.a = nn.Sequential(nn.Conv2d(before, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(True))
        self.b = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide))
        self.short = nn.Conv2d(before, wide, 1, stride) if before != wide else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        y += self.short(x)
        return F.relu_(y)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(3, 2, 1))
        self.one, self.two = nn.Sequential(Twice(8), Twice(8)), nn.Sequential(Twice(16, 2, 8), Twice(16))
        self.pool, self.out = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pool(self.two(self.one(self.stem(x)))).flatten(1))


@pytest.fixture
def residual() -> Graph:
    return forward(Residual(), numbers(2, 3, 64, 64))


def test_kinds_of_convolutions(residual):
    assert role_of(residual, "stem") == "conv_stem"
    assert role_of(residual, "one.0.b") == "conv"
    assert role_of(residual, "two.0.a") == role_of(residual, "two.0.short") == "downsample"
    assert role_of(residual, "out") == "classifier_head"
    roles = labelled(residual)
    assert roles["norm"] == 9
    assert roles["pool"] == 2
    assert [node.operation for node in having(residual, "residual")] == ["aten::add_"] * 4  # one of a projection


def test_stages_by_resolution(residual):
    groups = list(dict.fromkeys(group for node in residual.nodes() if (group := group_of(node))))
    assert groups == ["stage:0", "stage:1", "stage:2"]
    assert {group_of(node) for node in in_module(residual, "one") if "empty" not in node.operation} == {"stage:1"}
    assert {group_of(node) for node in in_module(residual, "two") if "empty" not in node.operation} == {"stage:2"}
    assert group_of(in_module(residual, "out")[-1]) == "stage:2"


def test_a_boundary_says_what_goes_over_it(residual):
    ends = boundary(residual)
    assert [name for name, _ in ends] == ["aten::relu_", "aten::relu_"]
    assert "32×32" in ends[0][1]
    assert f"{2 * 8 * 16 * 16 * 4} bytes" in ends[1][1]


def test_a_vision_model_is_one_call_of_vision(residual):
    assert phases(residual) == ["vision_encode"]
    summary = genie.summary(residual)
    assert (summary.workload, dict(summary.encoders)) == ("vision", {"vision": "vision_encode"})
    assert kept(residual, "kv_cache") == kept(residual, "recurrent_state") == []


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("by", ["convolution", "linear"])
def test_squeeze_and_excitation(by, in_place):
    class Squeezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act = nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(in_place)
            make = (lambda i, o: nn.Conv2d(i, o, 1)) if by == "convolution" else nn.Linear
            self.b, self.c, self.d = make(8, 2), make(2, 8), nn.Conv2d(8, 8, 3, 1, 1, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            s = F.adaptive_avg_pool2d(x, 1) if by == "convolution" else x.mean((2, 3))
            s = torch.sigmoid(self.c(self.act(self.b(s))))
            return self.d(x * s.view(*s.shape[:2], 1, 1))

    graph = forward(Squeezes(), numbers(2, 3, 16, 16))
    assert role_of(graph, "b") == role_of(graph, "c") == "squeeze_excite"
    assert "aten::mul" in {node.operation for node in having(graph, "squeeze_excite")}
    assert role_of(graph, "d") == "depthwise_conv"
    assert {group_of(node) for node in having(graph, "squeeze_excite")} == {"stage:0"}


def test_depth_by_itself_then_points():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 16, 3, 1, 1, groups=4),
    )
    graph = forward(model, numbers(1, 3, 32, 32))
    assert [role_of(graph, str(i)) for i in range(4)] == ["conv_stem", "depthwise_conv", "pointwise_conv", "conv"]


def test_features_without_a_choice_are_no_classifier():
    """A product without bias whose result leaves the graph: a projection, as contrastive models have."""

    class Projects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 16, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).mean((2, 3)))

    assert labelled(forward(Projects(), numbers(2, 3, 16, 16)))["classifier_head"] == 0


def test_convolutions_of_words_have_no_stages():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Embedding(50, 16), nn.Conv2d(1, 8, (3, 16)), nn.Conv2d(8, 8, (3, 1))

        def forward(self, words: Tensor) -> Tensor:
            return self.c(self.b(self.a(words)[:, None])).amax((2, 3))

    graph = forward(Words(), ids(2, 12))
    assert labelled(graph, "colocation_group") == {}
    assert labelled(graph)["conv_stem"] == labelled(graph)["classifier_head"] == 0


# --- transformers


class Layer(nn.Module):
    def __init__(self, wide: int = 32) -> None:
        super().__init__()
        self.a, self.b = nn.LayerNorm(wide), nn.LayerNorm(wide)
        self.qkv, self.out = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide)
        self.up, self.down = nn.Linear(wide, 48), nn.Linear(48, wide)

    def forward(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        q, k, v = (e.view(*e.shape[:2], 4, -1).transpose(1, 2) for e in self.qkv(self.a(x) * scale).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.b(x))))


class Patches(nn.Module):
    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.cut = nn.Linear(3 * 64, 32) if flat else nn.Conv2d(3, 32, 8, 8)
        self.first, self.places = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32))
        self.layers, self.norm, self.out = nn.ModuleList(Layer() for _ in range(3)), nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.flat:
            x = x.view(-1, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, 3 * 64)
            x = self.cut(x)
        else:
            x = self.cut(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x)[:, 0])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("flat", [False, True])
def test_a_vision_transformer(flat, batch):
    graph = forward(Patches(flat), numbers(batch, 3, 32, 32))
    assert role_of(graph, "cut") == "patch_embedding"
    assert role_of(graph, "out") == "classifier_head"
    assert labelled(graph)["residual"] == 6  # the sum with positions is none
    assert phases(graph) == ["vision_encode"]
    for number in range(3):
        groups = {group_of(node) for node in in_module(graph, f"layers.{number}")}
        assert groups == {f"block:{number}"}
    assert group_of(in_module(graph, "out")[-1]) is None


def test_heads_of_attention_are_no_channels():
    """What attention gives is of four dimensions, laid flat for a product, as patches are; its queries are counted."""

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asks, self.out = nn.Parameter(torch.randn(1, 3, 6, 8)), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = F.scaled_dot_product_attention(self.asks.expand(len(x), -1, -1, -1), x, x)
            return self.out(y.transpose(1, 2).flatten(2))

    graph = forward(Asks(), numbers(2, 3, 6, 8))
    assert having(graph, "patch_embedding") == []
    assert "vision" not in labelled(graph, "modality")


# --- heads


def test_boxes_and_classes():
    """DETR-like: queries look at the picture, and give a class and a box each."""

    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eye = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 32, 3, 2, 1))
            self.asks, self.look = nn.Parameter(torch.randn(6, 32)), nn.MultiheadAttention(32, 4, batch_first=True)
            self.kind, self.box = nn.Linear(32, 5), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            seen = self.eye(x).flatten(2).transpose(1, 2)
            found = self.look(self.asks.expand(len(x), -1, -1), seen, seen, need_weights=False)[0]
            return {"logits": self.kind(found), "boxes": self.box(found).sigmoid()}

    graph = forward(Boxes(), numbers(2, 3, 32, 32))
    assert {node.module_path for node in having(graph, "detection_head")} == {"kind", "box.2"}
    assert {"stage:0", "stage:1"} == said(in_module(graph, "eye"), "colocation_group")
    assert said(in_module(graph, "look"), "colocation_group") == set()  # attention after convolutions is other work


def test_boxes_of_convolutions():
    """RetinaNet-like: one head for classes and one for boxes, over anchors of two levels."""

    class Anchors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
            self.kind, self.box = nn.Conv2d(8, 2 * 5, 3, 1, 1), nn.Conv2d(8, 2 * 4, 3, 1, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            levels = [F.relu(self.a(x))]
            levels.append(F.relu(self.b(levels[0])))
            kinds = [self._places(self.kind(level), 5) for level in levels]
            return torch.cat(kinds, 1), torch.cat([self._places(self.box(level), 4) for level in levels], 1)

        def _places(self, x: Tensor, many: int) -> Tensor:
            return x.view(len(x), -1, many, *x.shape[2:]).permute(0, 3, 4, 1, 2).reshape(len(x), -1, many)

    graph = forward(Anchors(), numbers(2, 3, 32, 32))
    assert {node.module_path for node in having(graph, "detection_head")} == {"kind", "box"}


class Painted(nn.Module):
    """A U-Net; ``out`` is scores of each position, or a picture again."""

    def __init__(self, out: int, transposed: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, 2) if transposed else nn.Conv2d(32, 16, 1)
        self.up2 = nn.ConvTranspose2d(16, 8, 2, 2) if transposed else nn.Conv2d(16, 8, 1)
        self.d, self.e, self.out = nn.Conv2d(32, 16, 3, 1, 1), nn.Conv2d(16, 8, 3, 1, 1), nn.Conv2d(8, out, 1)
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        c = F.relu(self.c(b))
        d = F.relu(self.d(torch.cat([b, self._up(self.up1, c)], 1)))
        e = F.relu(self.e(torch.cat([a, self._up(self.up2, d)], 1)))
        return self.out(e)

    def _up(self, by: nn.Module, x: Tensor) -> Tensor:
        return by(x) if self.transposed else by(F.interpolate(x, scale_factor=2.0))


@pytest.mark.parametrize("transposed", [False, True])
def test_scores_of_every_position(transposed):
    graph = forward(Painted(5, transposed), numbers(2, 3, 32, 32))
    assert role_of(graph, "out") == "segmentation_head"
    assert len(having(graph, "skip")) == len(having(graph, "upsample")) == 2
    stages = [group_of(node) for node in graph.nodes() if node.operation == "aten::convolution"]
    assert stages == [f"stage:{number}" for number in (0, 1, 2, 3, 3, 4, 4, 4)]


def test_a_picture_again_is_no_segmentation():
    graph = forward(Painted(3), numbers(2, 3, 32, 32))
    assert having(graph, "segmentation_head") == []
    assert phases(graph) == ["vision_encode"]


# --- denoisers


def sinusoid(time: Tensor, wide: int) -> Tensor:
    rate = torch.exp(-torch.arange(wide // 2, device=time.device) * 9.2 / (wide // 2))
    angle = time[:, None].float() * rate[None]
    return torch.cat([angle.sin(), angle.cos()], -1)


class Noisy(nn.Module):
    """A small U-Net that is told a time; how, ``told`` says."""

    def __init__(self, told: str = "sines", twice: bool = False) -> None:
        super().__init__()
        self.told = told
        self.table = nn.Embedding(100, 16)
        self.t1, self.t2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.a, self.b, self.c = nn.Conv2d(4, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.out = nn.Conv2d(32, 8 if twice else 4, 3, 1, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = sinusoid(time, 16) if self.told == "sines" else self.table(time)
        t = self.t2(F.silu(self.t1(t)))[:, :, None, None]
        a = F.silu(self.a(x) + t)
        b = F.silu(self.c(F.silu(self.b(a)) + t))
        return self.out(torch.cat([a, F.interpolate(b, scale_factor=2.0)], 1))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("twice", [False, True])
def test_one_call_of_a_denoiser(twice, batch):
    graph = forward(Noisy(twice=twice), numbers(batch, 4, 16, 16), ids(batch))
    assert phases(graph) == ["denoise"]
    assert genie.summary(graph).workload == "diffusion"
    assert role_of(graph, "t1") == role_of(graph, "t2") == "timestep_embedding"
    assert {"aten::sin", "aten::cos", "aten::cat"} <= {node.operation for node in having(graph, "timestep_embedding")}
    assert having(graph, "segmentation_head") == []
    assert said(in_module(graph, "out"), "phase") == {"denoise"}
    assert labelled(graph, "modality").keys() == {"vision"}  # a time is none


def test_a_time_without_data():
    """``torch.full`` on the device: nothing of the program enters but the picture."""
    model, x = Noisy().eval().to(DEVICE), numbers(2, 4, 16, 16)
    graph = annotated(lambda: model(x, torch.full((2,), 7, device=DEVICE)))
    assert phases(graph) == ["denoise"]


def test_a_picture_of_noise_made_on_the_device():
    model = Noisy().eval().to(DEVICE)
    graph = annotated(lambda: model(torch.randn(2, 4, 16, 16, device=DEVICE), torch.full((2,), 7, device=DEVICE)))
    assert phases(graph) == ["denoise"]


@pytest.mark.parametrize("told", ["sines", "table"])
def test_a_loop_of_a_denoiser(told):
    """Told by a table, only the loop shows it: the result becomes the next picture."""
    model, noise = Noisy(told).eval().to(DEVICE), numbers(1, 4, 16, 16)

    def program() -> Tensor:
        x = noise
        for time in (80, 60, 40, 20):
            x = x - 0.1 * model(x, torch.full((1,), time, device=DEVICE))
        return x

    graph = annotated(program)
    assert phases(graph) == ["denoise"] * 4
    assert genie.summary(graph).workload == "diffusion"


def test_prompts_keep_their_phase():
    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.reads = nn.Embedding(50, 32), nn.ModuleList(Layer() for _ in range(2))
            self.paints, self.into = Noisy(), nn.Linear(32, 4)

        def forward(self, x: Tensor, time: Tensor, words: Tensor) -> Tensor:
            read = self.words(words)
            for layer in self.reads:
                read = layer(read)
            return self.paints(x + self.into(read.mean(1))[:, :, None, None], time)

    graph = forward(Prompted(), numbers(1, 4, 16, 16), ids(1), ids(1, 9))
    assert said(in_module(graph, "reads"), "phase") == {"text_encode"}
    assert said(in_module(graph, "paints.out"), "phase") == {"denoise"}
    assert genie.summary(graph).workload == "diffusion"


def test_a_transformer_that_denoises():
    class Modulated(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.says = nn.Linear(32, 32)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, 1 + self.says(F.silu(t))[:, None])

    class Paints(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.t1, self.t2 = nn.Conv2d(4, 32, 2, 2), nn.Linear(16, 32), nn.Linear(32, 32)
            self.layers, self.out = nn.ModuleList(Modulated() for _ in range(2)), nn.Linear(32, 16)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            t = self.t2(F.silu(self.t1(sinusoid(time, 16))))
            y = self.cut(x).flatten(2).transpose(1, 2)
            for layer in self.layers:
                y = layer(y, t)
            y = self.out(y).view(-1, 4, 4, 2, 2, 4)
            return y.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)

    graph = forward(Paints(), numbers(2, 4, 8, 8), ids(2))
    assert phases(graph) == ["denoise"]
    assert genie.summary(graph).workload == "diffusion"
    assert said(in_module(graph, "layers.1"), "colocation_group") == {"block:1"}


# --- what is none


def test_positions_by_sines_are_no_times():
    """Sinusoidal positions of a text encoder and of a DETR, both computed on the way."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.layers = nn.Embedding(50, 32), nn.ModuleList(Layer() for _ in range(2))

        def forward(self, words: Tensor) -> Tensor:
            x = self.words(words) + sinusoid(torch.arange(words.shape[1], device=words.device), 32)
            for layer in self.layers:
                x = layer(x)
            return x

    class Sees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eye, self.layers = nn.Conv2d(3, 32, 3, 4, 1), nn.ModuleList(Layer() for _ in range(2))
            self.again = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.eye(x).flatten(2).transpose(1, 2)
            y = y + sinusoid(torch.arange(y.shape[1], device=x.device), 32)
            for layer in self.layers:
                y = layer(y)
            return F.interpolate(self.again(y).transpose(1, 2).unflatten(2, (8, 8)), scale_factor=4.0)

    for graph in (forward(Reads(), ids(2, 9)), forward(Sees(), numbers(2, 3, 32, 32))):
        assert having(graph, "timestep_embedding") == []
        assert "denoise" not in labelled(graph, "phase")


def test_a_picture_in_every_call_is_no_loop():
    """A recurrent network over video: its state is a map, too, but a new picture enters each time."""

    class Flows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return torch.tanh(self.a(x) + self.b(state))

    model, frames = Flows().eval().to(DEVICE), [numbers(1, 4, 16, 16) for _ in range(4)]

    def program() -> Tensor:
        state = put(torch.zeros(1, 4, 16, 16))
        for frame in frames:
            state = model(frame, state)
        return state

    assert "denoise" not in labelled(annotated(program), "phase")


def test_the_same_model_on_new_pictures_is_no_loop():
    model, pictures = Painted(3).eval().to(DEVICE), [numbers(1, 3, 16, 16) for _ in range(3)]
    graph = annotated(lambda: [model(picture) for picture in pictures])
    assert set(phases(graph)) == {"vision_encode"}
    assert len(phases(graph)) == 3
    stages = {group_of(node) for node in graph.nodes() if node.operation == "aten::convolution"}
    assert stages == {f"stage:{number}" for number in range(5)}  # counted anew in each call


@pytest.mark.parametrize("empty", ["nothing", "words"])
def test_nothing_is_said_of_what_has_no_pictures(empty):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)) if empty == "nothing" else nn.Embedding(50, 8)
    graph = forward(model, numbers(2, 8) if empty == "nothing" else ids(2, 5))
    assert labelled(graph, "colocation_group") == {}
    assert not labelled(graph).keys() & {"conv", "classifier_head", "patch_embedding", "timestep_embedding"}
