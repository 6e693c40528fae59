"""What this distribution offers. A module of its own: importing ``genie_pytorch`` imports PyTorch and makes the device,
which is more than it takes to list plugins."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from genie.errors import TorchMismatch
from genie.hookspecs import Offers, hookimpl

if TYPE_CHECKING:
    from genie.config import Settings
    from genie.interfaces import Frontend


@hookimpl
def genie_frontends() -> Offers:
    def pytorch(settings: Settings) -> Frontend:
        from genie_pytorch.frontend import PyTorchFrontend

        return PyTorchFrontend()

    return {"pytorch": pytorch}


def autoload() -> None:
    """Entry point of group ``torch.backends``: called at the end of ``import torch``, it makes the device known.

    Where it can't, programs that do without the device go on; ``import genie_pytorch`` raises what was wrong.
    """
    try:
        import genie_pytorch  # noqa: F401  (for its effect; half imported when it is what imports torch)
    except TorchMismatch as error:
        warnings.warn(f"remote_accelerator is not there: {error}", stacklevel=2)
