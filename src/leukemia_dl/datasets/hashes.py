"""SHA-256 of files, computed once: remembered by path, size and time of change, in the cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import stat
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.datasets.cache import cache_dir
from leukemia_dl.errors import DataError
from leukemia_dl.progress import parallel_map, track

__all__ = ["HASH_FILE", "Stamp", "array_hash", "file_hashes", "stamp", "tried_hashes"]

Stamp = tuple[str, int, int, int]
"""Path, size in bytes, time of the last change of the content and of the file's entry (which no user can set back, so
that files that change places are noticed), in nanoseconds: equal as long as a file was not touched."""

HASH_FILE = "hashes.jsonl"
"""In the cache folder: a line `[path, size, changed, moved, sha256]` per file, to which any process appends."""
_CHUNK = 500
_T = TypeVar("_T")
# A file that changes twice within a tick of the clock keeps its stamp: so young ones are not remembered on disk.
_SETTLED_NS = 2_000_000_000
_log = logging.getLogger(__name__)
_unusable: set[Path] = set()  # cache folders that a warning has named


def stamp(path: str) -> Stamp:
    """Return the stamp of a regular file.

    Raises:
        DataError: If it is missing, cannot be reached or is no regular file (reading a pipe would wait for ever).
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is no regular file. Take it out of the data set.")
    return path, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def array_hash(array: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an array's shape and bytes, 64 hexadecimal digits."""
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()


def file_hashes(paths: list[str], show: bool = True) -> list[str]:
    """Return the SHA-256 of files' bytes, 64 hexadecimal digits each, in order; with progress.

    A hash is remembered, in the cache folder, until the size or a time of change of the file is another. If that
    folder cannot be used, this is logged, and files are read again next time.

    Raises:
        DataError: If a file cannot be read or is no regular file.
    """
    found: list[str] = []
    for content in track(_hashes(paths), len(paths), "Hashing files", show):
        if isinstance(content, DataError):
            raise content
        found.append(content)
    return found


def tried_hashes(paths: list[str], show: bool = True) -> list[str | DataError]:
    """Do what `file_hashes` does, with the error in place of the hash of a file that cannot be read."""
    return list(track(_hashes(paths), len(paths), "Hashing files", show))


def _hashes(paths: list[str]) -> Iterator[str | DataError]:
    """Yield hashes in order. In chunks: little is lost if the process is killed, and little memory taken."""
    file = cache_dir() / HASH_FILE
    known = _remembered(file)
    for start in range(0, len(paths), _CHUNK):
        keys = [_tried(stamp, path) for path in paths[start : start + _CHUNK]]
        read: dict[Stamp, str | DataError] = {}

        def into(key: Stamp, read: dict[Stamp, str | DataError] = read) -> None:
            read[key] = _tried(_read, key)

        try:
            parallel_map(into, sorted({key for key in keys if isinstance(key, tuple)} - known.keys()), "", show=False)
        finally:  # what was read before Ctrl-C need not be read again
            _remember(file, read)
        for key in keys:
            yield key if isinstance(key, DataError) else read[key] if key in read else known[key]


def _tried(function: Callable[..., _T], argument: object) -> _T | DataError:
    try:
        return function(argument)
    except DataError as error:
        return error


def _read(key: Stamp) -> str:
    try:
        with Path(key[0]).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(key[0], error) from error
    if stamp(key[0]) != key:
        raise DataError(f"{key[0]} changes while it is read. Wait until it is complete.")
    return found


def _unreadable(path: str, error: OSError | ValueError) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"Cannot read {path}: {reason}. Was it moved since the data set was loaded?")


@cache
def _remembered(file: Path) -> dict[Stamp, str]:
    """Return the hashes in the file, which is read once per process; damaged lines are skipped."""
    known: dict[Stamp, str] = {}
    try:
        lines = file.read_bytes().splitlines() if file.is_file() else []
    except OSError:
        lines = []
    for line in lines:
        try:
            path, size, changed, moved, digest = json.loads(line)
            known[path, size, changed, moved] = str(digest)
        except (ValueError, TypeError):  # half a line, of a process that was killed
            continue
    return known


def _remember(file: Path, read: dict[Stamp, str | DataError]) -> None:
    settled = time.time_ns() - _SETTLED_NS
    new = {key: text for key, text in read.items() if isinstance(text, str) and max(key[2:]) < settled}
    if not new:
        return
    _remembered(file).update(new)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="ascii") as opened:
            opened.write("".join(json.dumps([*key, text]) + "\n" for key, text in new.items()))
    except OSError as error:
        if file.parent not in _unusable:
            _log.warning("Hashes are not remembered, since %s cannot be written: %s", file, error)
        _unusable.add(file.parent)
