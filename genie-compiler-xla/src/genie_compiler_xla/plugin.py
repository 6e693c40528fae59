"""What this distribution offers to Genie. jaxlib is imported with the first program."""

from __future__ import annotations

from genie.compilers import Compiler
from genie.config import Settings
from genie.hookspecs import Offers, hookimpl


@hookimpl
def genie_compilers() -> Offers:
    def xla(settings: Settings) -> Compiler:
        from genie_compiler_xla.compiler import XlaCompiler

        return XlaCompiler(seconds=settings.compile_seconds)

    return {"xla": xla}
