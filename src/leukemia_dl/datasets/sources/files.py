"""Images of a user, named by a folder per class or by a table, and the one copy of a published data set."""

from __future__ import annotations

import logging
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.table import COLUMNS, DatasetInfo, Table, class_list, one_spelling
from leukemia_dl.errors import DataError
from leukemia_dl.identity import name_key
from leukemia_dl.preprocess.decode import image_files, is_system_file, warn_left_out
from leukemia_dl.text import counted

CSV_INFO = DatasetInfo("csv", "Images named by a CSV file", licence="yours", citation="yours")
FOLDER_INFO = DatasetInfo("folder", "A folder per class", licence="yours", citation="yours")
FLAGS = re.IGNORECASE | re.DOTALL | re.ASCII
_SIDES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_SIDES |= {"test": "test", "testing": "test"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # TestA: Test, A; TEST_SIMPLE: TEST, SIMPLE
_FOLD = re.compile(r"fold[ _-]?(\d{1,3})", FLAGS)
_CSV = "a CSV file in UTF-8, separated by commas, with a header: path,label[,subject,group,fold,split]"
_FOLDER = "a folder per class with images in it, such as ROOT/hem/1.bmp and ROOT/all/2.bmp"
_log = logging.getLogger(__name__)


def read_text_csv(path: Path, wanted: str = _CSV) -> pd.DataFrame:
    """Return the cells of a CSV file as text without outer spaces, NA if empty."""
    reading: Any = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "skipinitialspace": True}
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise OSError("it is no file; a folder per class is loaded by Dataset.from_folder")
        with warnings.catch_warnings():
            # Without index_col pandas would take the surplus of a long row for an index, and shift all columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, compression=None, index_col=False, **reading)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # ValueError: no UTF-8, no cells
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {str(error).strip()}. Wanted: {wanted}.") from error
    cells: pd.DataFrame = frame.apply(lambda column: column.str.strip())
    return cells.mask(cells == "")


def read_frame(
    frame: pd.DataFrame, info: DatasetInfo, images_root: str | Path, class_names: Sequence[str] | None, source: str = ""
) -> Table:
    """Return the table of a data set from columns that a user named; all rows of a `source` (a file) need a label."""
    where = source or "The table"
    table = frame.rename(columns={name: str(name).strip().lower() for name in frame.columns})
    known = [name for name in table.columns if name in COLUMNS]
    if not {"path", "label"} <= set(known) or len(set(known)) != len(known):
        found = ", ".join(map(str, frame.columns)) or "none"
        raise DataError(f"{where} needs the columns path and label, once each. Found: {found}. Wanted: {_CSV}.")
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
    table["path"] = paths = _absolute(table["path"], start, where)
    common = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    if "sample" not in table:
        inside = os.path.join(common, "").startswith(os.path.join(start, ""))  # noqa: PTH118
        table["sample"] = _below(start if inside else common, paths)
    below = _below(common, paths)
    hidden = np.array([any(map(is_system_file, name.split("/"))) for name in below])
    if hidden.any():
        rows, example = counted(int(hidden.sum()), "row"), below[int(hidden.argmax())]
        _log.warning("%s: left out %s of hidden or system files, such as %r", where, rows, example)
    return table[~hidden], names, info


def _labels(column: pd.Series[Any], wanted: Sequence[str] | None, where: str) -> tuple[pd.Series[Any], tuple[str, ...]]:
    chosen = () if wanted is None else class_list(wanted)
    labels = column.convert_dtypes().astype("object").map(str, na_action="ignore")
    labels = one_spelling(labels, "classes", chosen)
    names = chosen or tuple(sorted(labels.dropna().unique()))
    unknown = labels[labels.notna() & ~labels.isin(names)]
    if len(unknown):
        first = f"{unknown.iloc[0]!r} in row {unknown.index[0] + 1}"
        raise DataError(f"{where} has the unknown label {first}. Allowed by class_names: {', '.join(names)}.")
    if len(names) < 2:
        found = f"one class only, {names[0]!r}" if names else "no labels"
        hint = "Pass the folder that holds the folders of the classes, or class_names to load images for prediction"
        raise DataError(f"{where} has {found}: there is nothing to tell apart. {hint}.")
    return labels, names


def _absolute(column: pd.Series[Any], start: str, where: str) -> list[str]:
    """Return the absolute paths of a column, of which each must be a file that no other row names."""
    seen: dict[str, int] = {}
    for row, path in enumerate(column, start=1):
        if not isinstance(path, (str, PurePath)) or not str(path).strip():
            raise DataError(f"{where} has no path in row {row}.")
        # Not pathlib, which takes seconds for a hundred thousand names; not resolve(), which would follow links.
        full = os.path.abspath(os.path.join(start, path))  # noqa: PTH100, PTH118
        if not os.path.isfile(full):  # noqa: PTH113
            hint = f"Relative paths start from {start}; for another folder pass images_root=FOLDER"
            raise DataError(f"{where} names {str(path)!r} in row {row}, which is no file that can be read. {hint}.")
        if (first := seen.setdefault(full, row)) != row:
            raise DataError(f"{where} names the file {str(path)!r} twice, in rows {first} and {row}. Remove one.")
    return list(seen)


def _below(folder: str, paths: list[str]) -> list[str]:
    start = len(os.path.join(folder, ""))  # noqa: PTH118
    return [path[start:].replace(os.sep, "/") for path in paths]


def read_folder(root: str | Path, info: DatasetInfo, class_names: Sequence[str] | None) -> Table:
    """Return the table of a folder; see `Dataset.from_folder`. Class names may also be one text, with commas."""
    root = require_folder(root, _FOLDER)
    wanted = None if class_names is None else class_list(class_names)
    samples = pd.Series(image_files(root), dtype=object)
    folders = samples.str.split("/").str[:-1]
    inside = {top: set(inner.dropna()) for top, inner in folders.str[1].groupby(folders.str[0])}
    tops = [folder.name for folder in listed(root)]
    if not inside:
        held = f"{len(samples):,} images directly in it and none in its folders ({', '.join(tops[:8]) or 'none'})"
        raise DataError(f"{root} has {held}. Wanted: {_FOLDER}, or a CSV file (Dataset.from_csv).")
    level = _level_of_classes(root, inside, wanted)
    if empty := sorted(set(tops) - set(inside)):
        _log.warning("%s: the folders %s hold no images and are not taken for classes", root, ", ".join(empty))
    labels, parts = folders.str[level], _parts(folders, level)
    kept = labels.notna() & (parts.notna() | bool(parts.isna().all()))
    if level and wanted is None:
        _refuse_inner_classes(root, folders[kept])
    if not kept.all():
        places = folders.str[0].fillna(root.name)[~kept].value_counts(sort=False)
        shown = ", ".join(f"{count:,} in {place}" for place, count in places.items())
        _log.warning("%s: left out %s outside of the class folders: %s", root, counted(places.sum(), "image"), shown)
    columns = {"sample": samples, "path": f"{root}/" + samples, "label": labels}
    table = pd.DataFrame({**columns, "split": parts.str[0], "fold": parts.str[1]})[kept].reset_index(drop=True)
    for side in sorted(table["split"].dropna().unique()) if level else ():
        if len(named := [top for top in inside if _part(top) == (side, None)]) > 1:
            _log.warning("%s: the folders %s are all taken for the side %s", root, ", ".join(named), side)
    table["label"], names = _labels(table["label"], wanted, str(root))
    if lost := [name for name in names if name in inside and name not in set(table["label"])]:
        raise DataError(f"{root}: all images of {', '.join(lost)} were left out, as the warning says.")
    return table, names, info


def _level_of_classes(root: Path, inside: dict[str, set[str]], wanted: Sequence[str] | None) -> int:
    """Return 0 if the folders in the root are the classes, 1 if their subfolders are; DataError if it is not clear."""
    tops = sorted(inside)
    parts = [top for top in tops if _part(top)]
    inner = sorted({name for top in parts or tops for name in inside[top]})
    counts = Counter(key for top in parts or tops for key in _keys(inside[top]))
    repeated = [key for key, count in counts.items() if count > 1]
    if wanted is not None and _keys(wanted) in (_keys(tops), _keys(inner)):
        return int(_keys(wanted) != _keys(tops))
    sides = [top for top in parts if parts == tops or top.lower() in _SIDES or _FOLD.fullmatch(top)]
    if inner and (sides or (parts and repeated)):
        return 1
    outer = f"If the outer folders are the classes, pass class_names={','.join(tops)}"
    if sides:
        found = f"folders that are called like sides or folds ({', '.join(sides)}), and no folder per class in them"
        raise DataError(f"{root} has {found}. Wanted: {_FOLDER}, or ROOT/train/hem/1.bmp. {outer}.")
    if len(inner) > 1 and (parts or (len(repeated) > 1 and not all(map(_part, repeated)))):
        names = f"class_names={','.join(inner)}, or call the outer ones train, val and test, or fold_0 and so on"
        raise DataError(f"{root} can be read in two ways. {outer}. If the inner ones are, pass {names}.")
    return 0


def _parts(folders: pd.Series[Any], level: int) -> pd.Series[Any]:
    """Return the side and fold of each image as its folder outside or in the class folder says; all NA if none does."""
    parts = folders.str[1 - level].map(_part, na_action="ignore").astype(object)
    inside = parts[folders.str[0].notna()]
    if level or (folders.str[1].dropna().map(_part).notna().all() and (inside.notna().all() or parts.nunique() > 1)):
        return parts
    return parts.mask(parts.notna())


def _refuse_inner_classes(root: Path, folders: pd.Series[Any]) -> None:
    """Raise DataError if the inner folders that would be classes are sides, or all hold the same folders again."""
    below = {label: set(names.dropna()) for label, names in folders.str[2].groupby(folders.str[1])}
    first = next(iter(below.values()), set())
    equal = len(first) > 1 and all(names == first for names in below.values()) and not all(map(_part, first))
    if equal or all(map(_part, below)) or any(map(_FOLD.fullmatch, below)):
        either = f"the classes may be {', '.join([*below][:8])}, or the folders in them, {', '.join(sorted(first)[:8])}"
        hint = "Put the images into one folder per class, or write a CSV file (Dataset.from_csv)"
        raise DataError(f"{root} can be read in two ways: {either}. {hint}.")


def _keys(names: Iterable[str]) -> set[str]:
    return {name_key(name) for name in names}


@cache
def _part(name: str) -> tuple[str | None, int | None] | None:
    """Return the side or the fold that a folder's name says: ("test", None) for TestA, (None, 0) for fold_0."""
    if fold := _FOLD.fullmatch(name):
        return None, int(fold[1])
    sides = {_SIDES.get(word.lower().removesuffix("set")) for word in _WORDS.findall(name)} - {None}
    return (sides.pop(), None) if len(sides) == 1 else None


def listed(folder: Path, suffix: str = "") -> list[Path]:
    """Return the folders in a folder, or its files with a suffix, that are no system files; sorted."""
    found = sorted(path for path in folder.iterdir() if not is_system_file(path))
    return [path for path in found if (path.suffix.lower() == suffix and path.is_file() if suffix else path.is_dir())]


def require_folder(root: str | Path, wanted: str) -> Path:
    """Return `root`, absolute. Raises DataError if it is no folder; `wanted` is its content, for the message."""
    root = user_path(root, "root")
    if root.is_dir():
        return root
    above = next((folder for folder in root.parents if folder.is_dir()), root)
    problem = f"does not exist (the nearest folder that exists is {above})"
    if root.is_file():
        problem = "is an archive: unpack it first" if zipfile.is_zipfile(root) else "is a file, not a folder"
    raise DataError(f"{root} {problem}. Wanted: {wanted}.")


def find_copy(
    root: Path, layout: str, inner: Collection[str], title: str, wanted: str
) -> tuple[Path, list[re.Match[str]]]:
    """Return the folder of the one copy of a data set that is nearest to `root`, and the matches of its images.

    `layout` matches the paths of files in the right folders, its group `copy` the folder of the copy, its group `image`
    the names of images: a warning counts other files. A `root` whose name is in `inner` (lower case) is inside of a
    copy: the search starts above it. `title` and the `wanted` files are for messages.
    """
    top = require_folder(root, wanted)
    while top.name.lower() in inner:
        top = top.parent
    found = [re.fullmatch(layout, path, FLAGS) for path in image_files(top, follow=True)]
    matches = [match for match in found if match]
    copies = {match["copy"] for match in matches if match["image"]}
    own = f"{Path(root).name}/"  # copies beside the given folder do not count
    copies = {copy for copy in copies if top == Path(root) or copy.startswith(own)} or copies
    depth = min((copy.count("/") for copy in copies), default=0)
    nearest = sorted(copy for copy in copies if copy.count("/") == depth)
    if len(nearest) > 1:
        places = ", ".join(str(top / copy) for copy in nearest)
        raise DataError(f"There are several copies of {title} in {root}: {places}. Pass one of them as root.")
    if not nearest:
        inside = ", ".join(sorted(path.name for path in top.iterdir() if not is_system_file(path))[:8]) or "nothing"
        raise DataError(f"{root} does not look like {title}. Wanted: {wanted}. Found in it: {inside}.")
    inside_copy = [match for match in matches if match["copy"] == nearest[0]]
    warn_left_out(top, [match[0] for match in inside_copy if not match["image"]], f"wanted: {wanted}")
    return top / nearest[0], [match for match in inside_copy if match["image"]]
