"""What readers of data sets share: names of classes, CSV files as text, and the one copy of a published data set."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.table import one_spelling
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.preprocess.decode import image_files, is_system_file, warn_left_out

__all__ = ["class_list", "clean_labels", "find_copy", "listed", "read_text_csv", "require_folder"]


def class_list(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names that came as a sequence, or as one text separated by commas; SettingsError for others."""
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(","))
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise SettingsError(f"class_names are texts in label order, such as ('hem', 'all'). Received: {names!r}.")
    return tuple(str(name) for name in names)


def clean_labels(
    labels: pd.Series[Any], class_names: Sequence[str] | None, where: str, hint: str = ""
) -> tuple[pd.Series[Any], tuple[str, ...]]:
    """Return labels in one spelling, and the class names; DataError if a label is no class, or there is one class."""
    wanted = () if class_names is None else class_list(class_names)
    labels = one_spelling(labels, "classes", wanted)
    names = wanted if wanted else tuple(sorted(labels.dropna().unique()))
    unknown = labels[labels.notna() & ~labels.isin(names)]
    if len(unknown):
        raise DataError(
            f"{where} has the unknown label {unknown.iloc[0]!r} in row {unknown.index[0] + 1}. "
            f"Allowed by class_names: {', '.join(names)}."
        )
    if len(names) < 2:
        found = f"one class only, {names[0]!r}" if names else "no labels"
        raise DataError(f"{where} has {found}: there is nothing to tell apart. {hint or 'Pass class_names.'}")
    return labels, names


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


def listed(folder: Path, suffix: str = "") -> list[Path]:
    """Return the folders in a folder, or its files with a suffix, that are no system files; sorted."""
    found = [path for path in folder.iterdir() if not is_system_file(path)]
    if suffix:
        return sorted(path for path in found if path.suffix.lower() == suffix and path.is_file())
    return sorted(path for path in found if path.is_dir())


def require_folder(root: str | Path, wanted: str) -> Path:
    """Return `root`, absolute. Raises DataError if it is no folder; `wanted` is its content, for the message."""
    root = user_path(root, "root")
    if root.is_dir():
        return root
    above = next((folder for folder in root.parents if folder.is_dir()), root)
    problem = f"does not exist (the nearest folder that exists is {above})"
    if root.is_file():
        archive = zipfile.is_zipfile(root)
        problem = "is an archive, not a folder: unpack it first" if archive else "is a file, not a folder"
    raise DataError(f"{root} {problem}. Wanted: {wanted}.")


def find_copy(
    root: str | Path,
    layout: re.Pattern[str],
    is_image: Callable[[re.Match[str]], bool],
    inner: Collection[str],
    title: str,
    wanted: str,
    names: str,
) -> tuple[Path, list[re.Match[str]]]:
    """Return the folder of the one copy of a data set in `root`, and the matches of its images' paths.

    `layout` matches the paths of files in the right folders, its group `copy` the folder of the copy; `is_image` says
    whether the file's name is right too, and a warning counts the others. Of several copies the nearest to `root` is
    taken. A `root` whose name is in `inner` (lower case) is inside of a copy: the search starts above it. `title`, the
    `wanted` folders and the `names` of images are for messages.
    """
    top = require_folder(root, wanted)
    while top.name.lower() in inner:
        top = top.parent
    matches = [match for path in image_files(top) if (match := layout.fullmatch(path))]
    copies = {match["copy"] for match in matches if is_image(match)}
    depth = min((copy.count("/") for copy in copies), default=0)
    nearest = sorted(copy for copy in copies if copy.count("/") == depth)
    if len(nearest) > 1:
        places = ", ".join(str(top / copy) for copy in nearest)
        raise DataError(f"There are several copies of {title} in {root}: {places}. Pass one of them as root.")
    if not nearest:
        inside = ", ".join(sorted(path.name for path in top.iterdir() if not is_system_file(path))[:8]) or "nothing"
        raise DataError(f"{root} does not look like {title}. Wanted: {wanted}. Found in it: {inside}.")
    inside_copy = [match for match in matches if match["copy"] == nearest[0]]
    warn_left_out(top, [match[0] for match in inside_copy if not is_image(match)], f"names must be like {names}")
    return top / nearest[0], [match for match in inside_copy if is_image(match)]
