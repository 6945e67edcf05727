"""Folders of a user: what every source asks of them before it looks for its own files."""

from __future__ import annotations

import logging
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import IMAGE_SUFFIXES, is_system_file

__all__ = ["folders_in", "image_files", "listed", "require_folder", "warn_left_out"]

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_DOCUMENTS = frozenset({
    ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".json", ".log", ".md", ".pdf", ".py", ".rst",
    ".toml", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml",
})  # fmt: skip
_log = logging.getLogger(__name__)


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


def image_files(root: Path) -> list[str]:
    """Return the images below a folder, by their suffix, as paths relative to it with `/`, in order.

    System files and documents (`.txt`, `.csv`, `.xml` and so on) are passed over; other files, which may be images of
    a kind that is not read, are counted in a warning.

    Raises:
        DataError: If a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot list the folder {error.filename}: {error.strerror}. Check its permissions.") from error

    top = len(os.path.join(root, ""))  # noqa: PTH118 - pathlib takes seconds for a hundred thousand files
    found: list[str] = []
    others: list[str] = []
    for parent, inner, names in os.walk(root, onerror=refuse):
        inner[:] = sorted(name for name in inner if not is_system_file(name))
        for name in sorted(names):
            path = os.path.join(parent, name)[top:].replace(os.sep, "/")  # noqa: PTH118
            if not is_system_file(name):
                (found if _suffix(name) in IMAGE_SUFFIXES else others).append(path)
    warn_left_out(root, others, f"have a suffix that is not read. Read are {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def warn_left_out(root: Path, names: Sequence[str], why: str) -> None:
    """Log one warning of the files, except documents, that a reader leaves out: how many of each suffix, and a name."""
    if names := [name for name in names if _suffix(name) not in _DOCUMENTS]:
        counts = Counter(_suffix(name) or "without a suffix" for name in names)
        kinds = ", ".join(f"{count:,} {ascii(kind)[1:-1]}" for kind, count in counts.most_common())
        _log.warning("%s: left out %d files (%s; such as %r) that %s", root, len(names), kinds, names[0], why)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122
