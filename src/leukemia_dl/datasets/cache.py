"""The folder for what can be made again: synthetic cells, and decoded pixels."""

from __future__ import annotations

import os
from pathlib import Path

from leukemia_dl.errors import DataError

__all__ = ["cache_dir", "user_path"]


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
