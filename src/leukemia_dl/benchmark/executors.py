"""Run the trials of backbones: in this process, or by an object with `submit`; `process_executor` has processes.

An executor takes trials from an iterator as it has room for them, and yields the output of each as it ends. It neither
reads nor writes the store.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.records import blank_record, failed_record
from leukemia_dl.benchmark.trial_runner import OnProgress, RunContext, TrialOutput, run_trial
from leukemia_dl.errors import SettingsError, TimeLimitError, WorkerError

__all__ = ["Executor", "SerialExecutor", "SubmitExecutor", "lost_trial", "packed", "run_isolated", "run_packed"]

POLL_SECONDS = 0.1


class Executor(Protocol):
    """Runs trials for `Benchmark.run`; a user makes one and passes it there."""

    def run(
        self, trials: Iterable[PlannedTrial], context: RunContext, on_progress: OnProgress
    ) -> Iterator[TrialOutput]:
        """Yield the output of each of `trials` as it ends; `on_progress` is called as it begins and proceeds."""


@dataclass(frozen=True)
class SerialExecutor:
    """Runs trials one after the other in this process; a time limit is compared after every epoch."""

    def run(
        self, trials: Iterable[PlannedTrial], context: RunContext, on_progress: OnProgress
    ) -> Iterator[TrialOutput]:
        """Yield the output of each of `trials`, with `context`, as it ends; `on_progress` is called per epoch."""
        for planned in trials:
            on_progress(planned.trial, 0, 0, {})
            yield run_trial(planned, context, on_progress)


class SubmitExecutor:
    """Runs trials by an object with `submit(function, *arguments)` whose results have `done()` and `result()`.

    So do the executors of concurrent.futures, `dask.distributed.Client` and `submitit.AutoExecutor`. All trials are
    submitted at once; settings and pixels travel by paths that the workers must see.

    Args:
        executor: That object; one that is none, or a pool of threads, is a SettingsError.
    """

    def __init__(self, executor: Any) -> None:
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

    def run(
        self, trials: Iterable[PlannedTrial], context: RunContext, on_progress: OnProgress
    ) -> Iterator[TrialOutput]:
        """Yield the output of each of `trials`, with `context`, as it ends; `on_progress` is not called."""
        waiting: dict[Any, tuple[PlannedTrial, float]] = {}
        shared = self._share(context)
        try:
            for planned in trials:
                started = time.perf_counter()
                try:
                    waiting[self._submit(planned, shared)] = (planned, started)
                except Exception as error:  # a pool that is broken
                    yield lost_trial(planned, context, error, started)
            while waiting:
                ended = [future for future in waiting if future.done()]
                for future in ended:
                    yield self._output(future, context, *waiting.pop(future))
                if not ended:
                    time.sleep(POLL_SECONDS)
        finally:
            for future in waiting:
                with contextlib.suppress(Exception):
                    future.cancel()

    def _share(self, context: RunContext) -> Any:
        """Return the context in the form that `_submit` takes."""
        return packed(context)

    def _submit(self, planned: PlannedTrial, shared: Any) -> Any:
        return self._executor.submit(run_packed, [*map(str, sys.path)], packed(planned), shared)

    @staticmethod
    def _output(future: Any, context: RunContext, planned: PlannedTrial, started: float) -> TrialOutput:
        try:
            return cast(TrialOutput, future.result())
        except BaseException as error:
            return TrialOutput(planned.trial, None) if context.stopped else lost_trial(planned, context, error, started)


def run_packed(path: list[str], planned: bytes, context: bytes, buffers: Sequence[Any] = ()) -> TrialOutput:
    """Run a packed trial with its packed context (its arrays in `buffers`), in a process of another executor."""
    sys.path += [folder for folder in path if folder not in sys.path]
    shared = pickle.loads(context, buffers=buffers)
    return run_isolated(pickle.loads(planned), shared, lambda *progress: None)


def run_isolated(planned: PlannedTrial, context: RunContext, on_progress: OnProgress) -> TrialOutput:
    """Run a trial, and return a failed record if it interrupts this process although no stop was requested."""
    started = time.perf_counter()
    try:
        return run_trial(planned, context, on_progress)
    except BaseException as error:
        return lost_trial(planned, context, error, started)


def lost_trial(planned: PlannedTrial, context: RunContext, error: BaseException, started: float) -> TrialOutput:
    """Return the failed record of a trial whose process did not return one."""
    if not isinstance(error, (TimeLimitError, WorkerError)):
        cause, error = error, WorkerError(f"{type(error).__name__}: {error}".removesuffix(": "))
        error.__cause__ = cause
    record = failed_record(blank_record(planned, context.samples), error, started, here=False)
    return TrialOutput(planned.trial, record)


def packed(value: Any, buffers: list[Any] | None = None) -> bytes:
    """Return a value as bytes that another process can read, functions of a script or a notebook included.

    The memory of its arrays is appended to `buffers` instead, if planned. SettingsError if something cannot be sent.
    """
    import cloudpickle

    try:
        keep = None if buffers is None else lambda buffer: buffers.append(buffer)
        return bytes(cloudpickle.dumps(value, protocol=5, buffer_callback=keep))
    except Exception as error:  # a callback factory may hold anything
        raise SettingsError(
            f"The trials cannot be sent to other processes ({type(error).__name__}: {error}). Name callbacks and "
            "builders by a function of a module, or use executor='in-process'."
        ) from error
