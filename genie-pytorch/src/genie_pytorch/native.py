"""The native recorder, loaded with a clear error where it can't be."""

from __future__ import annotations

import torch

from genie.errors import TorchMismatch
from genie_pytorch.built import TORCH_VERSION

if torch.__version__.split("+")[0] != TORCH_VERSION.split("+")[0]:
    raise TorchMismatch(
        f"genie-pytorch was built with torch {TORCH_VERSION}, and torch {torch.__version__} is installed",
        where=__name__,
        hint="build it again: pip install --no-build-isolation --force-reinstall --no-deps genie-pytorch",
    )

from genie_pytorch import _C  # noqa: E402  (it must not load before the check)

source_text = _C.source_text

__all__ = ["_C", "source_text"]
