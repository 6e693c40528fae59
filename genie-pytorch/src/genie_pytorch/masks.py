"""Attention masks that a decoding step would look at, answered from the host.

Transformers asks of a padding mask in each step whether it masks anything, and takes a shorter way if not. During a
generation that is known without asking the device: the mask is the prompt's, with ones appended. Their own functions
decide; they are given the mask's counterpart on the host.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch

from genie_pytorch.lift import on_device

Tensor = torch.Tensor

_CAUSAL, _OTHER = "_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa"


class _Thread(threading.local):
    known: KnownMasks | None = None


_thread = _Thread()
_installed = False


class KnownMasks:
    """The masks of one generation: the decoder's as it began, and the encoder's, on the host."""

    def __init__(self, decoder: Tensor | None, encoder: Tensor | None) -> None:
        self._decoder = decoder.cpu().bool() if decoder is not None and decoder.dim() == 2 else None
        self._encoder = encoder.cpu().bool() if encoder is not None and encoder.dim() == 2 else None
        if self._decoder is not None or self._encoder is not None:
            _install()

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Inside, this thread's models need not look at them."""
        before, _thread.known = _thread.known, self
        try:
            yield
        finally:
            _thread.known = before

    def on_host(self, mask: Tensor, causal: bool) -> Tensor:
        """The mask's counterpart; itself if it is none of those known."""
        if causal:
            begun = self._decoder
            if begun is not None and mask.dim() == 2 and mask.shape[1] >= begun.shape[1] and len(mask) == len(begun):
                return torch.nn.functional.pad(begun, (0, mask.shape[1] - begun.shape[1]), value=True)
        elif self._encoder is not None and mask.shape == self._encoder.shape:
            return self._encoder
        return mask


def _install() -> None:
    global _installed
    if _installed:
        return
    _installed = True
    with contextlib.suppress(ImportError):
        theirs = import_module("transformers.masking_utils")
        for name in (_CAUSAL, _OTHER):
            if callable(function := getattr(theirs, name, None)):
                setattr(theirs, name, _answering(function, name == _CAUSAL))


def _answering(function: Callable[..., Any], causal: bool) -> Callable[..., Any]:
    def decide(padding_mask: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        known = _thread.known
        if known is not None and isinstance(padding_mask, Tensor) and on_device(padding_mask):
            padding_mask = known.on_host(padding_mask, causal)
        return function(padding_mask, *args, **kwargs)

    return decide
