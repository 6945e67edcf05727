"""Where trials run: in this process, or by whatever has `submit`; `processes` has other processes.

An executor is given tasks and yields what became of them, in the order in which they end. It neither reads nor writes
the store: the driver does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from leukemia_dl.benchmark.environment import temporary_prefix
from leukemia_dl.benchmark.runner import Listener, Shared, Task, failed_record, run_task
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.benchmark.worker import TrialLog, packed, run_packed
from leukemia_dl.errors import SettingsError, WorkerError

__all__ = ["Executor", "InProcess", "Outcome", "Submitted", "Watcher"]

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its record and the file of its net; or nothing, since it was stopped."""

    task: Task
    record: Record | None
    model: bytes | None = None


class Watcher(Protocol):
    """Who follows a run and may stop it."""

    @property
    def stopping(self) -> bool:
        """Whether no further trial should begin and the running ones should end after their epoch."""

    def begins(self, task: Task, at_once: bool = True) -> Listener | None:
        """Hear that a task is about to begin, and return who is told of it; None if it is not needed any more.

        Where others decide when it begins, `at_once` is false.
        """


class Executor(Protocol):
    """Runs tasks. `Benchmark.run` calls it; a user only makes one, and passes it there."""

    def workers_for(self, shared: Shared) -> int:
        """Return how many at a time, given what all tasks have in common (`shared`)."""

    def run(self, tasks: Iterable[Task], shared: Shared, watcher: Watcher) -> Iterator[Outcome]:
        """Yield an outcome for each of `tasks` that was begun, as it ends.

        `shared` is what they have in common; `watcher` is told of each as it begins, and may stop them.
        """


@dataclass(frozen=True)
class InProcess:
    """Runs trials one after the other in this process, which keeps their memory.

    A time limit is looked at after every epoch. Its methods are for `Benchmark.run`.
    """

    def workers_for(self, shared: Shared) -> int:
        """Return 1, whatever is `shared`."""
        return 1

    def run(self, tasks: Iterable[Task], shared: Shared, watcher: Watcher) -> Iterator[Outcome]:
        """Yield an outcome for each of `tasks`, which have `shared` in common; `watcher` follows and may stop them."""
        with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
            stop_file = Path(folder) / "stop"
            for task in tasks:
                if watcher.stopping:
                    return
                listener = watcher.begins(task)
                if listener is None:
                    continue
                task = replace(task, stop_file=stop_file)
                try:
                    with TrialLog(task, _Stopping(listener, watcher, stop_file)) as log:
                        record, model = run_task(task, shared, log)
                except KeyboardInterrupt:
                    if not watcher.stopping:
                        raise
                    yield Outcome(task, None)
                    return
                yield Outcome(task, record, model)


@dataclass(frozen=True)
class _Stopping:
    """Makes the stop file in time for it to be seen after this epoch."""

    listener: Listener
    watcher: Watcher
    stop_file: Path

    def step(self, epoch: int, step: int, steps: int, epochs: int) -> None:
        self.listener.step(epoch, step, steps, epochs)

    def epoch(self, epoch: int, epochs: int, row: Any) -> None:
        self.listener.epoch(epoch, epochs, row)
        if self.watcher.stopping:
            self.stop_file.touch()


class Submitted:
    """Runs trials by an object with `submit(function, *arguments)` whose results have `done()` and `result()`.

    So do the executors of concurrent.futures, `dask.distributed.Client` and `submitit.AutoExecutor`. All are submitted
    at once; tasks and pixels travel by paths that the workers must see. Its methods are for `Benchmark.run`.

    Args:
        executor: That object; one that is none, or a pool of threads, is a SettingsError.
    """

    def __init__(self, executor: Any) -> None:
        """Take the object."""
        if not callable(getattr(executor, "submit", None)):
            raise SettingsError(
                "executor must be 'auto', 'in-process', 'processes', 'ray', 'ray:ADDRESS', or an object with "
                f"submit(function, argument). Received: {executor!r}."
            )
        if isinstance(executor, ThreadPoolExecutor):
            raise SettingsError(
                "Threads cannot train side by side: Keras's seeds and the limits on memory are of the whole process. "
                "Use executor='processes', or a pool of processes."
            )
        self._executor = executor

    def workers_for(self, shared: Shared) -> int:
        """Return how many at a time, where the object says so, whatever is `shared`; otherwise 1."""
        return int(getattr(self._executor, "_max_workers", 1))

    def run(self, tasks: Iterable[Task], shared: Shared, watcher: Watcher) -> Iterator[Outcome]:
        """Yield an outcome for each of `tasks`, which have `shared` in common; `watcher` follows and may stop them."""
        waiting: dict[Any, tuple[Task, float]] = {}
        stop_file: Path | None = None
        handed = self._hand_over(shared)
        try:
            for task in tasks:
                if watcher.stopping:
                    break
                if watcher.begins(task, at_once=False) is None:
                    continue
                if task.checkpoints is not None:
                    stop_file = task.checkpoints.parent / f"stop-{os.getpid()}-{id(waiting)}"
                    task = replace(task, stop_file=stop_file)
                started = time.perf_counter()
                try:
                    waiting[self._submit(task, handed)] = (task, started)
                except Exception as error:  # a pool that is broken
                    yield Outcome(task, _lost(task, shared, error, started))
            told = False
            while waiting:
                if watcher.stopping and not told:
                    told = True
                    self._tell_to_stop(stop_file)
                ended = [future for future in waiting if future.done()]
                for future in ended:
                    task, started = waiting.pop(future)
                    yield self._outcome(task, shared, future, started, watcher)
                if not ended:
                    time.sleep(_POLL_SECONDS)
        finally:
            for future in waiting:
                with contextlib.suppress(Exception):
                    future.cancel()
            if waiting:
                # Some may run where nobody can end them: it stays for them to see, and `gc` takes it away.
                self._tell_to_stop(stop_file)
            elif stop_file is not None:
                with contextlib.suppress(OSError):
                    stop_file.unlink(missing_ok=True)
                    stop_file.parent.rmdir()

    def _hand_over(self, shared: Shared) -> Any:
        """Return what is shared in the form that `_submit` takes."""
        return packed(shared)

    def _submit(self, task: Task, handed: Any) -> Any:
        return self._executor.submit(run_packed, [*map(str, sys.path)], packed(task), handed)

    @staticmethod
    def _tell_to_stop(stop_file: Path | None) -> None:
        """Have running fits end after their epoch, and those that have not begun at once."""
        if stop_file is not None:
            with contextlib.suppress(OSError):
                stop_file.parent.mkdir(parents=True, exist_ok=True)
                stop_file.touch()

    @staticmethod
    def _outcome(task: Task, shared: Shared, future: Any, started: float, watcher: Watcher) -> Outcome:
        try:
            return Outcome(task, *future.result())
        except BaseException as error:
            if watcher.stopping:
                return Outcome(task, None)
            return Outcome(task, _lost(task, shared, error, started))


def _lost(task: Task, shared: Shared, error: BaseException, started: float) -> Record:
    """Return the record of a trial that was lost by who should have run it: its own failures come as records."""
    known = isinstance(error, WorkerError)
    message = str(error) if known else f"{type(error).__name__}: {error}".removesuffix(": ")
    return failed_record(task, shared, ("WorkerError", message, traceback.format_exc()), started)
