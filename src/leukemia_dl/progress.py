"""Progress of long work on standard error: after two seconds a bar on a terminal, elsewhere a line every ten."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["kept_memory", "parallel_map", "process_map", "safe_path", "track"]

T = TypeVar("T")
R = TypeVar("R")
_SILENT_SECONDS, _LINE_SECONDS = 2.0, 10.0


def track(items: Iterable[T], total: int, what: str, show: bool = True) -> Iterator[T]:
    """Yield `items` and show how many of `total` are done, under the title `what`, unless `show` is False."""
    start = last = time.monotonic()
    with contextlib.ExitStack() as stack:
        bar: Any = None
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if not show or now - start < _SILENT_SECONDS:
                continue
            if sys.stderr.isatty():
                bar = bar or _started_bar(stack, what, total)
                bar.update(bar.task_ids[0], completed=done)
            elif now - last >= _LINE_SECONDS:
                last = now
                sys.stderr.write(f"{what}: {done:,} of {total:,}\n")


def _started_bar(stack: contextlib.ExitStack, what: str, total: int) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    bar.add_task(what, total=total)
    return bar


def parallel_map(
    function: Callable[[T], R], items: Sequence[T], what: str, workers: int | None = None, show: bool = True
) -> list[R]:
    """Return `[function(item) for item in items]`, computed by threads, with progress."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(track(pool.map(function, items), len(items), what, show))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def process_map(function: Callable[[T], R], items: Sequence[T], what: str, show: bool = True) -> list[R]:
    """Return `[function(item) for item in items]`, computed by one process per core, with progress.

    The processes end with the work: idle workers of joblib's common pool would hold memory for minutes.
    """
    from joblib import cpu_count
    from joblib.externals.loky import ProcessPoolExecutor

    with safe_path():
        pool = ProcessPoolExecutor(cpu_count(), env=kept_memory())
        try:
            return list(track(pool.map(function, items, chunksize=32), len(items), what, show))
        finally:
            pool.shutdown(kill_workers=True)


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
    """Return environment variables by which glibc keeps freed memory; none if the user has set any of them.

    Otherwise the kernel zeroes the same pages for each image and each training step, which can double the time.
    """
    keep = {"TRIM_THRESHOLD_": 2**31 - 1, "TOP_PAD_": 64 << 20, "MMAP_MAX_": 0, "ARENA_MAX": 1}
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    return {} if chosen else {f"MALLOC_{name}": str(value) for name, value in keep.items()}
