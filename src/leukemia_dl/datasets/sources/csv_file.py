"""Tables of a user that name images, labels and, if known, patients and sides: CSV files and frames."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.table import COLUMNS, DatasetInfo, Table, class_list, one_spelling
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import is_system_file
from leukemia_dl.text import counted

INFO = DatasetInfo("csv", "Images named by a CSV file", licence="yours", citation="yours")
_WANTED = (
    "Wanted: a CSV file in UTF-8, separated by commas, with a header: path,label[,subject,group,fold,split]. A folder "
    "per class is loaded by Dataset.from_folder"
)
_log = logging.getLogger(__name__)


def read_text_csv(path: Path, wanted: str = _WANTED) -> pd.DataFrame:
    """Return the cells of a CSV file as text without outer spaces, NA if empty. `wanted` ends the message of errors."""
    reading: Any = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "skipinitialspace": True}
    try:
        if not path.is_file():
            raise OSError("it is a folder" if path.is_dir() else "there is no such file")
        with warnings.catch_warnings():
            # Without index_col pandas would take the surplus of a long row for an index, and shift all columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, compression=None, index_col=False, **reading)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # ValueError: no UTF-8, no cells
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {str(error).strip()}. {wanted}.") from error
    cells: pd.DataFrame = frame.apply(lambda column: column.str.strip())
    return cells.mask(cells == "")


def read_frame(
    frame: pd.DataFrame,
    info: DatasetInfo,
    images_root: str | Path,
    class_names: Sequence[str] | None,
    source: str = "",
    must_exist: bool = True,
) -> Table:
    """Return the table of a data set from columns that a user named; all rows of a `source` (a file) need a label."""
    where = source or "The table"
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
    if source and (missing := table["label"].isna()).any():
        hint = "Label or remove the row; images without a label are loaded with Dataset.from_dataframe."
        raise DataError(f"{where} has no label in row {int(missing.to_numpy().argmax()) + 1}. {hint}")
    table["label"], names = _labels(table["label"], class_names, where)
    start = os.path.abspath(user_path(images_root, "images_root"))  # noqa: PTH100
    table["path"] = paths = _absolute(table["path"], start, where, must_exist)
    common = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    if "sample" not in table:
        inside = all(path.startswith(os.path.join(start, "")) for path in paths)  # noqa: PTH118
        table["sample"] = _below(start if inside else common, paths)
    below = _below(common, paths)
    hidden = np.array([any(map(is_system_file, name.split("/"))) for name in below])
    if hidden.any():
        rows, example = counted(int(hidden.sum()), "row"), below[int(hidden.argmax())]
        _log.warning("%s: left out %s of hidden or system files, such as %r", where, rows, example)
    return table[~hidden], names, info


def _labels(
    column: pd.Series[Any], class_names: Sequence[str] | None, where: str
) -> tuple[pd.Series[Any], tuple[str, ...]]:
    """Return labels in one spelling, and the class names."""
    wanted = () if class_names is None else class_list(class_names)
    labels = column.convert_dtypes().astype("object").map(str, na_action="ignore")
    labels = one_spelling(labels, "classes", wanted)
    names = wanted or tuple(sorted(labels.dropna().unique()))
    unknown = labels[labels.notna() & ~labels.isin(names)]
    if len(unknown):
        first = f"{unknown.iloc[0]!r} in row {unknown.index[0] + 1}"
        raise DataError(f"{where} has the unknown label {first}. Allowed by class_names: {', '.join(names)}.")
    if len(names) < 2:
        found = f"one class only, {names[0]!r}" if names else "no labels"
        raise DataError(
            f"{where} has {found}: there is nothing to tell apart. Pass the folder that holds the folders of the "
            "classes, or class_names to load images for prediction."
        )
    return labels, names


def _absolute(column: pd.Series[Any], start: str, where: str, must_exist: bool) -> list[str]:
    """Return the absolute paths of a column, of which each must be a file that no other row names."""
    seen: dict[str, int] = {}
    for row, path in enumerate(column, start=1):
        if not isinstance(path, (str, PurePath)) or not str(path).strip():
            raise DataError(f"{where} has no path in row {row}.")
        # Not pathlib, which takes seconds for a hundred thousand names; not resolve(), which would follow links.
        full = os.path.abspath(os.path.join(start, path))  # noqa: PTH100, PTH118
        if must_exist and not os.path.isfile(full):  # noqa: PTH113
            raise DataError(
                f"{where} names the file {str(path)!r} in row {row}, which is no file that can be read. Relative paths "
                f"start from {start}; for another folder pass images_root=..., command line: -o images_root=FOLDER."
            )
        if (first := seen.setdefault(full, row)) != row:
            raise DataError(f"{where} names the file {str(path)!r} twice, in rows {first} and {row}. Remove one.")
    return list(seen)


def _below(folder: str, paths: list[str]) -> list[str]:
    """Return paths in a folder as paths that start from it, with `/`."""
    start = len(os.path.join(folder, ""))  # noqa: PTH118
    return [path[start:].replace(os.sep, "/") for path in paths]
