"""`leukemia-dl cache`: what the cache folder holds, and how to empty it."""

from __future__ import annotations

import shutil
from typing import Annotated, Any

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import StoreError

__all__ = ["app", "limit_line"]

app = typer.Typer(help="List or clear what can be made again; LEUKEMIA_DL_CACHE chooses the folder.")


def limit_line() -> str:
    """Return a sentence on how much of the cache limit is used."""
    from leukemia_dl.datasets.cache import cache_limit, cache_use

    taken = sum(size for _, size, _ in cache_use()) / 1e9
    return f"Pixels and features: {taken:,.1f} GB of at most {cache_limit() / 1e9:g} GB (LEUKEMIA_DL_CACHE_LIMIT)"


@app.command("list")
def show() -> None:
    """List what the cache folder holds, with sizes."""
    import pandas as pd

    from leukemia_dl.datasets import cache_dir
    from leukemia_dl.datasets.hashes import HASH_FILE
    from leukemia_dl.datasets.pixels import stores
    from leukemia_dl.training.features import feature_files

    rows: list[dict[str, Any]] = []
    for place, index, size in stores():
        shape = "x".join(map(str, index["shape"][1:3])) if index else "-"
        images = index["shape"][0] if index else 0
        steps = ", ".join(step["step"] for step in index["pipeline"]["steps"]) if index else "incomplete or damaged"
        rows.append({"name": place.name, "images": images, "pixels": shape, "MB": size / 1e6, "made by": steps})
    for place in sorted(cache_dir().glob("synthetic-*")):
        files = [file for file in place.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        rows.append({"name": place.name, "images": len(files), "pixels": "-", "MB": size / 1e6, "made by": "drawn"})
    for file in feature_files(cache_dir() / "features"):
        by = "features of a frozen backbone" if not file.name.startswith(".") else "incomplete"
        rows.append({"name": file.name, "images": 0, "pixels": "-", "MB": file.stat().st_size / 1e6, "made by": by})
    hashes = cache_dir() / HASH_FILE
    if hashes.is_file():
        size = hashes.stat().st_size
        rows.append({"name": hashes.name, "images": 0, "pixels": "-", "MB": size / 1e6, "made by": "hashes of files"})
    if not rows:
        typer.echo(f"{cache_dir()} holds nothing.")
        return
    options.print_table(pd.DataFrame(rows), {"images": ",", "MB": ",.1f"}, title=str(cache_dir()))
    typer.echo(limit_line())


@app.command("clear")
def clear(
    synthetic: Annotated[bool, typer.Option("--synthetic", help="The drawn synthetic cells, too.")] = False,
) -> None:
    """Delete decoded images and features; they are made again when they are needed.

    Do not run it beside a benchmark.
    """
    from leukemia_dl.datasets import cache_dir
    from leukemia_dl.datasets.pixels import stores

    places = [place for place, _, _ in stores()]
    places += [place] if (place := cache_dir() / "features").is_dir() else []
    places += sorted(cache_dir().glob("synthetic-*")) if synthetic else []
    freed = 0
    for place in places:
        freed += sum(file.lstat().st_size for file in place.rglob("*") if not file.is_dir())
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise StoreError(f"{place} cannot be deleted: {error.strerror or error}.") from error
    typer.echo(f"Deleted {len(places)} of the folders in {cache_dir()}: {freed / 1e6:,.1f} MB.")
