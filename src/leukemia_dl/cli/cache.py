"""`leukemia-dl cache`: list or empty the cache folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import StoreError

__all__ = ["app", "limit_line"]

app = typer.Typer(help="List or clear files that can be made again; LEUKEMIA_DL_CACHE chooses the folder.")
_PATTERNS = {"pixels": "pixels/*", "features": "features/*", "synthetic cells": "synthetic-*"}


def limit_line() -> str:
    """Return a sentence on how much of the cache limit is used."""
    from leukemia_dl.datasets.cache import cache_limit, cache_use

    taken = sum(size for _, size, _ in cache_use()) / 1e9
    return f"Pixels and features: {taken:,.1f} GB of at most {cache_limit() / 1e9:g} GB (LEUKEMIA_DL_CACHE_LIMIT)"


def _entries() -> list[tuple[str, Path, float]]:
    """Return kind, path and megabytes of everything in the cache folder that can be made again."""
    from leukemia_dl.datasets import cache_dir

    found = [(kind, path) for kind, pattern in _PATTERNS.items() for path in sorted(cache_dir().glob(pattern))]
    return [
        (kind, path, sum(file.lstat().st_size for file in (path, *path.rglob("*")) if file.is_file()) / 1e6)
        for kind, path in found
    ]


@app.command("list")
def show() -> None:
    """List the content of the cache folder, with sizes."""
    import pandas as pd

    from leukemia_dl.datasets import cache_dir

    rows = [{"kind": kind, "name": path.name, "MB": size} for kind, path, size in _entries()]
    if not rows:
        typer.echo(f"{cache_dir()} is empty.")
        return
    options.print_table(pd.DataFrame(rows), {"MB": ",.1f"}, title=str(cache_dir()))
    typer.echo(limit_line())


@app.command("clear")
def clear(
    synthetic: Annotated[bool, typer.Option("--synthetic", help="The drawn synthetic cells, too.")] = False,
) -> None:
    """Delete decoded images and features, which are made again when they are needed. Not beside a benchmark."""
    places = [entry for entry in _entries() if synthetic or entry[0] != "synthetic cells"]
    for _, path, _ in places:
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise StoreError(f"{path} cannot be deleted: {error.strerror or error}.") from error
    typer.echo(f"Deleted: {len(places)}, {sum(size for _, _, size in places):,.1f} MB.")
