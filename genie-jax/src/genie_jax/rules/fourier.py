"""Fourier transforms, of the last axes."""

from __future__ import annotations

from typing import Any

import torch
from jax import lax

from genie_jax.rules import Equation, Tensor, rule


@rule("fft")
def _fft(here: Equation, x: Tensor, *, fft_type: Any, fft_lengths: Any) -> Tensor:
    axes = tuple(range(x.ndim - len(fft_lengths), x.ndim))
    if not axes:
        return x
    if 0 in x.shape or 0 in here.made[0].shape:
        made = here.made[0]
        like = x.real if x.is_complex() else x
        empty = torch.zeros(tuple(made.shape), dtype=like.dtype)
        return torch.complex(empty, empty) if fft_type != lax.FftType.IRFFT else empty
    if fft_type == lax.FftType.FFT:
        return torch.fft.fftn(x, dim=axes)
    if fft_type == lax.FftType.IFFT:
        return torch.fft.ifftn(x, dim=axes)
    if fft_type == lax.FftType.RFFT:
        return torch.fft.rfftn(x, dim=axes)
    return torch.fft.irfftn(x, s=tuple(fft_lengths), dim=axes)
