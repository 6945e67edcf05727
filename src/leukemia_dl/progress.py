"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, on standard error.

Below this many seconds nothing is shown, so that short work stays silent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["kept_memory", "parallel_map", "process_map", "track"]

T = TypeVar("T")
R = TypeVar("R")
_SILENT_SECONDS = 2.0
_LINE_SECONDS = 10.0
_WAITING = 500


def track(items: Iterable[T], total: int, what: str, show: bool = True) -> Iterator[T]:
    """Yield `items`, telling how far it is once it has taken longer than two seconds.

    Args:
        items: Anything iterable.
        total: How many there are.
        what: What is being done, such as "Reading images".
        show: False to say nothing.
    """
    start = last = time.monotonic()
    bar: Any = None
    with contextlib.ExitStack() as stack:
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if not show or now - start < _SILENT_SECONDS:
                continue
            if sys.stderr.isatty():
                if bar is None:
                    bar = stack.enter_context(_bar())
                    task = bar.add_task(what, total=total)
                bar.update(task, completed=done)
            elif now - last >= _LINE_SECONDS:
                last = now
                sys.stderr.write(f"{what}: {done:,} of {total:,}\n")


def parallel_map(
    function: Callable[[T], R],
    items: Iterable[T],
    what: str,
    workers: int | None = None,
    show: bool = True,
    total: int | None = None,
) -> list[R]:
    """Return `[function(item) for item in items]`, computed by threads, with progress.

    For work that releases the interpreter lock: decoding, hashing. The first exception ends it and is raised.
    `total` is the number of items, where they have no length.
    """
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            return list(track(_in_order(pool, function, items), _count(items, total), what, show))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _in_order(pool: Executor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Do what `pool.map` does with few items waiting at a time: a hundred thousand futures take 100 MB."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= _WAITING:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _count(items: Iterable[Any], total: int | None) -> int:
    return total if total is not None else len(items) if isinstance(items, Sized) else 0


def process_map(
    function: Callable[[T], R], items: Iterable[T], what: str, show: bool = True, total: int | None = None
) -> list[R]:
    """Return `[function(item) for item in items]`, computed by one process per core, with progress.

    For much work on small things, where threads would wait for each other. `function` must be picklable. A script needs
    no `if __name__ == "__main__"`. No process imports anything from the current folder that this one would not.
    """
    from joblib import cpu_count
    from joblib.externals.loky import ProcessPoolExecutor

    # A pool of our own, not joblib's common one: it ends with the work. Idle workers would hold memory for minutes, and
    # a process of multiprocessing waits for them before it ends.
    with _safe_path(), ProcessPoolExecutor(cpu_count(), env=kept_memory()) as pool:
        try:
            return list(track(_in_order(pool, function, items), _count(items, total), what, show))
        except BaseException:
            pool.shutdown(wait=True, kill_workers=True)
            raise


def kept_memory() -> dict[str, str]:
    """Return environment variables by which glibc keeps freed memory; none if the user has set any of them.

    Otherwise the kernel zeroes the same pages for each image and each step: ResNet50 at 96 pixels trained twice as
    fast on two cores, with equal bits and 3 to 20 % more memory at its peak.
    """
    keep = {"TRIM_THRESHOLD_": 2**31 - 1, "TOP_PAD_": 64 << 20, "MMAP_MAX_": 0, "ARENA_MAX": 1}
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    return {} if chosen else {f"MALLOC_{name}": str(value) for name, value in keep.items()}


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Start Python processes without the current folder in front of their path, where `-m` and `-c` would put it."""
    before = os.environ.get("PYTHONSAFEPATH", "")  # an empty value counts as unset
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        os.environ["PYTHONSAFEPATH"] = before


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
