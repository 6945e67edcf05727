"""Tables of a user, as CSV files or frames: checked, and made into the table of a data set."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.datasets.columns import COLUMNS, one_spelling
from leukemia_dl.datasets.info import DatasetInfo, Table
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.preprocess.decode import is_system_file
from leukemia_dl.text import counted

__all__ = ["class_list", "frame_table", "read_text_csv"]

_log = logging.getLogger(__name__)


def class_list(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names that came as a sequence, or as one text separated by commas; SettingsError for others."""
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(","))
    listed = tuple(names) if isinstance(names, Iterable) else (None,)
    if not all(isinstance(name, str) for name in listed):
        raise SettingsError(f"class_names are texts in label order, such as ('hem', 'all'). Received: {names!r}.")
    return tuple(str(name) for name in listed)


def read_text_csv(path: Path, wanted: str) -> pd.DataFrame:
    """Return the cells of a CSV file as text without outer spaces, NA if empty. `wanted` ends the message of errors."""
    reading: Any = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "skipinitialspace": True}
    try:
        with warnings.catch_warnings():
            # Without index_col pandas would take the surplus of a long row for an index, and shift all columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, compression=None, index_col=False, **reading)
    except (ValueError, pd.errors.ParserWarning) as error:  # also of an encoding that is not UTF-8, or an empty file
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {str(error).strip()}. {wanted}.") from error
    cells: pd.DataFrame = frame.apply(lambda column: column.str.strip())
    return cells.mask(cells == "")


def frame_table(
    frame: pd.DataFrame,
    info: DatasetInfo,
    images_root: Path,
    class_names: Sequence[str] | None = None,
    where: str = "The table",
    all_labelled: bool = False,
) -> Table:
    """Return the table of a data set from columns that a user named; see `Dataset.from_dataframe`.

    `where` begins the error messages, which count rows from 1; `all_labelled` says that each row needs a label.
    """
    table = frame.rename(columns={name: str(name).strip().lower() for name in frame.columns})
    known = [name for name in table.columns if name in COLUMNS]
    if not {"path", "label"} <= set(known) or len(set(known)) != len(known):
        raise DataError(
            f"{where} needs the columns path and label, once each. Found: "
            f"{', '.join(map(str, frame.columns)) or 'none'}. Further ones that are used: {', '.join(COLUMNS)}."
        )
    if ignored := sorted(set(table.columns) - set(COLUMNS)):
        patients = [name for name in ignored if name.startswith("patient") and "subject" not in known]
        hint = f". Rename {patients[0]} to subject, otherwise no patient is known" if patients else ""
        message = "%s has columns that are not used: %s. Used are: %s%s"
        _log.warning(message, where, ", ".join(ignored), ", ".join(COLUMNS), hint)
    table = table[known].reset_index(drop=True)
    if not len(table):
        raise DataError(f"{where} has no rows. Each names one image by its path and label.")
    table["label"], names = _labels(table["label"], class_names, where, all_labelled)
    table["path"] = paths = _absolute(table["path"], images_root, where)
    if "sample" not in table:
        table["sample"] = _ids(paths, images_root)
    below = _ids(paths, Path(os.path.commonpath([str(Path(path).parent) for path in paths])))
    hidden = np.array([any(map(is_system_file, name.split("/"))) for name in below])
    if hidden.any():
        example = below[int(hidden.argmax())]
        count = counted(int(hidden.sum()), "row")
        _log.warning("%s: left out %s of hidden or system files, such as %r", where, count, example)
    return table[~hidden], names, info


def _labels(
    column: pd.Series[Any], class_names: Sequence[str] | None, where: str, all_labelled: bool
) -> tuple[pd.Series[Any], tuple[str, ...]]:
    """Return labels in one spelling, and the class names."""
    wanted = () if class_names is None else class_list(class_names)
    labels = column.convert_dtypes().astype("object").map(str, na_action="ignore")
    if all_labelled and labels.isna().any():
        raise DataError(
            f"{where} has no label in row {int(labels.isna().to_numpy().argmax()) + 1}. Give each row one of the "
            "labels, or remove the row; images without a label are loaded with Dataset.from_dataframe."
        )
    labels = one_spelling(labels, "classes", wanted)
    names = tuple(sorted(labels.dropna().unique())) if class_names is None else wanted
    unknown = labels[labels.notna() & ~labels.isin(names)]
    if len(unknown):
        raise DataError(
            f"{where} has the unknown label {unknown.iloc[0]!r} in row {unknown.index[0] + 1}. "
            f"Allowed by class_names: {', '.join(names)}."
        )
    if len(names) < 2:
        raise DataError(
            f"{where} has {'one class only, ' + repr(names[0]) if names else 'no labels'}: there is nothing to tell "
            "apart. At least two are needed; pass class_names to load images for prediction."
        )
    return labels, names


def _absolute(column: pd.Series[Any], start: Path, where: str) -> list[str]:
    """Return the absolute paths of a column, of which each must be a file that no other row names."""
    seen: dict[str, int] = {}
    for row, path in enumerate(column, start=1):
        if not isinstance(path, (str, PurePath)) or not str(path).strip():
            raise DataError(f"{where} has no path in row {row}.")
        # Not pathlib, which takes seconds for a hundred thousand names; not resolve(), which would follow links.
        full = os.path.abspath(os.path.join(start, path))  # noqa: PTH100, PTH118
        if not os.path.isfile(full):  # noqa: PTH113
            why = "is a folder, not a file" if os.path.isdir(full) else "does not exist or is closed to you"  # noqa: PTH112
            raise DataError(
                f"{where} names the file {str(path)!r} in row {row}, which {why} ({full}). Relative paths start from "
                f"{start}; for another folder pass images_root=..., command line: -o images_root=FOLDER."
            )
        if (first := seen.setdefault(full, row)) != row:
            raise DataError(f"{where} names the file {str(path)!r} twice, in rows {first} and {row}. Remove one.")
    return list(seen)


def _ids(paths: list[str], start: Path) -> list[str]:
    """Return the paths below `start`, or if not all are there, below the deepest folder that holds all."""
    top = os.path.join(os.path.abspath(start), "")  # noqa: PTH100, PTH118
    if not all(path.startswith(top) for path in paths):
        top = os.path.join(os.path.commonpath([str(Path(path).parent) for path in paths]), "")  # noqa: PTH118
    return [path[len(top) :].replace(os.sep, "/") for path in paths]
