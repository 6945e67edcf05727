"""The command `leukemia-dl`: one module per group of commands. Only typer is imported, so that `--help` is quick."""

import io
import logging
import os
import sys

import typer

from leukemia_dl.cli import benchmark, data, inventory, results
from leukemia_dl.errors import LeukemiaDLError
from leukemia_dl.text import printable


class _Printable(logging.Formatter):
    """Escapes control characters in warnings, since names of files may hold them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_HELP = "Train and compare image classifiers on leukemia cells. For research use only; not a medical device."
app = typer.Typer(name="leukemia-dl", help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)
for command in (
    benchmark.benchmark, results.report, data.audit, results.evaluate, results.best, data.predict, data.preview,
    inventory.backbones, inventory.datasets, inventory.recipes, inventory.doctor, data.download, data.verify,
    data.explain, data.export, data.demo,
):  # fmt: skip
    app.command()(command)
app.add_typer(results.runs, name="runs")


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
    except SystemExit as ended:
        if ended.code == 130:  # Ctrl-C
            sys.stderr.write("\nStopped. Finished trials are kept; the same command goes on from there.\n")
        raise
    except (LeukemiaDLError, OSError) as error:
        if os.environ.get("LEUKEMIA_DL_DEBUG"):
            raise
        sys.stderr.write(printable(f"Error: {error}\n"))
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        from leukemia_dl import __version__

        typer.echo(f"leukemia-dl {__version__}")
        raise typer.Exit()
