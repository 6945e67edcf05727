"""The cache folder (synthetic cells, decoded pixels, features, hashes of files): its place, size limit, and the hashes.

`hashes.json` in it holds `{path: [size, changed, moved, sha256]}`: a file is read again only if it has changed.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.atomic import remove_unfinished, sha256_of_file, write_file
from leukemia_dl.checks import real_number
from leukemia_dl.errors import DataError
from leukemia_dl.progress import parallel_map

HASH_FILE = "hashes.json"
_SETTLED_NS = 2_000_000_000  # a file that changes twice within a tick of the clock keeps its stamp
_log = logging.getLogger(__name__)


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
    number = pd.to_numeric(text, errors="coerce")
    return real_number("LEUKEMIA_DL_CACHE_LIMIT", text if pd.isna(number) else float(number), 0, math.inf) * 1e9


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


def is_whole(path: Path, shape: tuple[int, ...], dtype: str) -> bool:
    """Return whether a file holds an array of this shape and dtype; warn of one that does not, and is made again."""
    if not path.exists():
        return False
    with contextlib.suppress(Exception):  # numpy's reader of damaged headers raises about anything
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype == np.dtype(dtype) and array.shape == shape:
            return True
    _log.warning("%s is damaged, and is made again", path)
    return False


def make_room(path: Path, needed: int) -> None:
    """Delete the least recently used files of the cache, none of the last day, so that `needed` bytes fit at `path`."""
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


def tried_hashes(paths: list[str], show: bool = True) -> list[str | DataError]:
    """Return the SHA-256 of files as 64 hexadecimal digits, in order; for a file that cannot be read, the error."""
    known, read = _known_hashes(), dict[str, list[Any]]()

    def hash_one(path: str) -> str | DataError:
        try:
            status = Path(path).stat()
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]  # no user can set the last one
            if known.get(path, [])[:3] == stamp:
                return str(known[path][3])
            read[path] = [*stamp, sha256_of_file(Path(path))]
            return str(read[path][3])
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            reason = getattr(error, "strerror", None) or error
            problem = DataError(f"Cannot read {path}: {reason}. Was it moved since the data set was loaded?")
            problem.__cause__ = error
            return problem

    found = parallel_map(hash_one, paths, "Hashing files", show=show)
    settled = time.time_ns() - _SETTLED_NS
    if new := {path: entry for path, entry in read.items() if max(entry[1:3]) < settled}:
        with contextlib.suppress(OSError):  # a cache that cannot be written to
            write_file(cache_dir() / HASH_FILE, json.dumps(_known_hashes() | new).encode())
    return found


def _known_hashes() -> dict[str, list[Any]]:
    with contextlib.suppress(OSError, TypeError, ValueError):
        return dict(json.loads((cache_dir() / HASH_FILE).read_bytes()))
    return {}
