"""Folders of a user: what every source asks of them before it looks for its own files."""

from __future__ import annotations

import zipfile
from pathlib import Path

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import image_files, is_system_file, warn_left_out

__all__ = ["folders_in", "image_files", "listed", "require_folder", "warn_left_out"]

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def require_folder(root: str | Path, wanted: str) -> Path:
    """Return `root`, absolute, if it is a folder.

    Args:
        root: What came.
        wanted: What it should hold, for the message.

    Raises:
        DataError: If it is missing, a file, or an archive that has to be unpacked.
    """
    root = user_path(root, "root")
    if root.is_dir():
        return root
    if root.is_file():
        if root.suffix.lower() in _ARCHIVES or zipfile.is_zipfile(root):
            raise DataError(
                f"{root} is an archive, not a folder: unpack it first, then pass the folder. Wanted: {wanted}."
            )
        raise DataError(f"{root} is a file, not a folder. Wanted: {wanted}.")
    above = next((folder for folder in root.parents if folder.is_dir()), root)
    raise DataError(f"There is no folder {root} (the nearest that exists is {above}). Wanted: {wanted}.")


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder that are no system files, sorted; OSError if it cannot be listed."""
    return [path for path in listed(folder) if path.is_dir()]


def listed(folder: Path) -> list[Path]:
    """Return the entries of a folder that are no system files, sorted; OSError if it cannot be listed."""
    return sorted(path for path in folder.iterdir() if not is_system_file(path))
