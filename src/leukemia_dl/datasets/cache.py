"""The folder for what can be made again: synthetic cells, and decoded pixels."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """Return the cache folder, which need not exist: `LEUKEMIA_DL_CACHE` if set, else the user's cache folder."""
    chosen = os.environ.get("LEUKEMIA_DL_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("leukemia_dl"))
