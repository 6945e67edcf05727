"""`leukemia-dl audit | download | verify`: get the files of a data set, and check them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import DataError

__all__ = ["audit", "download", "verify"]

_FOLDER = "folder"


def audit(
    root: Annotated[Path, typer.Argument(help="Folder (or CSV file) of the data set.", show_default=False)],
    dataset: options.DatasetName = _FOLDER,
    dataset_option: options.DatasetOptions = None,
    drop_class: options.DropClasses = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write all findings to this file.", show_default=False, callback=options.in_folder),
    ] = None,
    safe_csv: options.SafeCsv = False,
) -> None:
    """Look for damaged, odd, blank, identical and doubled images, and counts that differ.

    The exit status is 0 without errors, 1 with some.
    """
    from leukemia_dl.datasets.audit import audit as audit_dataset

    try:
        data = options.load_dataset(dataset, root, dataset_option, drop_class)
    except DataError as error:
        if dataset != _FOLDER:
            raise
        raise DataError(
            f"{error}\nIt was read as a folder per class. Name another kind with --dataset, such as --dataset "
            "c_nmc_2019 or --dataset csv; `leukemia-dl datasets` lists them."
        ) from error
    typer.echo(f"{data!r}, read as --dataset {dataset}")
    report = audit_dataset(data)
    typer.echo(str(report))
    if csv is not None:
        options.write_csv(report.findings, csv, safe_csv)
        typer.echo(f"Findings: {csv}")
    if not report.ok:
        raise typer.Exit(1)


def download(
    name: Annotated[str, typer.Argument(help="Data set, such as c_nmc_2019.", show_default=False)],
    to: Annotated[Path, typer.Option(help="New or empty folder; after an interruption the same one.")],
) -> None:
    """Fetch a data set from Kaggle, unless it is there already, and check it."""
    from leukemia_dl.datasets import get_source
    from leukemia_dl.datasets.registry import download as fetch

    info = get_source(name).info
    typer.echo(f"{info.title}\nLicence: {info.licence}\nCite: {info.citation}")
    data = fetch(name, to)
    typer.echo(f"{len(data):,} images of {data.table['subject'].nunique():,} subjects in {to}, as declared.")


def verify(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.", show_default=False)],
    manifest: Annotated[Path, typer.Option(help="List of SHA-256 and paths, as sha256sum writes it.")],
    partial: Annotated[bool, typer.Option("--partial", help="Only some of the files need to be there.")] = False,
) -> None:
    """Compare the files of a data set with a list of hashes; exit status 1 if any differs."""
    from leukemia_dl.datasets.verify import verify as compare

    report = compare(root, manifest, partial=partial)
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)
