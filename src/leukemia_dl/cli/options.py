"""What several commands share: parsing of lists and of KEY=VALUE options, and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukemia_dl.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from leukemia_dl.datasets import Dataset

__all__ = ["key_values", "load_dataset", "names", "print_table", "whole_numbers"]


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


def load_dataset(name: str, root: Path | None, options: Iterable[str]) -> Dataset:
    """Load a data set as the options --dataset, --root and --option say."""
    from leukemia_dl.datasets import Dataset

    values = key_values(options, "--option")
    for key in {"name", "root"} & set(values):
        raise SettingsError(f"--option {key}=... is given as {'--dataset' if key == 'name' else '--root'}.")
    return Dataset.load(name, root=root, **values)


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
            cells.append(Text("" if pd.isna(value) else format(value, (formats or {}).get(str(name), ""))))
        table.add_row(*cells)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
