"""Folders of a user, as every source looks at them before it reads its own files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import is_system_file

__all__ = ["folders_in", "listed", "only_copy", "require_folder"]

T = TypeVar("T")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def require_folder(root: str | Path, wanted: str) -> Path:
    """Return `root`, absolute. Raises DataError if it is no folder; `wanted` is its content, for the message."""
    root = user_path(root, "root")
    if root.is_dir():
        return root
    above = next((folder for folder in root.parents if folder.is_dir()), root)
    problem = f"does not exist (the nearest folder that exists is {above})"
    if root.is_file():
        is_archive = root.suffix.lower() in _ARCHIVES or zipfile.is_zipfile(root)
        problem = "is an archive, not a folder: unpack it first" if is_archive else "is a file, not a folder"
    raise DataError(f"{root} {problem}. Wanted: {wanted}.")


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder that are no system files, sorted; OSError if it cannot be listed."""
    return [path for path in listed(folder) if path.is_dir()]


def listed(folder: Path) -> list[Path]:
    """Return the entries of a folder that are no system files, sorted; OSError if it cannot be listed."""
    return sorted(path for path in folder.iterdir() if not is_system_file(path))


def only_copy(
    root: Path,
    find: Callable[[Path], dict[Path, T]],
    title: str,
    wanted: str,
    start: Path | None = None,
    choose: str = "Pass one of them as root.",
) -> tuple[Path, T]:
    """Return the one copy of a data set that `find` returns for `start`, or else for the folders in `root`."""
    for folders in ([start or root], folders_in(root)):
        found = [copy for folder in folders for copy in find(folder).items()]
        if len(found) > 1:
            copies = ", ".join(str(place) for place, _ in found)
            raise DataError(f"There are several copies of {title} in {root}: {copies}. {choose}")
        if found:
            return found[0]
    inside = ", ".join(path.name for path in listed(root)[:8]) or "nothing"
    raise DataError(f"{root} does not look like {title}. Wanted: {wanted}. Found in it: {inside}.")
