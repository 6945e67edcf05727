"""Where and when a trial ran, the memory that it took, and temporary folders."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["environment", "remove_leftovers", "temporary_prefix"]

_DAY = 86_400.0


def environment(started: float) -> dict[str, Any]:
    """Return what `timings.csv` says of a trial that ends now and began at `started` by `time.perf_counter()`."""
    versions = {}
    for name in ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory_gib": _peak_memory(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": "; ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _peak_memory() -> float | None:
    """Return the peak of this process so far in GiB, None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def temporary_prefix() -> str:
    """Return the prefix of this process's temporary folders, which holds its number for `remove_leftovers`."""
    return f"leukemia-dl-{os.getpid()}-"


def remove_leftovers() -> None:
    """Remove temporary folders that are older than a day and whose process no longer exists."""
    if os.name == "nt":  # where signal 0 ends a process
        return
    for path in Path(tempfile.gettempdir()).glob("leukemia-dl-*-*"):
        with contextlib.suppress(OSError, ValueError):
            try:
                os.kill(int(path.name.split("-")[2]), 0)
            except ProcessLookupError:
                if path.lstat().st_uid == os.getuid() and path.lstat().st_mtime < time.time() - _DAY:
                    shutil.rmtree(path)
