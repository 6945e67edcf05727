"""Where and when a trial ran, and the memory that it took."""

from __future__ import annotations

import platform
import sys
import time
from importlib import metadata
from typing import Any

__all__ = ["environment"]


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
