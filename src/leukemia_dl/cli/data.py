"""`leukemia-dl audit`: what is wrong with a data set, before anything is learnt from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import DataError, StoreError

__all__ = ["audit"]

_FOLDER = "folder"


def audit(
    root: Annotated[Path, typer.Argument(help="Folder (or CSV file) of the data set.", show_default=False)],
    dataset: options.DatasetName = _FOLDER,
    option: options.DatasetOptions = None,
    manifest: Annotated[
        Path | None, typer.Option(help="What there should be: lines of sha256, size, path.", show_default=False)
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all findings to this file.", show_default=False)] = None,
) -> None:
    """Look for damaged, odd, blank, identical and doubled images, thin classes, and counts that differ.

    The exit status is 0 without errors, 1 with some.
    """
    from leukemia_dl.datasets.audit import audit as look

    if csv is not None and not csv.absolute().parent.is_dir():
        raise StoreError(f"--csv {csv} cannot be written: there is no folder {csv.absolute().parent}. Make it first.")
    try:
        data = options.load_dataset(dataset, root, option or [])
    except DataError as error:
        if dataset != _FOLDER:
            raise
        raise DataError(
            f"{error}\nIt was read as a folder per class. Name another kind with --dataset, such as --dataset "
            "c_nmc_2019 or --dataset csv; `leukemia-dl datasets` lists them."
        ) from error
    typer.echo(f"{data!r}, read as --dataset {dataset}")
    report = look(data, manifest=manifest)
    typer.echo(str(report))
    if csv is not None:
        try:
            # Names that are not UTF-8 are written with their bytes spelt out.
            report.findings.to_csv(csv, index=False, lineterminator="\n", errors="backslashreplace")
        except OSError as error:
            raise StoreError(f"--csv {csv} cannot be written: {error.strerror or error}.") from error
        typer.echo(f"Findings: {csv}")
    if not report.ok:
        raise typer.Exit(1)
