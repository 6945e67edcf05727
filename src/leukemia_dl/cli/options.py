"""What several commands share: the options that name data, recipe and preprocessing, their parsing, and tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukemia_dl.cli import completion
from leukemia_dl.errors import SettingsError, StoreError, unknown_name_error
from leukemia_dl.text import printable

if TYPE_CHECKING:
    import pandas as pd

    from leukemia_dl.datasets import Dataset
    from leukemia_dl.preprocess import Pipeline, Step
    from leukemia_dl.training.recipe import Recipe

__all__ = [
    "in_folder", "key_values", "load_dataset", "names", "pipeline", "print_table", "printable", "recipe", "stain_step",
    "whole_numbers", "write_csv",
]  # fmt: skip

_BY_BACKBONE = "{0}(,{0})*".format("[a-z0-9][a-z0-9_.-]*=[^,=]+")

DatasetName = Annotated[
    str, typer.Option(help="Name of a data set, see `leukemia-dl datasets`.", autocompletion=completion.datasets)
]
Root = Annotated[Path | None, typer.Option(help="Folder (or CSV file) of the data set.", show_default=False)]
DatasetOptions = Annotated[
    list[str] | None,
    typer.Option("--dataset-option", "-o", metavar="KEY=VALUE", help="Option of the data set, such as subjects=60."),
]
DropClasses = Annotated[
    list[str] | None, typer.Option("--drop-class", metavar="NAME", help="Leave a class out; repeat it for others.")
]
RecipeName = Annotated[
    str,
    typer.Option(
        help="Settings of each fit: a preset (`leukemia-dl recipes`) or a .toml file.",
        autocompletion=completion.recipes,
    ),
]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, gpu or gpu:1.", autocompletion=completion.devices)]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a setting of the recipe, such as epochs=10."),
]
ImageSize = Annotated[int | None, typer.Option(help="Short for --set image_size=N.", show_default=False)]
Stain = Annotated[
    str | None,
    typer.Option(help="Normalise stain: reinhard or macenko.", show_default="no", autocompletion=completion.stains),
]
SafeCsv = Annotated[
    bool, typer.Option("--safe-csv", help="Quote text in the CSV that a spreadsheet would run as a formula.")
]
Crop = Annotated[bool, typer.Option("--crop", help="Crop to the cell; its absolute size is then lost.")]


def recipe(name: str, pairs: Iterable[str] | None, **changes: Any) -> Recipe:
    """Return a preset or the file that --recipe names, as --set and its short forms say; None changes nothing."""
    from leukemia_dl.training.recipe import Recipe

    given = {key: value for key, value in changes.items() if value is not None}
    listed = key_values(pairs or [], "--set")
    for changed in (given, listed):
        if re.fullmatch(_BY_BACKBONE, str(changed.get("weights"))):
            changed["weights"] = dict(pair.split("=", 1) for pair in changed["weights"].split(","))
    for key in given.keys() & listed.keys():
        raise SettingsError(f"--set {key}=... and --{key.replace('_', '-')} say the same thing: give one of them.")
    if name.endswith(".toml"):
        return Recipe.from_toml(name).changed(**listed, **given)
    return Recipe.preset(name, **listed, **given)


def stain_step(name: str | None, on_black: bool = False) -> Step | None:
    """Return the step that --stain names, not fitted yet, for cells cut out on black or for smears."""
    from leukemia_dl.preprocess import Macenko, Reinhard

    known: dict[str, Step] = {"reinhard": Reinhard(), "macenko": Macenko(percentile=50.0) if on_black else Macenko()}
    if name is None:
        return None
    if name not in known:
        raise unknown_name_error("stain normalisation", name, known)
    return known[name]


def pipeline(dataset: Dataset, recipe: Recipe, image_size: int, stain: str | None, crop: bool) -> Pipeline:
    """Return the pipeline that the recipe, --stain and --crop ask for."""
    from leukemia_dl.preprocess import CropToCell, Pipeline, Resize

    steps = recipe.pipeline(image_size, dataset.info.canvas)
    if crop:
        steps = Pipeline((CropToCell(), Resize(image_size)))
    step = stain_step(stain, on_black=stain == "macenko" and _on_black(dataset))
    return steps if step is None else steps.then(step)


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


def load_dataset(
    name: str, root: Path | None, options: Iterable[str], drop_classes: list[str] | None = None
) -> Dataset:
    """Load a data set as the options --dataset, --root, --dataset-option and --drop-class say."""
    from leukemia_dl.datasets import Dataset

    values = key_values(options, "--dataset-option")
    for key in {"name", "root"} & set(values):
        raise SettingsError(f"--dataset-option {key}=... is given as {'--dataset' if key == 'name' else '--root'}.")
    if drop_classes:
        values["drop_classes"] = drop_classes
    return Dataset.load(name, root=root, **values)


def in_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Return the value of an option that names a file to write, if the folder for it is there."""
    if value is not None and not value.absolute().parent.is_dir():
        option, folder = param.opts[0], value.absolute().parent
        raise StoreError(f"{option} {value} cannot be written: there is no folder {folder}. Make it first.")
    return value


def write_csv(frame: pd.DataFrame, file: Path | None = None, safe: bool = False) -> None:
    """Write a frame as CSV in UTF-8 to a file, or to standard output of any encoding.

    Args:
        frame: The frame; bytes of file names that are not UTF-8 are spelled out.
        file: None for standard output.
        safe: Whether text that a spreadsheet would run as a formula begins with an apostrophe, and control characters
            are spelled out; otherwise text stays as it is.

    Raises:
        StoreError: If the file cannot be written.
    """
    if safe:
        frame = frame.map(lambda value: _quoted(value) if isinstance(value, str) else value)
    data = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "backslashreplace")
    if file is None:
        typer.echo(data, nl=False)
        return
    try:
        file.write_bytes(data)
    except OSError as error:
        raise StoreError(f"{file} cannot be written: {error.strerror or error}.") from error


def _quoted(text: str) -> str:
    text = printable(text, kept="")
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def print_table(frame: pd.DataFrame, formats: Mapping[str, str] | None = None, title: str = "") -> None:
    """Print a frame as a table on standard output, in full width where the output is no terminal."""
    import sys

    import pandas as pd
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for name in frame.columns:
        numeric = frame[name].dtype.kind in "iuf"
        table.add_column(Text(str(name)), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        cells = []
        for name, value in zip(frame.columns, row, strict=True):
            cells.append(Text("" if pd.isna(value) else printable(format(value, (formats or {}).get(str(name), "")))))
        table.add_row(*cells)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
