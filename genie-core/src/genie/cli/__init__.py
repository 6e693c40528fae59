"""The ``genie`` command."""

from __future__ import annotations

from typing import Annotated

import typer

import genie
from genie import telemetry
from genie.cli import artifacts, doctor, nodes, plugins, profiles, programs, security, top
from genie.cli.printing import complain, options, out
from genie.errors import GenieError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(plugins.app, name="plugins")
app.add_typer(nodes.app, name="node")
app.add_typer(profiles.app, name="profile")
app.add_typer(security.certs_app, name="certs")
app.add_typer(security.tokens_app, name="tokens")
app.command()(nodes.serve)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(programs.run)
app.command()(top.top)
app.command()(doctor.doctor)
app.command()(artifacts.inspect)
app.command()(artifacts.diff)
app.command()(artifacts.explain)
app.command("calibrate")(profiles.calibrate_devices)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"genie {genie.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Run programs on remote accelerators."""
    options.debug = debug


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status: 0, 1 for an error of ours, 2 for wrong usage, 130 when interrupted.

    ``genie diff`` ends as diff does: 0 when both are equal, 1 when they differ, 2 for any trouble.
    """
    telemetry.configure()  # standard output is for answers; a runtime or a node sets its own level
    try:
        status = typer.main.get_command(app).main(args=argv, prog_name="genie", standalone_mode=False)
    except GenieError as error:
        complain(error)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        # click's own errors (wrong options and the like) know how to show themselves
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            raise
        show()
        return int(code)
    return status if isinstance(status, int) else 0
