"""Options that several commands share, their parsing, and the output of tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option

from leukemia_dl.errors import SettingsError, StoreError
from leukemia_dl.text import printable

if TYPE_CHECKING:
    import pandas as pd

    from leukemia_dl.datasets import Dataset
    from leukemia_dl.preprocess import Pipeline
    from leukemia_dl.training.recipe import Recipe


DatasetName = Annotated[str, Option(help="One of `leukemia-dl datasets`.")]
Root = Annotated[Path | None, Option(help="Folder (or CSV file) of the data set.", show_default=False)]
DatasetOptions = Annotated[
    list[str] | None,
    Option("--dataset-option", "-o", metavar="KEY=VALUE", help="Option of the data set: subjects=60."),
]
DropClasses = Annotated[list[str] | None, Option("--drop-class", metavar="NAME", help="Leave a class out.")]
RecipeName = Annotated[str, Option(help="Settings of each fit: see `leukemia-dl recipes`, or a .toml file.")]
Changes = Annotated[
    list[str] | None,
    Option("--set", "-s", metavar="KEY=VALUE", help="Change a setting of the recipe, such as epochs=10."),
]
ImageSize = Annotated[int | None, Option(help="Side of the images in pixels.", show_default="the recipe's")]
Stain = Annotated[Literal["reinhard", "macenko"] | None, Option(help="Normalise the stain.", show_default="no")]
Crop = Annotated[bool, Option("--crop", help="Crop to the cell; its absolute size is then lost.")]
DeviceName = Annotated[str, Option(help="auto, cpu, gpu or gpu:1.")]
SafeCsv = Annotated[bool, Option("--safe-csv", help="Quote text that a spreadsheet would run as a formula.")]


def load_dataset(
    name: str, root: Path | None, options: Iterable[str] | None, drop_classes: list[str] | None = None
) -> Dataset:
    """Load a data set as the options --dataset, --root, --dataset-option and --drop-class say."""
    from leukemia_dl.datasets import Dataset

    values = key_values(options or [], "--dataset-option")
    if {"name", "root"} & set(values):
        raise SettingsError("--dataset and --root name the data set and its folder, not --dataset-option.")
    if drop_classes:
        values["drop_classes"] = drop_classes
    return Dataset.load(name, root=root, **values)


def recipe(name: str, pairs: Iterable[str] | None, image_size: int | None = None) -> Recipe:
    """Return the preset or the file that --recipe names, changed by --set and --image-size."""
    from leukemia_dl.training.recipe import Recipe

    changes = key_values(pairs or [], "--set")
    if "=" in str(changes.get("weights")):  # one for each backbone
        changes["weights"] = key_values(names(changes["weights"]), "--set weights")
    if image_size is not None:
        changes["image_size"] = image_size
    return Recipe.from_toml(name).changed(**changes) if name.endswith(".toml") else Recipe.preset(name, **changes)


def pipeline(dataset: Dataset, recipe: Recipe, image_size: int, stain: str | None, crop: bool) -> Pipeline:
    """Return the pipeline of a recipe, with the changes of --stain and --crop."""
    from leukemia_dl.preprocess import CropToCell, Macenko, Pipeline, Reinhard, Resize

    steps = recipe.pipeline(image_size, dataset.info.canvas)
    if crop:
        steps = Pipeline((CropToCell(), Resize(image_size)))
    if stain == "reinhard":
        return steps.then(Reinhard())
    if stain == "macenko":
        return steps.then(Macenko(percentile=50.0) if _on_black(dataset) else Macenko())
    return steps


def _on_black(dataset: Dataset) -> bool:
    """Return whether most of nine images of a data set, evenly spaced, show a cell cut out on black."""
    import numpy as np

    from leukemia_dl.preprocess import is_single_cell

    rows = np.unique(np.linspace(0, len(dataset) - 1, 9).astype(int))
    return float(np.mean([is_single_cell(dataset.decode(int(row))) for row in rows])) > 0.5


def names(text: str) -> list[str]:
    """Return the parts of a list separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(text: str, option: str) -> list[int]:
    """Return "0,1,2" as numbers; SettingsError names the option."""
    try:
        return [int(part) for part in names(text)]
    except ValueError:
        raise SettingsError(f"{option} takes whole numbers separated by commas. Received: {text!r}.") from None


def key_values(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """Return KEY=VALUE pairs as a dict; numbers, true and false are read as such, anything else as text."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"{option} takes KEY=VALUE. Received: {pair!r}.")
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
        result[key.strip()] = parsed if isinstance(parsed, (int, float, bool, str)) else value
    return result


def in_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return the value of an option that names a file to write, if its folder exists."""
    if value is not None and not value.absolute().parent.is_dir():
        option, folder = param.opts[0], value.absolute().parent
        raise StoreError(f"{option} {value} cannot be written: there is no folder {folder}. Make it first.")
    return value


def write_csv(frame: pd.DataFrame, file: Path | None = None, safe: bool = False) -> None:
    """Write a frame as CSV in UTF-8 to a file, or to standard output of any encoding.

    If `safe`, text that a spreadsheet would run as a formula begins with an apostrophe, and control characters are
    spelled out, as bytes of file names that are not UTF-8 always are.
    """
    if safe:
        frame = frame.map(lambda value: _quoted(value) if isinstance(value, str) else value)
    data = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "backslashreplace")
    if file is None:
        typer.echo(data, nl=False)
    else:
        file.write_bytes(data)


def _quoted(text: str) -> str:
    text = printable(text, kept="")
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def print_table(frame: pd.DataFrame, formats: Mapping[str, str] | None = None, title: str = "") -> None:
    """Print a frame as a table on standard output, in full width where the output is no terminal."""
    import pandas as pd
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for name in frame.columns:
        numeric = frame[name].dtype.kind in "iuf"
        table.add_column(Text(str(name)), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        values = zip(map(str, frame.columns), row, strict=True)
        cells = ["" if pd.isna(value) else format(value, (formats or {}).get(name, "")) for name, value in values]
        table.add_row(*[Text(printable(cell)) for cell in cells])
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_report(page: Path, cards: Sequence[Path]) -> None:
    """Print where a report and its model cards are."""
    typer.echo(f"Report:   {page}")
    if cards:
        typer.echo(f"Cards:    {cards[0].parent} ({len(cards)})")
