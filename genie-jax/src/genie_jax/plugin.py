"""What this distribution offers to Genie."""

from __future__ import annotations

from genie.config import Settings
from genie.hookspecs import Offers, hookimpl
from genie.interfaces import Frontend


@hookimpl
def genie_frontends() -> Offers:
    def jax(settings: Settings) -> Frontend:
        from genie_jax.frontend import JaxFrontend

        return JaxFrontend()

    return {"jax": jax}
