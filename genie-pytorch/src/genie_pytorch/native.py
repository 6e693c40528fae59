"""The native recorder, found by the torch it was built with."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch

from genie.errors import TorchMismatch

_PREFIX = "_recorder_torch_"


def load(torch_version: str = torch.__version__, directory: Path = Path(__file__).parent) -> Any:
    """The module built with this torch. Raises :class:`TorchMismatch` when there is none, or it does not load."""
    wanted = _PREFIX + re.sub(r"\W", "_", torch_version)
    hint = "build it again: pip install --no-build-isolation --force-reinstall --no-deps genie-pytorch"
    if not any(directory.glob(f"{wanted}.*")):
        others = sorted(path.name.split(".")[0].removeprefix(_PREFIX) for path in directory.glob(f"{_PREFIX}*"))
        built = f"was built with torch {', '.join(others)}" if others else "has not been built"
        raise TorchMismatch(
            f"genie-pytorch {built}; torch {torch_version} is installed", where=str(directory), hint=hint
        )
    try:
        return importlib.import_module(f"{__package__}.{wanted}")
    except ImportError as error:
        raise TorchMismatch(
            f"genie-pytorch does not load with torch {torch_version}: {error}", where=str(directory), hint=hint
        ) from error


_C = load()
source_text = _C.source_text
