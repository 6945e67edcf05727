"""`leukemia-dl download | verify`: get the files of a data set, and see whether they are the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["download", "verify"]


def download(
    name: Annotated[str, typer.Argument(help="Data set, such as c_nmc_2019.", show_default=False)],
    to: Annotated[Path, typer.Option(help="New or empty folder; after an interruption the same one.")],
    archive: Annotated[
        Path | None, typer.Option(help="Unpack this archive, fetched by hand, instead.", show_default=False)
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Compare with this list of SHA-256 at the end.", show_default=False)
    ] = None,
) -> None:
    """Fetch a data set from Kaggle, or unpack one that was fetched by hand, and check it."""
    from leukemia_dl.datasets import get_source
    from leukemia_dl.datasets.download import download as fetch

    info = get_source(name).info
    typer.echo(f"{info.title}\nLicence: {info.licence}\nCite: {info.citation}")
    done = fetch(name, to, archive=archive, manifest=manifest)
    subjects = done.dataset.table["subject"].nunique()
    typer.echo(f"{len(done.dataset):,} images of {subjects:,} subjects in {done.root}, as declared.")
    if done.report is not None:
        typer.echo(str(done.report))
        if not done.report.ok:
            raise typer.Exit(1)


def verify(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.", show_default=False)],
    manifest: Annotated[Path, typer.Option(help="List of SHA-256, sizes and paths, or as sha256sum writes it.")],
    partial: Annotated[bool, typer.Option("--partial", help="Only some of the files need to be there.")] = False,
) -> None:
    """Compare the files of a data set with a list of hashes; exit status 1 if any differs."""
    from leukemia_dl.datasets.verify import verify as compare

    report = compare(root, manifest, partial=partial)
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)
