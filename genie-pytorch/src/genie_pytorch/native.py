"""The native recorder, found by the torch it was built with."""

from __future__ import annotations

from pathlib import Path

import torch

from genie import native

_C = native.load("genie-pytorch", __package__, "_recorder_torch_", torch.__version__, Path(__file__).parent)
source_text = _C.source_text
