"""The command `leukemia-dl`: one module per group of commands.

Only typer is imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import inspect
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from leukemia_dl.cli import benchmark, cache, data, evaluate, inventory, predict, preview, report, runs
from leukemia_dl.errors import LeukemiaDLError
from leukemia_dl.text import printable

__all__ = ["app", "main"]


class _Stopped(Exception):
    """Ctrl-C, in a form that typer does not handle by itself."""


class _Stoppable(TyperGroup):
    """A group of commands that may be stopped by Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped from None


class _Printable(logging.Formatter):
    """Escapes control characters in warnings, since names of files may hold them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().format(record))


app = typer.Typer(
    name="leukemia-dl",
    cls=_Stoppable,
    help="Train and compare image classifiers on leukemia cells. For research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_COMMANDS: tuple[Callable[..., None], ...] = (
    benchmark.benchmark, report.report, data.audit, evaluate.evaluate, predict.predict, preview.preview,
    inventory.backbones, inventory.datasets, inventory.recipes, inventory.doctor, data.download, data.verify,
)  # fmt: skip
for command in _COMMANDS:
    app.command()(command)
app.add_typer(cache.app, name="cache")
app.add_typer(runs.app, name="runs")


def main() -> None:
    """Run a command; end in one plain line and exit status 1 for an expected error, 130 for Ctrl-C.

    LEUKEMIA_DL_DEBUG=1 shows the traceback instead.
    """
    for stream in (sys.stdout, sys.stderr):  # characters outside their encoding are spelled out
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING)
    logging.root.handlers[0].setFormatter(_Printable("%(levelname)s: %(message)s"))
    try:
        app(prog_name="leukemia-dl")
    except (KeyboardInterrupt, _Stopped):
        sys.stderr.write("\nStopped. Finished trials are kept; the same command goes on from there.\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has left (`leukemia-dl backbones | head`): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (LeukemiaDLError, OSError) as error:
        if os.environ.get("LEUKEMIA_DL_DEBUG"):
            raise
        message = _as_options(str(error))
        if isinstance(error, OSError) and not isinstance(error, LeukemiaDLError):  # such as a disk that is full
            message = f"{error.strerror or error}: {error.filename or 'no file named'}"
        sys.stderr.write(printable(f"Error: {message}\n"))
        sys.exit(1)


def _as_options(message: str) -> str:
    """Return a message of the library with its arguments, such as root='x', written as options, --root x."""
    known = inspect.signature(benchmark.benchmark).parameters

    def option(match: re.Match[str]) -> str:
        name, value = match[1], match[2].strip("'\"")
        if name not in known:
            return match[0]
        return f"--{name.replace('_', '-')}{'' if value == 'True' else f' {value}'}"

    advice, received, rest = message.partition("Received: ")
    advice = re.sub(r"\w+=\.\.\. \(command line: ([^)]*)\)", r"\1", advice)
    advice = re.sub(r"\w+=\.\.\., command line: | \(command line: [^)]*\)", "", advice)
    return re.sub(r"\b([a-z_]+)=('[^']*'|\"[^\"]*\"|\w[\w./-]*)", option, advice) + received + rest


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True),
) -> None:
    if version:
        from leukemia_dl import __version__

        typer.echo(f"leukemia-dl {__version__}")
        raise typer.Exit()
