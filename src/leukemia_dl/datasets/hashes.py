"""SHA-256 of files, computed once: remembered by path, size and time of change, in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.datasets.cache import cache_dir
from leukemia_dl.errors import DataError
from leukemia_dl.progress import parallel_map, track

__all__ = ["Stamp", "array_hash", "file_hashes", "stamp", "tried_hashes"]

Stamp = tuple[str, int, int, int]
"""Path, size in bytes, time of the last change of the content and of the file's entry (which no user can set back, so
that files that change places are noticed), in nanoseconds: equal as long as a file was not touched."""

_FILE = "hashes.sqlite"
_CHUNK = 500
# A file that changes twice within a tick of the clock keeps its stamp: so young ones are not remembered on disk.
_SETTLED_NS = 2_000_000_000
_log = logging.getLogger(__name__)
_unusable: set[Path] = set()


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
    return list(track(_hashes(paths), len(paths), "Hashing files", show))


def tried_hashes(paths: list[str], show: bool = True) -> list[str | DataError]:
    """Do what `file_hashes` does, with the error in place of the hash of a file that cannot be read."""

    def each() -> Iterator[str | DataError]:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            try:
                yield from file_hashes(chunk, show=False)
            except DataError:  # find out which
                yield from map(_tried, chunk)

    return list(track(each(), len(paths), "Hashing files", show))


def _tried(path: str) -> str | DataError:
    try:
        return file_hashes([path], show=False)[0]
    except DataError as error:
        return error


def _hashes(paths: list[str]) -> Iterator[str]:
    """Yield hashes in order. In chunks: little is lost if the process is killed, and little memory taken."""
    with contextlib.closing(_Memory()) as memory:
        for start in range(0, len(paths), _CHUNK):
            stamps = [stamp(path) for path in paths[start : start + _CHUNK]]
            known = memory.recall(stamps)
            read: dict[Stamp, str] = {}
            missing = sorted({key for key in stamps if key not in known})
            try:
                parallel_map(partial(_read_into, read), missing, "", show=False)
            finally:  # what was read before an error or Ctrl-C need not be read again
                memory.keep(read)
            known |= read
            yield from (known[key] for key in stamps)


def _read_into(read: dict[Stamp, str], key: Stamp) -> None:
    read[key] = _read(key)


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


class _Memory:
    """The file in the cache folder. It is an aid: whatever is wrong with it is logged, and it remembers nothing."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        with self._aid():
            folder = cache_dir()
            folder.mkdir(parents=True, exist_ok=True)
            if folder in _unusable:
                return
            self._connection = sqlite3.connect(folder / _FILE, timeout=2.0)
            # As bytes: a name need not be UTF-8.
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER NOT NULL, "
                "changed INTEGER NOT NULL, moved INTEGER NOT NULL, sha256 TEXT NOT NULL)"
            )

    @contextlib.contextmanager
    def _aid(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            _log.warning("Hashes are not remembered, since %s in %s cannot be used: %s", _FILE, cache_dir(), error)
            _unusable.add(cache_dir())  # not tried again: waiting for a lock takes seconds
            self.close()

    def recall(self, stamps: Iterable[Stamp]) -> dict[Stamp, str]:
        found: dict[Stamp, str] = {}
        with self._aid():
            if self._connection is not None:
                for key in set(stamps):
                    query = "SELECT sha256 FROM files WHERE path = ? AND size = ? AND changed = ? AND moved = ?"
                    row = self._connection.execute(query, (_bytes(key[0]), *key[1:])).fetchone()
                    if row is not None:
                        found[key] = str(row[0])
        return found

    def keep(self, hashes: dict[Stamp, str]) -> None:
        settled = time.time_ns() - _SETTLED_NS
        rows = [(_bytes(key[0]), *key[1:], digest) for key, digest in hashes.items() if max(key[2:]) < settled]
        with self._aid():
            if rows and self._connection is not None:
                with self._connection:
                    self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
