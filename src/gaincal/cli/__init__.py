"""The command line.  A module per verb; every command imports what it needs when it runs."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from gaincal._version import __version__
from gaincal.cli import (
    apply,
    assemble,
    constants,
    darks,
    demo,
    embed,
    formula,
    geometry,
    inspect,
    refine,
    report,
    show,
    views,
)
from gaincal.errors import GaincalError, OutputError, one_line

SIGNAL_EXIT = 128


def _terminate(number: int, _frame: object) -> None:
    """Unwind on SIGTERM, as on Ctrl-C, so that nothing half-written stays."""
    sys.exit(SIGNAL_EXIT + number)


class _Commands(click.Group):
    """Turns errors into one line and an exit code; a traceback only with --debug."""

    def invoke(self, context: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(context)
        except BrokenPipeError:
            raise  # who read what is printed has gone, which click knows what to do about
        except (GaincalError, OSError, MemoryError) as error:
            if context.params.get("debug"):
                raise
            text = str(error) if isinstance(error, GaincalError) else one_line(f"{type(error).__name__}: {error}")
            click.echo(f"gaincal: {text}", err=True)
            context.exit(error.exit_code if isinstance(error, GaincalError) else OutputError.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gaincal")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Raw detector words, with the formula that calibrates them, calibrated when somebody reads.

    \b
    Exit codes: 0 done; 1 other error; 2 wrong request; 3 formula; 4 file; 5 file not trusted;
    6 formula and data do not fit; 7 output not written; 8 validate found errors.
    """  # noqa: D301  (\b is click's mark for lines that stay as they are)


main.add_command(apply.apply)
main.add_command(assemble.assemble)
main.add_command(constants.constants)
main.add_command(darks.darks)
main.add_command(demo.demo)
main.add_command(embed.embed)
main.add_command(formula.formula)
main.add_command(geometry.geometry)
main.add_command(inspect.info)
main.add_command(inspect.validate)
main.add_command(refine.refine)
main.add_command(report.report)
main.add_command(show.show)
main.add_command(views.views)
