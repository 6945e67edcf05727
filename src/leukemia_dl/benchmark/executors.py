"""Run the trials of backbones in this process, by an object with `submit`, or by Ray.

An executor takes trials from an iterator as it has room for them, and yields the output of each as it ends. It neither
reads nor writes the store. `process_executor` has the one with processes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np

from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.records import blank_record, failed_record
from leukemia_dl.benchmark.trial_runner import OnProgress, RunContext, TrialOutput, run_trial
from leukemia_dl.errors import SettingsError, TimeLimitError, WorkerError

__all__ = ["RayExecutor", "SerialExecutor", "SubmitExecutor", "Trials", "lost_trial", "packed"]

POLL_SECONDS = 0.1
Trials = Iterable[PlannedTrial]


class SerialExecutor:
    """Runs trials one after the other in this process; a time limit is compared after every epoch."""

    def run(self, trials: Trials, context: RunContext, on_progress: OnProgress) -> Iterator[TrialOutput]:
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

    def run(self, trials: Trials, context: RunContext, on_progress: OnProgress) -> Iterator[TrialOutput]:
        """Yield the output of each of `trials`, with `context`, as it ends; `on_progress` is not called."""
        waiting: dict[Any, tuple[PlannedTrial, float]] = {}
        shared = self._share(context)
        try:
            for planned in trials:
                started = time.perf_counter()
                try:
                    waiting[self._submit(packed(planned), *shared)] = (planned, started)
                except Exception as error:  # a pool that is broken
                    yield lost_trial(planned, context, error, started)
            while waiting:
                ended = [future for future in waiting if future.done()]
                for future in ended:
                    planned, started = waiting.pop(future)
                    try:
                        output: TrialOutput = future.result()
                    except BaseException as error:
                        output = lost_trial(planned, context, error, started)
                    yield output
                if not ended:
                    time.sleep(POLL_SECONDS)
        finally:
            if waiting:
                context.stop()  # for trials that run already and cannot be ended from here
            for future in waiting:
                with contextlib.suppress(Exception):
                    future.cancel()

    def _share(self, context: RunContext) -> tuple[Any, ...]:
        """Return the arguments of `_submit` that are the same for all trials."""
        return [*map(str, sys.path)], packed(context)

    def _submit(self, *arguments: Any) -> Any:
        return self._executor.submit(_run_packed, *arguments)


@dataclass(eq=False)
class RayExecutor(SubmitExecutor):
    """Runs each trial as a task of Ray, in its own process, anywhere in a cluster.

    Ray decides where and when. The trials of a node that is lost are run again elsewhere; if the driver is lost, run it
    again: finished trials are in the store.

    Attributes:
        num_cpus: Cores that Ray reserves for a trial; None for all of the smallest node. `Benchmark(threads=...)` sets
            how many threads it uses, by default as many as its node has cores.
        num_gpus: GPUs that a trial takes, parts such as 0.5 included; None for one if the cluster has any, else none.
        shared_folders: Whether every node sees the store and the cache folder under the same paths. If not, pixels are
            sent once through Ray's object store, and an interrupted trial begins from its first epoch.
        max_retries: How often a trial is run again whose process or node was lost.
        address: Of a cluster, or "auto" for the one that this machine names (RAY_ADDRESS); None for a new one on this
            machine. A process that is connected to a cluster already stays connected to it.

    Raises:
        SettingsError: If Ray is not installed (extra `ray`).
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    _: KW_ONLY
    shared_folders: bool = True
    max_retries: int = 3
    address: str | None = None

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("ray is not installed. Install it: pip install 'leukemia-dl[ray]'.")

    def _share(self, context: RunContext) -> tuple[Any, ...]:
        """Put the context into Ray's object store, where the processes of a node read one copy of it."""
        import ray
        from ray.job_config import JobConfig

        if not ray.is_initialized():
            # Otherwise Ray puts the current folder onto the path of its workers, before all others.
            config = JobConfig(_client_job=True)
            ray.init(self.address or "local", job_config=config, log_to_driver=False, include_dashboard=False)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
        gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
        self._remote = ray.remote(
            num_cpus=cores if self.num_cpus is None else self.num_cpus,
            num_gpus=gpus if self.num_gpus is None else self.num_gpus,
            max_retries=self.max_retries,
            max_calls=1,  # a process per trial, which gives back its memory, and that of its GPU
        )(_run_packed)
        if not self.shared_folders:
            images = {size: images.in_memory() for size, images in context.images.items()}
            context = replace(context, images=images, store=None, scratch=None)
        buffers: list[Any] = []
        content = packed(context, buffers.append)
        arrays = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
        return [*map(str, sys.path)], ray.put(content), ray.put(arrays)

    def _submit(self, *arguments: Any) -> Any:
        return self._remote.remote(*arguments).future()


def _run_packed(planned: bytes, path: list[str], context: bytes, arrays: Sequence[Any] = ()) -> TrialOutput:
    """Run a packed trial with its packed context, which may have its `arrays` apart, in a process of an executor."""
    sys.path += [folder for folder in path if folder not in sys.path]
    return run_trial(pickle.loads(planned), pickle.loads(context, buffers=arrays), lambda *progress: None)


def lost_trial(planned: PlannedTrial, context: RunContext, error: BaseException, started: float) -> TrialOutput:
    """Return the output of a trial whose process returned none: a failed record, or none if the run is stopped."""
    if context.stopped:
        return TrialOutput(planned.trial, None)
    if not isinstance(error, (TimeLimitError, WorkerError)):
        cause, error = error, WorkerError(f"{type(error).__name__}: {error}".removesuffix(": "))
        error.__cause__ = cause
    record = failed_record(blank_record(planned, context.samples), error, started, here=False)
    return TrialOutput(planned.trial, record)


def packed(value: Any, take_buffer: Any = None) -> bytes:
    """Return a value as bytes that another process can read, functions of a script or a notebook included.

    `take_buffer`, if there is one, is called with the memory of each array, which is then left out of the bytes.

    Raises:
        SettingsError: If something cannot be sent.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value, protocol=5, buffer_callback=take_buffer))
    except Exception as error:  # a callback factory may hold anything
        raise SettingsError(
            f"The trials cannot be sent to other processes ({type(error).__name__}: {error}). Name callbacks and "
            "builders by a function of a module, or use executor='in-process'."
        ) from error
