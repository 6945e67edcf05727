"""Options that several commands share, their parsing, and the output of tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option

from leukemia_dl.errors import SettingsError
from leukemia_dl.text import printable

if TYPE_CHECKING:
    import pandas as pd

    from leukemia_dl.datasets import Dataset
    from leukemia_dl.models import Embeddings
    from leukemia_dl.preprocess import Pipeline
    from leukemia_dl.training.recipe import Recipe

Pairs = list[str] | None
DatasetName = Annotated[str, Option(help="One of `leukemia-dl datasets`.")]
Root = Annotated[Path | None, Option(help="Folder (or CSV file) of the data set.", show_default=False)]
DatasetOptions = Annotated[Pairs, Option("--dataset-option", "-o", metavar="KEY=VALUE", help="Such as subjects=60.")]
DropClasses = Annotated[Pairs, Option("--drop-class", metavar="NAME", help="Leave a class out.")]
EmbeddingFiles = Annotated[Pairs, Option("--embeddings", metavar="NAME=FILE", help="Features: .npz, .parquet or .csv.")]
RecipeName = Annotated[str, Option(help="Settings of each fit: see `leukemia-dl recipes`, or a .toml file.")]
Changes = Annotated[Pairs, Option("--set", "-s", metavar="KEY=VALUE", help="Change the recipe, such as epochs=10.")]
ImageSize = Annotated[int | None, Option(help="Side of the images in pixels.", show_default="the recipe's")]
Stain = Annotated[Literal["reinhard", "macenko"] | None, Option(help="Normalise the stain.", show_default="no")]
Crop = Annotated[bool, Option("--crop", help="Crop to the cell; its absolute size is then lost.")]
DeviceName = Annotated[str, Option(help="auto, cpu, gpu or gpu:1.")]
SafeCsv = Annotated[bool, Option("--safe-csv", help="Quote text that a spreadsheet would run as a formula.")]


def load_dataset(name: str, root: Path | None, pairs: Pairs, drop_classes: Pairs) -> Dataset:
    """Load a data set as the options --dataset, --root, --dataset-option and --drop-class say."""
    from leukemia_dl.datasets import Dataset

    values = key_values(pairs, "--dataset-option") | ({"drop_classes": drop_classes} if drop_classes else {})
    if taken := sorted({"name", "root"} & set(values)):
        raise SettingsError(f"--dataset-option cannot set {', '.join(taken)}: use --dataset and --root.")
    return Dataset.load(name, root=root, **values)


def recipe(name: str, pairs: Pairs, image_size: int | None) -> Recipe:
    """Return the preset or the file that --recipe names, changed by --set and --image-size."""
    from leukemia_dl.training.recipe import Recipe

    changes = key_values(pairs, "--set") | ({} if image_size is None else {"image_size": image_size})
    if "=" in str(changes.get("weights")):  # one for each backbone
        changes["weights"] = key_values([*map(str, parts(changes["weights"]))], "--set weights")
    return Recipe.from_toml(name).changed(**changes) if name.endswith(".toml") else Recipe.preset(name, **changes)


def embeddings(pairs: Pairs) -> list[Embeddings]:
    """Return the features in the files that --embeddings names, registered, so that settings can name them."""
    from leukemia_dl.models import Embeddings, register_backbone

    files = {name: file for name, _, file in (pair.partition("=") for pair in pairs or [])}
    if not all(files.values()) or len(files) < len(pairs or []):
        raise SettingsError(f"--embeddings takes NAME=FILE, each name once. Received: {', '.join(pairs or [])}.")
    found = [Embeddings.from_file(name, file) for name, file in files.items()]
    for item in found:
        register_backbone(item, replace=True)
    return found


def pipeline(dataset: Dataset, recipe: Recipe, image_size: int, stain: str | None, crop: bool) -> Pipeline:
    """Return the pipeline of a recipe, with the changes of --stain and --crop."""
    import numpy as np

    from leukemia_dl.preprocess import CropToCell, Macenko, Pipeline, Reinhard, Resize, is_single_cell

    steps = recipe.pipeline(image_size, dataset.info.canvas)
    steps = Pipeline((CropToCell(), Resize(image_size))) if crop else steps
    if stain == "macenko":  # for cells cut out on black, or for smears, as most of nine images are
        rows = np.linspace(0, len(dataset) - 1, 9).astype(int)
        on_black = np.mean([is_single_cell(dataset.decode(int(row))) for row in rows]) > 0.5
        return steps.then(Macenko(percentile=50.0) if on_black else Macenko())
    return steps.then(Reinhard()) if stain else steps


def parts(text: str) -> list[Any]:
    """Return the parts of a list separated by commas, whole numbers as int."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) if part.isdecimal() else part for part in found]


def key_values(pairs: Pairs, option: str) -> dict[str, Any]:
    """Return KEY=VALUE pairs as a dict; numbers, true and false are read as such, anything else as text."""
    result: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"{option} takes KEY=VALUE. Received: {pair!r}.")
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
        result[key.strip()] = parsed if isinstance(parsed, (int, float, bool, str)) else value
    return result


def write_csv(frame: pd.DataFrame, file: Path | None = None, safe: bool = False) -> None:
    """Write a frame as CSV in UTF-8 to a file, whose folder is made, or to standard output of any encoding.

    If `safe`, text that a spreadsheet would run as a formula begins with an apostrophe, and control characters are
    spelled out, as bytes of file names that are not UTF-8 always are.
    """
    if safe:
        frame = frame.map(lambda value: _quoted(value) if isinstance(value, str) else value)
    data = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "backslashreplace")
    if file is None:
        typer.echo(data, nl=False)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def _quoted(text: str) -> str:
    text = printable(text, kept="")
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def print_table(frame: pd.DataFrame, formats: dict[str, str] | None = None, title: str | None = None) -> None:
    """Print a frame as a table on standard output, in full width where the output is no terminal."""
    import pandas as pd
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for name in frame.columns:
        numeric = frame[name].dtype.kind in "iuf"
        table.add_column(Text(str(name)), justify="right" if numeric else "left", overflow="fold")
    chosen = [(formats or {}).get(str(name), "") for name in frame.columns]
    for row in frame.itertuples(index=False):
        cells = ["" if pd.isna(value) else format(value, form) for value, form in zip(row, chosen, strict=True)]
        table.add_row(*[Text(printable(cell)) for cell in cells])
    Console(width=None if sys.stdout.isatty() else 200).print(table)
