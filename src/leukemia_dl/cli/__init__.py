"""The command `leukemia-dl`: one module per group of commands; what they do lives elsewhere.

Only typer is imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from leukemia_dl.cli import benchmark, cache, data, evaluate, inventory, options, predict, preview, report, runs
from leukemia_dl.errors import LeukemiaDLError

__all__ = ["app", "main"]


class _Stopped(Exception):
    """Ctrl-C, in a form that typer does not swallow."""


class _Stoppable(TyperGroup):
    """Runs whichever command is asked for, those of sub-commands included."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped from None


class _Printable(logging.Formatter):
    """Escapes control characters in warnings, since names of files may hold them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return options.printable(super().format(record))


app = typer.Typer(
    name="leukemia-dl",
    cls=_Stoppable,
    help="Train and compare image classifiers on leukemia cells. For research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("benchmark")(benchmark.benchmark)
app.command("report")(report.report)
app.command("audit")(data.audit)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("preview")(preview.preview)
app.command("backbones")(inventory.backbones)
app.command("datasets")(inventory.datasets)
app.command("recipes")(inventory.recipes)
app.add_typer(cache.app, name="cache")
app.add_typer(runs.app, name="runs")
app.command("doctor")(inventory.doctor)
app.command("download")(data.download)
app.command("verify")(data.verify)


def main() -> None:
    """Run a command; end in one plain line and exit status 1 for an expected error, 130 for Ctrl-C.

    LEUKEMIA_DL_DEBUG=1 shows the traceback instead, for those who look for the cause.
    """
    for stream in (sys.stdout, sys.stderr):  # characters outside their encoding are spelled out
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING)
    logging.root.handlers[0].setFormatter(_Printable("%(levelname)s: %(message)s"))
    try:
        app()
    except LeukemiaDLError as error:
        if os.environ.get("LEUKEMIA_DL_DEBUG"):
            raise
        sys.stderr.write(options.printable(f"Error: {error}\n"))
        sys.exit(1)
    except (KeyboardInterrupt, _Stopped):
        sys.stderr.write("\nStopped. What was finished is kept; the same command goes on from there.\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has left (`leukemia-dl backbones | head`): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # Names that are too long, a disk that is full: the machine's answer, which needs no traceback.
        if os.environ.get("LEUKEMIA_DL_DEBUG"):
            raise
        sys.stderr.write(options.printable(f"Error: {error.strerror or error}: {error.filename or 'no file named'}\n"))
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True),
) -> None:
    if version:
        from leukemia_dl import __version__

        typer.echo(f"leukemia-dl {__version__}")
        raise typer.Exit()
