"""Folders: a folder per class, folders of sides or folds that hold these, and the one copy of a published data set."""

from __future__ import annotations

import logging
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.sources.csv_file import read_frame
from leukemia_dl.datasets.table import DatasetInfo, Table, class_list
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import image_files, is_system_file, warn_left_out
from leukemia_dl.text import counted, name_key

INFO = DatasetInfo("folder", "A folder per class", licence="yours", citation="yours")
_SIDES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_SIDES |= {"test": "test", "testing": "test"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # TestA: Test, A; TEST_SIMPLE: TEST, SIMPLE
_FOLD = re.compile(r"fold[ _-]?(\d{1,3})", re.IGNORECASE | re.ASCII)
_WANTED = "a folder per class with images in it, such as ROOT/hem/1.bmp and ROOT/all/2.bmp"
_log = logging.getLogger(__name__)
_Inside = dict[str, set[str]]
"""For each folder in the root that holds images: its subfolders that do, and "" if images lie directly in it."""


def read_folder(root: str | Path, info: DatasetInfo, class_names: Sequence[str] | None) -> Table:
    """Return the table of a folder; see `Dataset.from_folder`. Class names may also be one text, with commas."""
    root = require_folder(root, _WANTED)
    wanted = None if class_names is None else class_list(class_names)
    samples = image_files(root)
    inside: _Inside = {}
    for first, *rest in (sample.split("/") for sample in samples):
        if rest:
            inside.setdefault(first, set()).add(rest[0] if len(rest) > 1 else "")
    tops = [folder.name for folder in listed(root)]
    if not inside:
        held = f"has {len(samples):,} images directly in it, so nothing says which class they are of"
        none = f"has no images: its folders ({', '.join(tops[:8])}) hold none" if tops else "has no images: it is empty"
        raise DataError(f"{root} {held if samples else none}. Wanted: {_WANTED}, or a CSV file (Dataset.from_csv).")
    level = _level_of_classes(root, inside, wanted)
    frame = _rows(root, samples, inside, level)
    if wanted is None and level:
        _refuse_inner_classes(root, frame)
    if empty := sorted(set(tops) - set(inside)):
        _log.warning("%s: the folders %s hold no images and are not taken for classes", root, ", ".join(empty))
    for side in sorted(frame["split"].dropna().unique()) if level else ():
        if len(named := [top for top in sorted(inside) if _part(top) == (side, None)]) > 1:
            _log.warning("%s: the folders %s are all taken for the side %s", root, ", ".join(named), side)
    return read_frame(frame, info, root, wanted, str(root))


def _level_of_classes(root: Path, inside: _Inside, wanted: Sequence[str] | None) -> int:
    """Return 0 if the folders in the root are the classes, 1 if their subfolders are; DataError if it is not clear."""
    tops = sorted(inside)
    parts = [top for top in tops if _part(top)]
    inner = sorted({name for top in parts or tops for name in inside[top]} - {""})
    counts = Counter(key for top in parts or tops for key in _keys(inside[top] - {""}))
    repeated = [key for key, count in counts.items() if count > 1]
    if wanted is not None and _keys(wanted) in (_keys(tops), _keys(inner)):
        return int(_keys(wanted) != _keys(tops))
    sides = [top for top in parts if parts == tops or top.lower() in _SIDES or _FOLD.fullmatch(top)]
    if inner and (sides or (parts and repeated)):
        return 1
    outer = f"class_names={','.join(tops)} (command line: -o class_names={','.join(tops)})"
    if sides:
        raise DataError(
            f"{root} has folders that are called like sides or folds ({', '.join(sides)}), and no folder per class in "
            f"them. Wanted: {_WANTED}, or with sides ROOT/train/hem/1.bmp. If the folders are the classes, pass "
            f"{outer}; or use a CSV file (Dataset.from_csv)."
        )
    if len(inner) > 1 and (parts or (len(repeated) > 1 and not all(map(_part, repeated)))):
        raise DataError(
            f"{root} can be read in two ways. If the outer folders are the classes, pass {outer}. If the inner ones "
            f"are, pass class_names={','.join(inner)}, or call the outer ones train, val and test, or fold_0 and so on."
        )
    return 0


def _rows(root: Path, samples: list[str], inside: _Inside, level: int) -> pd.DataFrame:
    """Return the rows of the images that are in a class folder, and warn of the others."""
    # Names of sides or folds: of the outer folders, where the inner ones are the classes, else of all inner ones.
    inner = {name for names in inside.values() for name in names}
    loose = "" in inner and len({_part(name) for name in inner - {""}}) < 2
    sided = any(map(_part, inside)) if level else not loose and all(_part(name) for name in inner - {""})
    rows: list[tuple[str, str, str | None, int | None]] = []
    left_out = Counter[str]()
    for sample in samples:
        *folders, _ = sample.split("/")
        part = _part(folders[1 - level]) if sided and len(folders) > 1 - level else None
        if len(folders) <= level or (sided and part is None):
            left_out[folders[0] if folders else root.name] += 1
        else:
            rows.append((sample, folders[level], *(part or (None, None))))
    if left_out:
        places = ", ".join(f"{count:,} in {place}" for place, count in left_out.items())
        count = counted(left_out.total(), "image")
        _log.warning("%s: left out %s outside of the class folders: %s", root, count, places)
    return pd.DataFrame(rows, columns=["path", "label", "split", "fold"])


def _refuse_inner_classes(root: Path, frame: pd.DataFrame) -> None:
    """Raise DataError if the inner folders that would be classes are sides, or all hold the same folders again."""
    inner = frame["path"].str.split("/").str[2:-1].str[0]
    below = {label: set(names.dropna()) for label, names in inner.groupby(frame["label"])}
    first = next(iter(below.values()), set())
    equal = len(first) > 1 and all(names == first for names in below.values()) and not all(map(_part, first))
    if equal or all(map(_part, below)):
        raise DataError(
            f"{root} can be read in two ways: the classes may be {', '.join([*below][:8])}, or the folders in them, "
            f"{', '.join(sorted(first)[:8])}. Put the images into one folder per class, or write a CSV file with the "
            "columns path, label and subject (Dataset.from_csv)."
        )


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
    root: Path,
    layout: re.Pattern[str],
    is_image: Callable[[Any], object],
    inner: Collection[str],
    title: str,
    wanted: str,
) -> tuple[Path, list[re.Match[str]]]:
    """Return the folder of the one copy of a data set that is nearest to `root`, and the matches of its images' paths.

    `layout` matches the paths of files in the right folders, its group `copy` the folder of the copy; `is_image` says
    whether the file's name is right too: a warning counts the others. A `root` whose name is in `inner` (lower case) is
    inside of a copy: the search starts above it. `title` and the `wanted` files are for messages.
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
    warn_left_out(top, [match[0] for match in inside_copy if not is_image(match)], f"wanted: {wanted}")
    return top / nearest[0], [match for match in inside_copy if is_image(match)]
