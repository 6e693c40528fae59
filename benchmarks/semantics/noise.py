"""Diffusion: a denoiser called in a loop, each time for an earlier time. Every call is ``denoise``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semantics.ingredients import TEXT, numbers, tokens
from semantics.stages import Stage
from semantics.truth import Call, Model, Program, Tower, Truth, calls

STEPS, WIDTH = 4, 32

# What is denoised takes the place of itself at each call, as a state does, and is the input of each call: it is kept as
# ``undecided``.
IMAGES = Truth("diffusion", calls(*["denoise"] * STEPS), (Tower("", "vision"),))
# Words condition the denoiser by cross-attention: what it computes is images, and comes from words too. Whether that is
# fusion or denoising, the definitions leave open; nor can a denoiser by itself know that the features were words.
PROMPTED = Truth(
    "diffusion",
    calls(Call("text_encode", alone="text_encoder"), *["denoise"] * STEPS),
    (
        Tower("", "text", calls=(0,)),
        Tower("", ("vision", "multimodal"), calls=tuple(range(1, STEPS + 1))),
    ),
    fusion_open=True,
)


def _scheduled(model: Any, stage: Stage, x: Tensor, **given: Any) -> Tensor:
    from diffusers import DDIMScheduler  # type: ignore[import-not-found,unused-ignore]

    scheduler = DDIMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(STEPS)
    stage.keep(undecided=[x])
    for time in scheduler.timesteps:
        with stage.call():
            noise = model(x, stage.put(time), **given).sample
            x = scheduler.step(noise, time, x).prev_sample
            stage.keep(undecided=[x])
    return x


def _unet2d(stage: Stage) -> Program:
    from diffusers import UNet2DModel  # type: ignore[import-not-found,unused-ignore]

    model = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    ).eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        return [_scheduled(model, stage, stage.put(numbers(1, 3, 16, 16)))]

    return Program(run, (model,))


def _prompted(stage: Stage) -> Program:
    from diffusers import UNet2DConditionModel  # type: ignore[import-not-found,unused-ignore]
    from transformers import CLIPTextConfig, CLIPTextModel

    words = CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=32,
    ).eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        with stage.call():
            features = words(stage.put(tokens(batch=1))).last_hidden_state
        return [_scheduled(model, stage, stage.put(numbers(1, 4, 16, 16)), encoder_hidden_states=features)]

    return Program(run, (words, model))


def _dit_of_diffusers(stage: Stage) -> Program:
    from diffusers import DiTTransformer2DModel  # type: ignore[import-not-found,unused-ignore]

    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        x, labels = stage.put(numbers(1, 4, 8, 8)), stage.put(torch.tensor([3]))
        stage.keep(undecided=[x])
        for time in (75, 50, 25, 0):
            with stage.call():
                noise = model(x, torch.tensor([time], device=stage.device), class_labels=labels).sample
                x = x - 0.2 * noise
                stage.keep(undecided=[x])
        return [x]

    return Program(run, (model,))


def _sinusoid(time: Tensor, width: int) -> Tensor:
    rate = torch.exp(-torch.arange(0, width, 2, device=time.device) / width * 9.2)
    angle = time[:, None].float() * rate
    return torch.cat([angle.sin(), angle.cos()], -1)


class NoisyUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.enter, self.down = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, WIDTH, 3, 2, 1)
        self.norm1, self.norm2 = nn.GroupNorm(4, WIDTH), nn.GroupNorm(4, WIDTH)
        self.middle, self.up = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.Conv2d(WIDTH, 16, 3, 1, 1)
        self.leave = nn.Conv2d(32, 3, 3, 1, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = self.time(_sinusoid(time, WIDTH))[:, :, None, None]
        a = self.enter(x)
        b = F.silu(self.norm1(self.down(F.silu(a)))) + t
        b = b + F.silu(self.norm2(self.middle(b)))
        b = self.up(F.interpolate(b, scale_factor=2.0))
        return self.leave(F.silu(torch.cat([a, b], 1)))  # type: ignore[no-any-return]


def _plain_unet(stage: Stage) -> Program:
    model = NoisyUNet().eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        x, strength = stage.put(numbers(2, 3, 16, 16)), 0.9
        stage.keep(undecided=[x])
        for time in (90, 60, 30, 0):
            with stage.call():
                noise = model(x, torch.full((2,), time, device=stage.device))
                x = (x - (1 - strength) * noise) / strength**0.5
                stage.keep(undecided=[x])
        return [x]

    return Program(run, (model,))


class Modulated(nn.Module):
    """A block of a DiT: time shifts, scales and gates it."""

    def __init__(self) -> None:
        super().__init__()
        self.said = nn.Linear(WIDTH, 6 * WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        s1, m1, g1, s2, m2, g2 = self.said(F.silu(t))[:, None].chunk(6, -1)
        y = F.layer_norm(x, (WIDTH,)) * (1 + m1) + s1
        q, k, v = (e.view(*e.shape[:2], 4, 8).transpose(1, 2) for e in self.qkv(y).chunk(3, -1))
        x = x + g1 * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + g2 * self.mlp(F.layer_norm(x, (WIDTH,)) * (1 + m2) + s2)  # type: ignore[no-any-return]


class PlainDiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(4, WIDTH, 2, 2), nn.Parameter(torch.randn(1, 16, WIDTH) * 0.1)
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Modulated() for _ in range(2))
        self.out = nn.Linear(WIDTH, 16)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = self.time(_sinusoid(time, WIDTH))
        y = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            y = block(y, t)
        y = self.out(y).view(-1, 4, 4, 2, 2, 4)
        return y.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)  # type: ignore[no-any-return]


def _plain_dit(stage: Stage) -> Program:
    model = PlainDiT().eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        x = stage.put(numbers(2, 4, 8, 8))
        stage.keep(undecided=[x])
        for time in (90, 60, 30, 0):
            with stage.call():
                x = x - 0.25 * model(x, torch.full((2,), time, device=stage.device))
                stage.keep(undecided=[x])
        return [x]

    return Program(run, (model,))


MODELS = (
    Model("diffusers-unet", _unet2d, IMAGES, ("diffusers",), "diffusers"),
    Model("diffusers-prompted-unet", _prompted, PROMPTED, ("diffusers", "transformers"), "diffusers"),
    Model("diffusers-dit", _dit_of_diffusers, IMAGES, ("diffusers",), "diffusers"),
    Model("plain-noise-unet", _plain_unet, IMAGES),
    Model("plain-dit", _plain_dit, IMAGES),
)
