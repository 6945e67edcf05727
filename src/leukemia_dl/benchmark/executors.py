"""Run the trials of backbones: in this process, in other processes, by an object with `submit`, or by Ray.

Other processes read the context of the run, with all its trials, from a file in the store.
"""

import contextlib
import importlib.util
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from leukemia_dl.benchmark.plan import PlannedTrial, Trial
from leukemia_dl.benchmark.records import blank_record, failed_record
from leukemia_dl.benchmark.trial_runner import OnProgress, RunContext, TrialOutput, run_trial
from leukemia_dl.checks import whole_number
from leukemia_dl.errors import SettingsError, TimeLimitError, WorkerError
from leukemia_dl.models.backbones import Spec
from leukemia_dl.models.build import backend_name
from leukemia_dl.progress import kept_memory, safe_path
from leukemia_dl.training.backends import ComputeConfig

POLL_SECONDS = 0.1
_END_SECONDS = 10.0  # for a process that has nothing left to do
Trials = Iterable[PlannedTrial]


class SerialExecutor:
    """Runs trials one after the other in this process; a time limit is compared after every epoch."""

    def run(self, trials: Trials, context: RunContext, on_progress: OnProgress) -> Iterator[TrialOutput]:
        """Yield the output of each of `trials`, with `context`, as it ends; `on_progress` is called per epoch."""
        for planned in trials:
            yield run_trial(planned, context, on_progress)


class SubmitExecutor:
    """Runs trials by an object with `submit(function, *arguments)` whose results have `done()` and `result()`.

    So do the executors of concurrent.futures, `dask.distributed.Client`, `submitit.AutoExecutor` and `RayExecutor`. All
    trials are submitted at once; the workers must see the store and the cache folder under the same paths.

    Args:
        executor: That object; one that is none, or a pool of threads, is a SettingsError.
    """

    def __init__(self, executor: Any) -> None:
        # Threads cannot train side by side: Keras's seeds and the limits on memory are of the whole process.
        if not callable(getattr(executor, "submit", None)) or isinstance(executor, ThreadPoolExecutor):
            raise SettingsError(
                "executor must be 'auto', 'in-process', 'processes', 'ray', 'ray:ADDRESS', or an object with "
                f"submit(function, argument) that uses processes, not threads. Received: {executor!r}."
            )
        self.executor = executor

    def run(self, trials: Trials, context: RunContext, on_progress: OnProgress) -> Iterator[TrialOutput]:
        """Yield the output of each of `trials`, with `context`, as it ends; `on_progress` is not called."""
        _write_context(context)
        waiting: dict[Any, PlannedTrial] = {}
        path, started = [*map(str, sys.path)], time.perf_counter()
        try:
            for planned in trials:
                task = (_run_submitted, path, context.scratch, planned.trial.digest)
                try:
                    waiting[self.executor.submit(*task)] = planned
                except Exception as error:  # a pool that is broken
                    yield _lost_trial(planned, context, error, started)
            while waiting:
                ended = [future for future in waiting if future.done()]
                for future in ended:
                    planned = waiting.pop(future)
                    try:
                        output: TrialOutput = future.result()
                    except BaseException as error:
                        output = _lost_trial(planned, context, error, started)
                    yield output
                if not ended:
                    time.sleep(POLL_SECONDS)
        finally:
            if waiting:
                context.stop()  # for trials that run already and cannot be ended from here
            for future in waiting:
                with contextlib.suppress(Exception):
                    future.cancel()


def _run_submitted(path: list[str], scratch: Path, digest: str) -> TrialOutput:
    """Run a trial in a process that shares the folders of its driver, and finds modules on its `path`."""
    sys.path += [folder for folder in path if folder not in sys.path]
    context = _read_context(scratch)
    return run_trial(context.nets[digest], context, lambda *progress: None)


@dataclass(eq=False)
class RayExecutor:
    """Runs each trial as a task of Ray (extra `ray`), in its own process, anywhere in a cluster.

    Ray decides where and when. The trials of a node that is lost are run again elsewhere; if the driver is lost, run it
    again: finished trials are in the store. Every node must see the store and the cache folder under the same paths.

    Attributes:
        num_cpus: Cores that Ray reserves for a trial; None for all of the smallest node. `Benchmark(threads=...)` sets
            how many threads it uses, by default as many as its node has cores.
        num_gpus: GPUs that a trial takes, parts such as 0.5 included; None for one if the cluster has any, else none.
        max_retries: How often a trial is run again whose process or node was lost.
        address: Of a cluster, or "auto" for the one that this machine names (RAY_ADDRESS); None for a new one on this
            machine. A process that is connected to a cluster already stays so. SettingsError: Ray is not installed.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    _: KW_ONLY
    max_retries: int = 3
    address: str | None = None
    _task: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("ray is not installed. Install it: pip install 'leukemia-dl[ray]'.")

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function` with `arguments` as a task of Ray, and return its future."""
        self._task = self._task or self._remote(function)
        return self._task.remote(*arguments).future()

    def _remote(self, function: Callable[..., Any]) -> Any:
        import ray
        from ray.job_config import JobConfig

        if not ray.is_initialized():
            # Otherwise Ray puts the current folder onto the path of its workers, before all others.
            config = JobConfig(_client_job=True)
            ray.init(self.address or "local", job_config=config, log_to_driver=False, include_dashboard=False)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
        gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
        return ray.remote(
            num_cpus=cores if self.num_cpus is None else self.num_cpus,
            num_gpus=gpus if self.num_gpus is None else self.num_gpus,
            max_retries=self.max_retries,
            max_calls=1,  # a process per trial, which gives back its memory, and that of its GPU
        )(function)


@dataclass(frozen=True)
class ProcessExecutor:
    """Runs trials in other processes; the crash of a process costs one trial.

    The trials of a backbone follow one another in a process, for which it is built and compiled once; another backbone,
    and a trial after one that failed, begins in a new one.

    Attributes:
        workers: Number of processes at a time; None for one per GPU, and for one where there is none, since one net
            keeps all cores busy. With several GPUs each worker sees one of them.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            object.__setattr__(self, "workers", whole_number("workers", self.workers, 1))

    def run(self, trials: Trials, context: RunContext, on_progress: OnProgress) -> Iterator[TrialOutput]:
        """Yield the output of each of `trials`, with `context`, as it ends; `on_progress` is called per epoch."""
        _write_context(context)
        waiting, environments = iter(trials), _environments(self.workers, context.compute)
        workers = [_Worker(context, number, env) for number, env in enumerate(environments)]
        outputs = [worker.outputs(waiting, on_progress) for worker in workers]
        try:
            while outputs:
                running = list[Future[None]]()
                for each in list(outputs):
                    found = next(each, self)
                    if isinstance(found, ProcessExecutor):
                        outputs.remove(each)
                    elif isinstance(found, Future):
                        running.append(found)
                    else:
                        yield found
                if len(running) == len(outputs):
                    wait(running, POLL_SECONDS, FIRST_COMPLETED)
        finally:
            for worker in workers:
                worker.kill()


class _Worker:
    """One process at a time, a loky pool of one, which runs the trials of one backbone after the other."""

    def __init__(self, context: RunContext, number: int, environment: dict[str, str]) -> None:
        self._context, self._environment, self._folder = context, environment, context.scratch / f"worker-{number}"
        self._folder.mkdir()
        self._pool: Any = None
        self._process: Any = None
        self._spec: Spec | None = None

    def outputs(self, trials: Iterator[PlannedTrial], on_progress: OnProgress) -> Generator[Future[None] | TrialOutput]:
        """Run trials; yield the future of the running one for as long as it runs, and then its output."""
        limit, progress = self._context.time_limit or math.inf, self._folder / "progress"
        for planned in trials:
            progress.write_text("")
            started, shown, ended, late = time.perf_counter(), 0, False, False
            future = self._submit(planned)
            while not ended and not late:
                yield future
                ended, late = future.done(), time.perf_counter() - started > limit
                *lines, _ = progress.read_text().split("\n")  # the last one may not be whole
                for line in lines[shown:]:
                    on_progress(planned.trial, *json.loads(line))
                shown = len(lines)
            error = future.exception() if ended else TimeLimitError(f"It took longer than {limit:g} s and was killed.")
            if error is None:
                output: TrialOutput = pickle.loads((self._folder / "result").read_bytes())
            else:
                self.kill()
                output = _lost_trial(planned, self._context, error, started)
            if output is None or output[0].status != "ok":
                self._end()
            yield output
        self._end()

    def _submit(self, planned: PlannedTrial) -> Future[None]:
        from joblib.externals.loky import ProcessPoolExecutor

        with safe_path():  # loky starts processes in both calls
            if self._pool is None or not self._process.is_alive() or self._spec is not planned.spec:
                self._end()
                driver = (os.getpid(), self._folder.parent)
                self._pool = ProcessPoolExecutor(1, initializer=_begin, initargs=driver, env=self._environment)
            try:
                future: Future[None] = self._pool.submit(_work, planned.trial.digest, self._folder)
            except BrokenExecutor as error:  # the process died a moment ago
                future = Future()
                future.set_exception(error)
        self._spec, self._process = planned.spec, next(iter(self._pool._processes.values()), self._process)
        return future

    def _end(self) -> None:
        """Let the process end by itself, which calls its `atexit` functions; kill it after a few seconds."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            until = time.monotonic() + _END_SECONDS
            while self._process.exitcode is None and time.monotonic() < until:
                time.sleep(0.02)  # `join` would wait for programs that it has started
            self.kill()

    def kill(self) -> None:
        """Kill the process with the programs that its trials have started."""
        if self._pool is not None:
            with contextlib.suppress(OSError, AttributeError):  # Windows has no process groups
                os.killpg(self._process.pid, signal.SIGKILL)
            self._pool.shutdown(kill_workers=True)
            self._pool = None


def _begin(driver: int, scratch: Path) -> None:
    """Separate a new process from the terminal of its driver, and end it when the driver ends."""
    from joblib.externals.loky import process_executor as loky

    loky._USE_PSUTIL = False  # or loky replaces a process that has grown, without the driver
    os.environ.pop("PYTHONSAFEPATH", None)  # for the programs that callbacks start
    os.dup2(2, 1)  # until the log of a trial is open

    def end_with_driver() -> None:
        while os.getppid() == driver:
            time.sleep(POLL_SECONDS)
        shutil.rmtree(scratch, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    if os.name != "nt":
        os.setsid()  # Ctrl-C is for the driver, which lets epochs finish
        threading.Thread(target=end_with_driver, daemon=True).start()


def _work(digest: str, folder: Path) -> None:
    """Run a trial in a process of a `_Worker`; a pipe would break if it is killed while it writes a net into it."""
    context = _read_context(folder.parent)
    planned = context.nets[digest]
    logs = context.store.logs(planned.trial)
    with contextlib.suppress(OSError):  # a trial does not fail for its log
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "log.txt").open("ab") as log:  # gets everything that this process prints
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)

    def report(trial: Trial, *epoch: Any) -> None:
        with contextlib.suppress(OSError), (folder / "progress").open("a") as file:
            file.write(json.dumps(epoch, default=float) + "\n")

    output = run_trial(planned, context, report)
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "result").write_bytes(pickle.dumps(output))


def _write_context(context: RunContext) -> None:
    import cloudpickle

    try:
        content = cloudpickle.dumps(context)
    except Exception as error:  # a callback factory may hold anything
        raise SettingsError(f"Trials cannot be sent to other processes: {error}. Use executor='in-process'.") from error
    (context.scratch / "context").write_bytes(content)


@lru_cache(maxsize=1)
def _read_context(scratch: Path) -> RunContext:
    # Read once: a function of a script would be another one each time, and its net be built anew.
    return pickle.loads((scratch / "context").read_bytes())  # type: ignore[no-any-return]


def _lost_trial(planned: PlannedTrial, context: RunContext, error: BaseException, started: float) -> TrialOutput:
    """Return the output of a trial whose process returned none: a failed record, or none if the run is stopped."""
    if context.stopped:
        return None
    if not isinstance(error, TimeLimitError):
        cause, error = error, WorkerError(f"{type(error).__name__}: {error}".removesuffix(": "))
        error.__cause__ = cause
    return failed_record(blank_record(planned, context.samples), error, started, here=False), None


Executor = SerialExecutor | ProcessExecutor | SubmitExecutor


def choose_executor(executor: Any, workers: int | None, trials: int) -> Executor:
    """Return the executor for a number of trials that a user has named, see `Benchmark.run`."""
    if executor == "auto":
        executor = "processes" if trials > 1 or workers is not None else "in-process"
    if executor == "processes":
        return ProcessExecutor(workers)
    if workers is not None:
        raise SettingsError(f"workers belongs to executor='processes'. Received: executor={executor!r}.")
    if executor == "in-process":
        return SerialExecutor()
    if isinstance(executor, str) and re.match("ray(:|$)", executor):
        executor = RayExecutor(address=executor[4:] or None)
    return executor if isinstance(executor, Executor) else SubmitExecutor(executor)


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without starting CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
            named = " ".join(re.findall(r"^\d+$", listed, re.MULTILINE))  # it may print "No devices were found"
    return [name for name in (named or "").replace(",", " ").split() if name != "-1"]


def _environments(workers: int | None, compute: ComputeConfig) -> list[dict[str, str]]:
    gpus = visible_gpus() if compute.device in ("auto", "gpu") else []
    on_gpu = bool(gpus) or compute.device.startswith("gpu")
    common = {"KERAS_BACKEND": backend_name()} | ({} if on_gpu else kept_memory())
    own = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] if len(gpus) > 1 else [{}]
    return [common | own[number % len(own)] for number in range(workers or max(len(gpus), 1))]
