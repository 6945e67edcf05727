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


def read_folder(root: str | Path, info: DatasetInfo, class_names: Sequence[str] | None) -> Table:
    """Return the table of a folder; see `Dataset.from_folder`. Class names may also be one text, with commas."""
    root = require_folder(root, _WANTED)
    wanted = None if class_names is None else class_list(class_names)
    samples = pd.Series(image_files(root), dtype=object)
    folders = samples.str.split("/").str[:-1]
    inside = {top: set(inner.dropna()) for top, inner in folders.str[1].groupby(folders.str[0])}
    tops = [folder.name for folder in listed(root)]
    if not inside:
        held = f"has {len(samples):,} images directly in it, so nothing says which class they are of"
        none = f"has no images: its folders ({', '.join(tops[:8])}) hold none" if tops else "has no images: it is empty"
        found = none if samples.empty else held
        raise DataError(f"{root} {found}. Wanted: {_WANTED}, or a CSV file (Dataset.from_csv).")
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
    table = pd.DataFrame({"path": samples, "label": labels, "split": parts.str[0], "fold": parts.str[1]})[kept]
    for side in sorted(table["split"].dropna().unique()) if level else ():
        if len(named := [top for top in inside if _part(top) == (side, None)]) > 1:
            _log.warning("%s: the folders %s are all taken for the side %s", root, ", ".join(named), side)
    frame, names, info = read_frame(table, info, root, wanted, str(root), must_exist=False)
    if lost := sorted(_keys(set(names) - set(frame["label"])) & _keys(inside)):
        raise DataError(f"{root}: all images of {', '.join(lost)} were left out, as the warning says.")
    return frame, names, info


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
    matches = [match for path in image_files(top, follow=True) if (match := layout.fullmatch(path))]
    copies = {match["copy"] for match in matches if is_image(match)}
    above = {copy for copy in copies if not (top / copy).is_relative_to(root) and not root.is_relative_to(top / copy)}
    copies = copies - above or copies  # those beside `root` count only if there is no other
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
