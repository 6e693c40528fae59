"""Native modules of plugins, found by the framework release they were built with."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from genie.errors import TorchMismatch


def load(distribution: str, package: str, prefix: str, torch_version: str, directory: Path) -> Any:
    """The module ``prefix`` + version of ``package``. Raises :class:`TorchMismatch` when there is none, or it does
    not load, saying which releases there are modules for."""
    wanted = prefix + re.sub(r"\W", "_", torch_version)
    hint = f"build it again: pip install --no-build-isolation --force-reinstall --no-deps {distribution}"
    if not any(directory.glob(f"{wanted}.*")):
        others = sorted(path.name.split(".")[0].removeprefix(prefix) for path in directory.glob(f"{prefix}*"))
        built = f"was built with torch {', '.join(others)}" if others else "has not been built"
        raise TorchMismatch(
            f"{distribution} {built}; torch {torch_version} is installed", where=str(directory), hint=hint
        )
    try:
        return importlib.import_module(f"{package}.{wanted}")
    except ImportError as error:
        raise TorchMismatch(
            f"{distribution} does not load with torch {torch_version}: {error}", where=str(directory), hint=hint
        ) from error
