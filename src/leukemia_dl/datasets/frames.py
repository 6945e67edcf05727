"""Tables and arrays of a user to a `Dataset`, and two data sets to one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.datasets.columns import COLUMNS, one_spelling
from leukemia_dl.datasets.dataset import Dataset, DatasetInfo
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.preprocess.decode import check_image, is_system_file

__all__ = ["CANVAS", "class_list", "merge", "on_canvas", "read_arrays", "read_frame"]

_log = logging.getLogger(__name__)
CANVAS = "side in pixels of one canvas for all images, if they are at one scale; default: each is padded to a square"
"""Help for the option `canvas` of sources of a user's own images."""
_INFO = DatasetInfo("dataframe", "Images named by a table", licence="yours", citation="yours")


def read_frame(
    frame: pd.DataFrame,
    root: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    info: DatasetInfo = _INFO,
    where: str = "The table",
    canvas: int | None = None,
) -> Dataset:
    """Do what `Dataset.from_dataframe` says; class names may also be one text, separated by commas.

    `info` describes the data set, and `where` begins the error messages, which count rows from 1.
    """
    info = on_canvas(info, canvas)
    table = frame.rename(columns={name: str(name).strip().lower() for name in frame.columns})
    known = [name for name in table.columns if name in COLUMNS]
    if not {"path", "label"} <= set(known) or len(set(known)) != len(known):
        raise DataError(
            f"{where} needs the columns path and label, once each. "
            f"Found: {', '.join(map(str, frame.columns)) or 'none'}. "
            f"Further ones that are used: {', '.join(c for c in COLUMNS if c not in ('path', 'label'))}."
        )
    ignored = sorted(set(table.columns) - set(COLUMNS))
    if ignored:
        _log.warning(
            "%s has columns that are not used: %s. Used are: %s", where, ", ".join(ignored), ", ".join(COLUMNS)
        )
    table = table[known].reset_index(drop=True)
    if not len(table):
        raise DataError(f"{where} has no rows. Each names one image by its path and label.")
    labels = table["label"].convert_dtypes().astype("object")
    wanted = () if class_names is None else class_list(class_names)
    labels = one_spelling(labels.map(str, na_action="ignore"), "classes", wanted)
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
    start = Path.cwd() if root is None else Path(root).absolute()
    table["label"] = labels
    table["path"] = paths = _absolute(table["path"], start, where)
    if "sample" not in table:
        table["sample"] = _ids(paths, start)
    below = _ids(paths, Path(os.path.commonpath([str(Path(path).parent) for path in paths])))
    hidden = np.array([any(map(is_system_file, name.split("/"))) for name in below])
    if hidden.any():
        example = below[int(hidden.argmax())]
        _log.warning("%s: left out %d rows that name hidden or system files, such as %r", where, hidden.sum(), example)
    return Dataset(table[~hidden], names, info)


def on_canvas(info: DatasetInfo, canvas: int | None) -> DatasetInfo:
    """Return what is said about a data set, with another canvas unless that is None; SettingsError if it is none."""
    return info if canvas is None else replace(info, canvas=canvas)


def class_list(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names that came as a sequence, or as one text separated by commas.

    Raises:
        SettingsError: If they are something else.
    """
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(","))
    listed = tuple(names) if isinstance(names, Iterable) else (None,)
    if not all(isinstance(name, str) for name in listed):
        raise SettingsError(f"class_names are texts in label order, such as ('hem', 'all'). Received: {names!r}.")
    return tuple(str(name) for name in listed)


def read_arrays(
    images: NDArray[np.uint8],
    labels: ArrayLike,
    class_names: Sequence[str],
    info: DatasetInfo | None = None,
    samples: Sequence[str] | None = None,
    subjects: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    canvas: int | None = None,
) -> Dataset:
    """Do what `Dataset.from_arrays` says."""
    check_image(images, batch=True)
    numbers = np.asarray(labels)
    if images.ndim != 4 or numbers.shape not in ((len(images),), (len(images), 1)) or numbers.dtype.kind not in "iu":
        raise DataError(
            "Images are uint8 (n, height, width, 3) and labels n whole numbers. "
            f"Received: images {images.shape}, labels {numbers.dtype} {numbers.shape}."
        )
    names = class_list(class_names)
    if len(numbers) and not -1 <= numbers.min() <= numbers.max() < len(names):
        raise DataError(
            f"Labels are class indices from 0 to {len(names) - 1}, or -1 where they are not known. "
            f"Received: {numbers.min()} to {numbers.max()}."
        )
    codes = numbers.reshape(-1).astype(np.int64)
    columns: dict[str, object] = {
        "sample": [str(i) for i in range(len(images))] if samples is None else list(samples),
        "label": [None if code < 0 else names[code] for code in codes],
    }
    columns |= {
        "subject": None if subjects is None else list(subjects),
        "split": None if splits is None else list(splits),
    }
    wrong = [name for name, values in columns.items() if isinstance(values, list) and len(values) != len(images)]
    if wrong:
        raise DataError(f"There are {len(images):,} images, and another number of entries for {', '.join(wrong)}.")
    table = pd.DataFrame(columns)
    arrays = dict(zip(table["sample"].astype(str), images, strict=True))
    info = on_canvas(info or DatasetInfo("arrays", "Images in memory", "yours", "yours"), canvas)
    return Dataset(table, names, info, arrays)


def merge(first: Dataset, second: Dataset, label_map: Mapping[str, str]) -> Dataset:
    """Do what `Dataset.merge` says."""
    known = dict.fromkeys([*first.class_names, *second.class_names])
    unknown = sorted(set(label_map) - set(known))
    if unknown:
        raise DataError(f"label_map names {', '.join(map(repr, unknown))}; the labels are {', '.join(known)}.")
    class_names = tuple(dict.fromkeys(label_map.get(name, name) for name in known))
    tables: list[pd.DataFrame] = []
    arrays: dict[str, NDArray[np.uint8]] = {}
    for data in (first, second):
        prefix = "" if first.info.name == second.info.name else f"{data.info.name}/"
        table = data.table
        table["label"] = table["label"].replace(dict(label_map))
        for column in ("sample", "subject", "group", "same_cell"):
            table[column] = prefix + table[column]
        tables.append(table)
        arrays |= {prefix + sample: pixels for sample, pixels in data._arrays.items()}
    table = pd.concat(tables, ignore_index=True)
    if first.info == second.info and class_names == first.class_names:
        return Dataset(table, class_names, first.info, arrays)
    infos = (first.info, second.info)
    info = DatasetInfo(
        name="+".join(dict.fromkeys(info.name for info in infos)),
        title=" + ".join(dict.fromkeys(info.title for info in infos)),
        licence="; ".join(dict.fromkeys(info.licence for info in infos)),
        citation=" ".join(dict.fromkeys(info.citation for info in infos)),
        class_names=class_names,
        canvas=first.info.canvas if first.info.canvas == second.info.canvas else None,
        synthetic=first.info.synthetic or second.info.synthetic,
    )
    return Dataset(table, class_names, info, arrays)


def _absolute(column: pd.Series[str], start: Path, where: str) -> list[str]:
    seen: dict[str, int] = {}
    for row, path in enumerate(column, start=1):
        if not isinstance(path, (str, PurePath)) or not str(path).strip():
            raise DataError(f"{where} has no path in row {row}.")
        # Not pathlib, which takes seconds for a hundred thousand names; not resolve(), which would follow links.
        full = os.path.abspath(os.path.join(start, path))  # noqa: PTH100, PTH118
        if not os.path.isfile(full):  # noqa: PTH113
            what = "is a folder, not a file" if os.path.isdir(full) else "does not exist or is closed to you"  # noqa: PTH112
            raise DataError(
                f"{where} names the file {str(path)!r} in row {row}, which {what} ({full}). "
                f"Relative paths start from {start}: pass root=FOLDER if they should start elsewhere."
            )
        first = seen.setdefault(full, row)
        if first != row:
            raise DataError(f"{where} names the file {str(path)!r} twice, in rows {first} and {row}. Remove one.")
    return list(seen)


def _ids(paths: list[str], start: Path) -> list[str]:
    top = os.path.join(os.path.abspath(start), "")  # noqa: PTH100, PTH118
    if not all(path.startswith(top) for path in paths):
        top = os.path.join(os.path.commonpath([str(Path(path).parent) for path in paths]), "")  # noqa: PTH118
    return [path[len(top) :].replace(os.sep, "/") for path in paths]
