"""`leukemia-dl report`: the page of a store, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    store: Annotated[Path, typer.Argument(help="The folder of a benchmark.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option(help="Where the data set lies here, if it has moved.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The file; STORE/report.html by default.", show_default=False)
    ] = None,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Do not look at every image of the data set.")] = False,
    no_cards: Annotated[bool, typer.Option("--no-cards", help="Write no model cards; none beside --output.")] = False,
) -> None:
    """Write one HTML file with all that a benchmark found, and a model card per trained net."""
    from leukemia_dl.reporting import write_model_cards, write_report

    path = write_report(store, root=root, path=output, audit=not no_audit)
    typer.echo(f"Report:   {path}")
    cards = [] if no_cards or output is not None else write_model_cards(store)
    if cards:
        typer.echo(f"Cards:    {cards[0].parent} ({len(cards)})")
