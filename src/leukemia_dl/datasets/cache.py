"""The cache folder (synthetic cells, decoded pixels, features, hashes of files): its place, size limit, and the hashes.

`hashes.json` in it holds `{path: [size, changed, moved, sha256]}`: a file is read again only if it has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import remove_unfinished, sha256_of_file, write_file
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.progress import parallel_map

__all__ = [
    "HASH_FILE", "array_hash", "cache_dir", "cache_limit", "cache_use", "file_hashes", "in_use", "make_room",
    "tried_hashes", "user_path",
]  # fmt: skip

HASH_FILE = "hashes.json"
_SETTLED_NS = 2_000_000_000  # a file that changes twice within a tick of the clock keeps its stamp


def user_path(path: str | Path, name: str = "") -> Path:
    """Return a path as a user writes it, absolute, without `~`. Raises DataError, which names the argument `name`."""
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, TypeError) as error:
        raise DataError(f"{name + '=' if name else ''}{path!r} is no path that can be used: {error}.") from error


def cache_dir() -> Path:
    """Return the cache folder, which need not exist: `LEUKEMIA_DL_CACHE` if set, else the user's cache folder."""
    if chosen := os.environ.get("LEUKEMIA_DL_CACHE"):
        return user_path(chosen)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("leukemia_dl"))


def cache_limit() -> float:
    """Return how many bytes decoded pixels and features may take: `LEUKEMIA_DL_CACHE_LIMIT` in GB, 20 by default."""
    text = os.environ.get("LEUKEMIA_DL_CACHE_LIMIT") or "20"
    with contextlib.suppress(ValueError):
        if (limit := float(text)) >= 0:
            return limit * 1e9
    raise SettingsError(f"LEUKEMIA_DL_CACHE_LIMIT is a size in GB, such as 20, or inf. Received: {text!r}.")


def cache_use() -> list[tuple[float, int, Path]]:
    """Return (time of last use, bytes, path) of each file of pixels or features, the oldest first."""
    found = []
    for path in (*cache_dir().glob("pixels/[!.]*.npy"), *cache_dir().glob("features/[!.]*.npy")):
        with contextlib.suppress(OSError):  # another process deletes it
            found.append((path.lstat().st_mtime, path.lstat().st_size, path))
    return sorted(found)


def in_use(path: Path) -> None:
    """Note that a file of pixels or features is used now."""
    with contextlib.suppress(OSError):  # a cache that cannot be written to
        os.utime(path)


def make_room(path: Path, needed: int) -> None:
    """Keep the cache within its limit when `needed` bytes are to be written to `path`; other folders have no limit.

    The least recently used files are deleted first, but none that was used within a day: another process may use it
    again.
    """
    remove_unfinished(path.parent)
    kept = cache_use() if cache_dir() in path.parents else []
    over = sum(size for _, size, _ in kept) + needed - cache_limit()
    for used, size, old in kept:
        if over <= 0 or used > time.time() - 86_400:
            break
        with contextlib.suppress(OSError):
            old.unlink()
            over -= size


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
    """Return the SHA-256 of files as 64 hexadecimal digits, in order; for a file that cannot be read, the error."""
    known, read = _known_hashes(), dict[str, list[Any]]()

    def hash_one(path: str) -> str | DataError:
        try:
            stamp = _stamp(path)
            if known.get(path, [])[:3] == stamp:
                return str(known[path][3])
            content = sha256_of_file(Path(path))
            if _stamp(path) != stamp:
                raise OSError("it changes while it is read")
            read[path] = [*stamp, content]
            return content
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            reason = getattr(error, "strerror", None) or error
            return DataError(f"Cannot read {path}: {reason}. Was it moved since the data set was loaded?")

    found = parallel_map(hash_one, paths, "Hashing files", show=show)
    settled = time.time_ns() - _SETTLED_NS
    if new := {path: entry for path, entry in read.items() if max(entry[1:3]) < settled}:
        with contextlib.suppress(OSError):  # a cache that cannot be written to
            write_file(cache_dir() / HASH_FILE, json.dumps(_known_hashes() | new).encode())
    return found


def _stamp(path: str) -> list[int]:
    """Return size, and the times of the last change of the content and of the entry, which no user can set."""
    status = Path(path).stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _known_hashes() -> dict[str, list[Any]]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((cache_dir() / HASH_FILE).read_bytes())
        if isinstance(known, dict) and all(isinstance(entry, list) and len(entry) == 4 for entry in known.values()):
            return known
    return {}
