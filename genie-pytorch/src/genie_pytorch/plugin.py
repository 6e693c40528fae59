"""What this distribution offers. PyTorch and the recorder are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
