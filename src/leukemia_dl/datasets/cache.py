"""The folder for what can be made again (synthetic cells, decoded pixels, features) and its limit."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from pathlib import Path

from leukemia_dl.errors import DataError, SettingsError

__all__ = ["cache_dir", "cache_limit", "cache_use", "in_use", "make_room", "user_path"]

_LIMIT_GB = "20"
_IN_USE_SECONDS = 86_400
_log = logging.getLogger(__name__)


def user_path(path: str | Path, name: str = "") -> Path:
    """Return a path as a user writes it, absolute, with `~` and `~name` replaced by home folders.

    Args:
        path: What came.
        name: Of the argument that it is, for the message.

    Raises:
        DataError: If there is no such user, or it is no path.
    """
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, TypeError) as error:
        raise DataError(f"{name + '=' if name else ''}{path!r} is no path that can be used: {error}.") from error


def cache_dir() -> Path:
    """Return the cache folder, which need not exist: `LEUKEMIA_DL_CACHE` if set, else the user's cache folder."""
    chosen = os.environ.get("LEUKEMIA_DL_CACHE")
    if chosen:
        return user_path(chosen)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("leukemia_dl"))


def cache_limit() -> float:
    """Return how many bytes decoded pixels and features may take: `LEUKEMIA_DL_CACHE_LIMIT` in GB, 20 by default.

    Raises:
        SettingsError: If the variable is no number of at least 0; `inf` means no limit.
    """
    text = os.environ.get("LEUKEMIA_DL_CACHE_LIMIT") or _LIMIT_GB
    try:
        limit = float(text) * 1e9
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise SettingsError(
            f"LEUKEMIA_DL_CACHE_LIMIT is a size in GB, such as {_LIMIT_GB}, or inf. Received: {text!r}."
        )
    return limit


def cache_use() -> list[tuple[float, int, Path]]:
    """Return when each pixel store and file of features was used last, its bytes and its path; the oldest first."""
    found = []
    for place in (*cache_dir().glob("pixels/[!.]*"), *cache_dir().glob("features/[!.]*.npy")):
        with contextlib.suppress(OSError):  # another process deletes it
            parts = list(place.iterdir()) if place.is_dir() else [place]
            found.append((place.lstat().st_mtime, sum(part.lstat().st_size for part in parts), place))
    return sorted(found)


def in_use(place: Path) -> None:
    """Note that a pixel store or a file of features is used now."""
    with contextlib.suppress(OSError):  # a cache that cannot be written to
        os.utime(place)


def make_room(place: Path, needed: int) -> None:
    """Delete what was not used for longest, until `needed` bytes more at `place` are within the limit of the cache.

    What was used within a day is kept, since a process elsewhere may go back to it; nothing is deleted if `place` is
    outside the cache folder.
    """
    if cache_dir() not in place.parents:
        return
    kept = cache_use()
    over = sum(size for _, size, _ in kept) + needed - cache_limit()
    for used, size, old in kept:
        if over <= 0 or time.time() - used < _IN_USE_SECONDS:
            break
        aside = old.with_name(f".old-{old.name}")  # at any moment it is whole or not there
        with contextlib.suppress(OSError):
            old.rename(aside)
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
            old.with_name(f"{old.name}.sha256").unlink(missing_ok=True)
            over -= size
            _log.info("Deleted %s from the cache, %.1f MB, to stay within its limit", old, size / 1e6)
    if over > 0:
        _log.info("The cache is %.1f GB above its limit: everything in it was used within a day", over / 1e9)
