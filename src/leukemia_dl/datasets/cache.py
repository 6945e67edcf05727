"""The folder for files that can be made again (synthetic cells, decoded pixels, features), and its size limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from leukemia_dl.atomic import remove_unfinished
from leukemia_dl.errors import DataError, SettingsError

__all__ = ["cache_dir", "cache_limit", "cache_use", "in_use", "make_room", "user_path"]


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
    """Return (time of last use, bytes, path) of each pixel store and file of features, the oldest first."""
    found = []
    for place in (*cache_dir().glob("pixels/[!.]*"), *cache_dir().glob("features/[!.]*.npy")):
        with contextlib.suppress(OSError):  # another process deletes it
            parts = place.iterdir() if place.is_dir() else [place]
            found.append((place.lstat().st_mtime, sum(part.lstat().st_size for part in parts), place))
    return sorted(found)


def in_use(place: Path) -> None:
    """Note that a pixel store or a file of features is used now."""
    with contextlib.suppress(OSError):  # a cache that cannot be written to
        os.utime(place)


def make_room(place: Path, needed: int) -> None:
    """Keep the cache within its limit when `needed` bytes are to be written at `place`; other folders have no limit.

    The least recently used files are deleted first, but none that was used within a day: another process may use it
    again.
    """
    remove_unfinished(place.parent)
    kept = cache_use() if cache_dir() in place.parents else []
    over = sum(size for _, size, _ in kept) + needed - cache_limit()
    for used, size, old in kept:
        if over <= 0 or used > time.time() - 86_400:
            break
        with contextlib.suppress(OSError):
            aside = old.rename(old.with_name(f".{old.name}-00000000.unfinished"))  # at any moment it is whole or absent
            over -= size
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
