"""`leukemia-dl report`: the page of a store, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    store: Annotated[Path, typer.Argument(help="A store, or one folder of its grids/.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option(help="Where the data set is on this machine.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write.", show_default="report.html in STORE")] = None,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Do not audit every image of the data set.")] = False,
    no_cards: Annotated[bool, typer.Option("--no-cards", help="Write no model cards; none beside --output.")] = False,
) -> None:
    """Write one HTML file with all that a benchmark found, and a model card per trained net."""
    from leukemia_dl.reporting import write_model_cards, write_report

    path = write_report(store, root=root, path=output, audit=not no_audit)
    typer.echo(f"Report:   {path}")
    if not no_cards and output is None and (cards := write_model_cards(store)):
        typer.echo(f"Cards:    {cards[0].parent} ({len(cards)})")
