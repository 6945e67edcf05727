"""Progress of long work: a bar on a terminal, elsewhere a line every ten seconds on standard error; parallel maps."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def track(items: Iterable[T], total: int, what: str, show: bool = True) -> Iterator[T]:
    """Yield `items` and show how many of `total` are done, under the title `what`, unless `show` is False."""
    if show and total and sys.stderr.isatty():
        from rich import progress
        from rich.console import Console

        yield from progress.track(items, what, total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if show and time.monotonic() - last >= 10:
            last = time.monotonic()
            sys.stderr.write(f"{what}: {done:,} of {total:,}\n")


def parallel_map(
    function: Callable[[T], R], items: Sequence[T], what: str, workers: int | None = None, show: bool = True
) -> list[R]:
    """Return `[function(item) for item in items]`, computed by threads, with progress."""
    with ThreadPoolExecutor(workers) as pool:
        return list(track(pool.map(function, items), len(items), what, show))


def process_map(function: Callable[[T], R], items: Sequence[T], what: str, show: bool = True) -> list[R]:
    """Return `[function(item) for item in items]`, computed by one process per core, with progress."""
    from joblib import cpu_count
    from joblib.externals.loky import ProcessPoolExecutor

    with safe_path(), ProcessPoolExecutor(cpu_count(), env=kept_memory()) as pool:
        return list(track(pool.map(function, items, chunksize=32), len(items), what, show))


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Start Python processes without the current folder in front of their path, where `-m` and `-c` put it."""
    before = os.environ.get("PYTHONSAFEPATH", "")  # an empty value counts as unset
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        os.environ["PYTHONSAFEPATH"] = before


def kept_memory() -> dict[str, str]:
    """Return environment variables by which glibc keeps freed memory; none if the user has set any of them."""
    # Otherwise the kernel zeroes the same pages for each image and each training step, which can double the time.
    keep = {"TRIM_THRESHOLD_": 2**31 - 1, "TOP_PAD_": 64 << 20, "MMAP_MAX_": 0, "ARENA_MAX": 1}
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    return {} if chosen else {f"MALLOC_{name}": str(value) for name, value in keep.items()}
