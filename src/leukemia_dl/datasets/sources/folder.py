"""A folder per class, or train, val and test folders that hold a folder per class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from leukemia_dl.datasets.dataset import Dataset, DatasetInfo
from leukemia_dl.datasets.folders import require_folder
from leukemia_dl.datasets.frames import CANVAS, class_list, on_canvas
from leukemia_dl.datasets.registry import DatasetSource
from leukemia_dl.errors import DataError
from leukemia_dl.plugins import hookimpl
from leukemia_dl.preprocess.decode import IMAGE_SUFFIXES, is_system_file

INFO = DatasetInfo("folder", "A folder per class", licence="yours", citation="yours")
SIDES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_WANTED = "a folder per class with images (BMP, PNG, TIFF, JPEG) in it, such as ROOT/hem/1.bmp and ROOT/all/2.bmp"
_log = logging.getLogger(__name__)


def read_folder(root: str | Path, class_names: Sequence[str] | None = None, canvas: int | None = None) -> Dataset:
    """Do what `Dataset.from_folder` says; class names may also be one text, separated by commas."""
    info, root = on_canvas(INFO, canvas), require_folder(root, _WANTED)
    class_names = None if class_names is None else class_list(class_names)
    tops = _folders(root)
    sided = any(top.lower() in SIDES for top in tops) and all(top.lower() in SIDES for top in tops)
    top_name = os.path.join(root, "")  # noqa: PTH118 - pathlib takes seconds for a hundred thousand files
    rows: list[tuple[str, str, str, str | None]] = []
    skipped = 0
    for top in tops:
        side = SIDES[top.lower()] if sided else None
        for label in _folders(root / top) if sided else [top]:
            folder = root / top / label if sided else root / top
            for path, name in _files(folder):
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_system_file(name):  # noqa: PTH122
                    rows.append((path[len(top_name) :].replace(os.sep, "/"), path, label, side))
                else:
                    skipped += 1
    if skipped:
        _log.info("%s: left out %d files that are hidden or no images", root, skipped)
    frame = pd.DataFrame(rows, columns=["sample", "path", "label", "split"])
    found = sorted(frame["label"].unique())
    empty = sorted(set(tops) - set(found)) if not sided else []
    _check(root, tops, found, class_names)
    if empty:
        _log.warning("%s: the folders %s hold no images and are not taken for classes", root, ", ".join(empty))
    return Dataset(frame, tuple(found if class_names is None else class_names), info)


def _check(root: Path, tops: list[str], found: list[str], class_names: Sequence[str] | None) -> None:
    if not found:
        loose = sum(1 for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if loose:
            raise DataError(
                f"{loose:,} images lie directly in {root}, so nothing says which class they are of. Wanted: {_WANTED}. "
                "Or name them with their labels in a CSV file and use Dataset.from_csv."
            )
        what = f"The folders in it ({', '.join(tops[:8])}) hold no images." if tops else "It is empty."
        raise DataError(f"There are no images in {root}. {what} Wanted: {_WANTED}.")
    if class_names is not None and set(class_names) != set(found):
        raise DataError(
            f"class_names is {', '.join(class_names)}, but the folders with images in {root} are {', '.join(found)}. "
            "Name each of them once, in the wanted order."
        )
    if len(found) < 2:
        inner = _folders(root / found[0]) if found[0] in tops else []
        hint = f" If its folders ({', '.join(inner[:8])}) are the classes, pass {root / found[0]}." if inner else ""
        raise DataError(
            f"{root} holds one class only, {found[0]!r}: there is nothing to tell apart. Wanted: {_WANTED}.{hint}"
        )


def _folders(root: Path) -> list[str]:
    try:
        return sorted(e.name for e in os.scandir(root) if e.is_dir() and not is_system_file(e.name))
    except OSError as error:
        raise _unreadable(error) from error


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, name) of every file below a folder, in order."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error) from error

    for parent, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = sorted(name for name in inner if not is_system_file(name))
        yield from ((os.path.join(parent, name), name) for name in sorted(names))  # noqa: PTH118


def _unreadable(error: OSError) -> DataError:
    return DataError(f"Cannot list the folder {error.filename}: {error.strerror}. Check its permissions.")


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source."""
    names = "classes in label order, separated by commas; default: the folders' names, sorted"
    options = {"class_names": names, "canvas": CANVAS}
    yield DatasetSource("folder", read_folder, INFO, options=options)
