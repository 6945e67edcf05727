"""SHA-256 of files, computed once: remembered by path, size and time of change, in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import sha256_of_file
from leukemia_dl.datasets.cache import cache_dir
from leukemia_dl.errors import DataError
from leukemia_dl.progress import parallel_map

__all__ = ["HASH_FILE", "array_hash", "file_hashes", "tried_hashes"]

HASH_FILE = "hashes.jsonl"
"""In the cache folder: a line `[path, size, changed, moved, sha256]` per file, to which any process appends."""
# A file that changes twice within a tick of the clock keeps its stamp, so young files are not remembered on disk.
_SETTLED_NS = 2_000_000_000
_Stamp = tuple[str, int, int, int]
_log = logging.getLogger(__name__)


def array_hash(array: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an array's shape and bytes, 64 hexadecimal digits."""
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()


def file_hashes(paths: list[str], show: bool = True) -> list[str]:
    """Return the SHA-256 of files in order, as `tried_hashes`. Raises DataError for the first that cannot be read."""
    found = tried_hashes(paths, show)
    if error := next((content for content in found if isinstance(content, DataError)), None):
        raise error
    return [str(content) for content in found]


def tried_hashes(paths: list[str], show: bool = True) -> list[str | DataError]:
    """Return the SHA-256 of files as 64 hexadecimal digits, in order; for a file that cannot be read, the error.

    A hash is remembered in the cache folder, if that can be written, until size or time of change of the file differ.
    """
    file = cache_dir() / HASH_FILE
    known, read = _remembered(file), dict[_Stamp, str]()

    def hash_one(path: str) -> str | DataError:
        try:
            key = _stamp(path)
            if key in known:
                return known[key]
            content = sha256_of_file(Path(path))
            if _stamp(path) != key:
                raise OSError("it changes while it is read")
            read[key] = content
            return content
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            reason = getattr(error, "strerror", None) or error
            return DataError(f"Cannot read {path}: {reason}. Was it moved since the data set was loaded?")

    try:
        return parallel_map(hash_one, paths, "Hashing files", show=show)
    finally:  # so that files that were read before Ctrl-C need not be read again
        settled = time.time_ns() - _SETTLED_NS
        _remember(file, {key: content for key, content in read.items() if max(key[2:]) < settled})


def _stamp(path: str) -> _Stamp:
    """Return path, size, and the times of the last change of the content and of the entry, which no user can set."""
    status = Path(path).stat()
    return path, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@cache
def _remembered(file: Path) -> dict[_Stamp, str]:
    """Return the hashes in the file, which is read once per process; damaged lines are skipped."""
    known: dict[_Stamp, str] = {}
    with contextlib.suppress(OSError):
        for line in file.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):  # half a line, of a process that was killed
                path, size, changed, moved, content = json.loads(line)
                known[path, size, changed, moved] = str(content)
    return known


def _remember(file: Path, new: dict[_Stamp, str]) -> None:
    if not new:
        return
    _remembered(file).update(new)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="ascii") as opened:
            opened.write("".join(json.dumps([*key, content]) + "\n" for key, content in new.items()))
    except OSError as error:
        _warn_once(file, str(error))


@cache
def _warn_once(file: Path, reason: str) -> None:
    _log.warning("Hashes are not remembered, since %s cannot be written: %s", file, reason)
