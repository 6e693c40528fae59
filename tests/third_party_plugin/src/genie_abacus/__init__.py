"""What this plugin offers; nothing heavier than that is imported here."""

from genie import hookimpl


@hookimpl
def genie_backends():
    def abacus(settings):
        from genie_abacus.backend import Abacus

        return Abacus()

    return {"abacus": abacus}


@hookimpl
def genie_patterns():
    def residual(settings):
        from genie_abacus.pattern import Residual

        return Residual()

    return {"residual": residual}
