"""Run trials in other processes by loky's pools: one process per backbone, killed at the time limit.

Loky and not pebble: pebble imports the user's script in its processes, leaves out their `atexit` functions, and leaves
programs that a trial has started.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from leukemia_dl.benchmark import executors
from leukemia_dl.benchmark.executors import SerialExecutor, SubmitExecutor, Trials, lost_trial, packed
from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.trial import Trial
from leukemia_dl.benchmark.trial_runner import OnProgress, RunContext, TrialOutput, run_trial
from leukemia_dl.checks import whole_number
from leukemia_dl.errors import BackendError, SettingsError, TimeLimitError, WorkerError
from leukemia_dl.models.backend import backend_name
from leukemia_dl.progress import kept_memory, safe_path
from leukemia_dl.training.backends import ComputeConfig, prepare

__all__ = ["Executor", "ProcessExecutor", "call_elsewhere", "check_device", "choose_executor", "visible_gpus"]

T = TypeVar("T")
_END_SECONDS = 10.0  # for a process that has nothing left to do


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
        assert context.scratch is not None
        (context.scratch / "context").write_bytes(packed(context))
        environments = _environments(self.workers, context.compute)
        workers = [_Worker(context, context.scratch / f"worker-{i}", env) for i, env in enumerate(environments)]
        free, waiting = list(workers), iter(trials)
        try:
            while True:
                while free and (planned := next(waiting, None)) is not None:
                    worker = next((worker for worker in free if worker.suits(planned)), free[0])
                    free.remove(worker)
                    on_progress(planned.trial, 0, 0, {})
                    worker.start(planned)
                for worker in free:
                    worker.end()  # no trial is left for it: its memory is given back
                busy = [worker for worker in workers if worker not in free]
                if not busy:
                    return
                wait([worker.future for worker in busy], executors.POLL_SECONDS, FIRST_COMPLETED)
                for worker in busy:
                    for epoch in worker.new_epochs():
                        on_progress(worker.planned.trial, *epoch)
                    if (output := worker.output()) is not None:
                        free.append(worker)
                        yield output
        finally:
            for worker in workers:
                worker.kill()


Executor = SerialExecutor | ProcessExecutor | SubmitExecutor


def choose_executor(executor: Any, workers: int | None, trials: int) -> Executor:
    """Return the executor for a number of trials that a user has named, see `Benchmark.run`.

    Raises:
        SettingsError: If it is none that is allowed, or workers are given to one that has none.
    """
    if executor == "auto":
        executor = "processes" if trials > 1 or workers is not None else "in-process"
    if executor == "processes":
        return ProcessExecutor(None if workers is None else whole_number("workers", workers, 1))
    if workers is not None:
        raise SettingsError(f"workers belongs to executor='processes'. Received: executor={executor!r}.")
    if executor == "in-process":
        return SerialExecutor()
    if isinstance(executor, str) and re.match("ray(:|$)", executor):
        return executors.RayExecutor(address=executor[4:] or None)
    return executor if isinstance(executor, Executor) else SubmitExecutor(executor)


def _environments(workers: int | None, compute: ComputeConfig) -> list[dict[str, str]]:
    """Return the environment variables of each worker."""
    gpus = visible_gpus() if compute.device in ("auto", "gpu") else []
    common = {} if gpus or compute.device.startswith("gpu") else kept_memory()
    common["KERAS_BACKEND"] = backend_name()
    if compute.threads is not None:
        common["NPROC"] = str(compute.threads)  # read by JAX
    count = workers or max(len(gpus), 1)
    if len(gpus) < 2:
        return [common] * count
    return [common | {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(count)]


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without starting CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
            # It may print "No devices were found".
            named = " ".join(line for line in listed.split("\n") if line.strip().isdigit())
    return [name for name in (named or "").replace(",", " ").split() if name != "-1"]


class _Worker:
    """One process at a time, a loky pool of one, which runs the trials of one backbone after the other."""

    future: Future[None]  # of the trial that runs, or ran last
    planned: PlannedTrial

    def __init__(self, context: RunContext, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir()
        self._context, self._folder, self._environment = context, folder, environment
        self._pool: Any = None
        self._process: Any = None

    def suits(self, planned: PlannedTrial) -> bool:
        """Return whether the process has the backbone of a trial already."""
        return self._process is not None and self._process.is_alive() and self.planned.spec is planned.spec

    def start(self, planned: PlannedTrial) -> None:
        """Run a trial, in a new process if need be."""
        from joblib.externals.loky import ProcessPoolExecutor

        self._reused = self.suits(planned)
        for name in ("result", "progress"):
            (self._folder / name).unlink(missing_ok=True)
        with safe_path():  # loky starts processes in both calls
            if not self._reused:
                self.end()
                (self._folder / "spec").write_bytes(packed(planned.spec))
                driver = (os.getpid(), self._folder.parent)
                self._pool = ProcessPoolExecutor(1, initializer=_begin, initargs=driver, env=self._environment)
            self.planned, self._started, self._read = planned, time.perf_counter(), 0
            try:
                self.future = self._pool.submit(_work, replace(planned, spec=None), self._folder)
                self._process = next(iter(self._pool._processes.values()), self._process)
            except BrokenExecutor as error:  # the process died a moment ago
                self.future = Future()
                self.future.set_exception(error)

    def new_epochs(self) -> list[tuple[int, int, dict[str, Any]]]:
        """Return the epochs that have ended since the last call."""
        with contextlib.suppress(FileNotFoundError), (self._folder / "progress").open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")
            self._read += len(whole[0] + whole[1])
            return [json.loads(line) for line in whole[0].splitlines()]
        return []

    def output(self) -> TrialOutput | None:
        """Return the output of the trial; None while it runs, and if it begins again in a new process."""
        error = self.future.exception() if self.future.done() else None
        if self.future.done() and error is None:
            output: TrialOutput = pickle.loads((self._folder / "result").read_bytes())
            if output.record is None or output.record.status != "ok":
                self.end()
            return output
        limit = self._context.time_limit
        if error is None and limit is not None and time.perf_counter() - self._started > limit:
            error = TimeLimitError(f"It took longer than the limit of {limit:g} s and was killed.")
        if error is None:
            return None
        process = self._process
        self.kill()
        if isinstance(error, TimeLimitError) or self._context.stopped or not self._reused:
            if isinstance(error, BrokenExecutor):
                how = _ending(process.exitcode)
                error = WorkerError(f"The process ended without a result, by {how}. See its log.txt.")
            return lost_trial(self.planned, self._context, error, self._started)
        self.start(self.planned)  # the trials before it in the process may be the cause
        return None

    def end(self) -> None:
        """Let the process end by itself, which calls its `atexit` functions; kill it after a few seconds."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            until = time.monotonic() + _END_SECONDS
            while self._process.exitcode is None and time.monotonic() < until:
                time.sleep(0.02)
            self.kill()

    def kill(self) -> None:
        """Kill the process with the programs that its trials have started."""
        if self._pool is not None:
            with contextlib.suppress(OSError, AttributeError):  # Windows has no process groups
                os.killpg(self._process.pid, signal.SIGKILL)
            self._pool.shutdown(kill_workers=True)
            self._pool = self._process = None


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    why = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
    return f"signal {-code} ({signal.strsignal(-code)}){why}"


def _begin(driver: int, scratch: Path) -> None:
    """Separate a new process from the terminal of its driver, and end it when the driver ends."""
    from joblib.externals.loky import process_executor as loky

    loky._USE_PSUTIL = False  # or loky replaces a process that has grown, without the driver
    os.environ.pop("PYTHONSAFEPATH", None)  # for the programs that callbacks start
    os.dup2(2, 1)  # until the log of a trial is open

    def end_with_driver() -> None:
        while os.getppid() == driver:
            time.sleep(executors.POLL_SECONDS)
        shutil.rmtree(scratch, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    if os.name != "nt":
        os.setsid()  # Ctrl-C is for the driver, which lets epochs finish
        threading.Thread(target=end_with_driver, daemon=True).start()


@cache
def _unpickled(path: Path) -> Any:
    # Read once: a function of a script would be another one each time, and its net be built anew.
    return pickle.loads(path.read_bytes())


def _work(planned: PlannedTrial, folder: Path) -> None:
    """Run a trial in a process of a `_Worker`, and write its progress and its output to files in `folder`.

    Pipes would break if the process is killed while it writes a net of many megabytes.
    """
    planned, context = replace(planned, spec=_unpickled(folder / "spec")), _unpickled(folder.parent / "context")
    logs = context.store.logs(planned.trial)
    try:
        logs.mkdir(parents=True, exist_ok=True)
        _print_to(logs / "log.txt")
    except OSError:  # a trial does not fail for its log
        _print_to(Path(os.devnull))

    def report(trial: Trial, *epoch: Any) -> None:
        with contextlib.suppress(OSError), (folder / "progress").open("a", encoding="utf-8") as file:
            file.write(json.dumps(epoch, default=float) + "\n")

    output = run_trial(planned, context, report)
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "result").write_bytes(packed(output))


def _print_to(path: Path) -> None:
    """Append everything that this process prints to a file."""
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def call_elsewhere(function: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a function that is called in a new process, whose output is discarded.

    Raises:
        WorkerError: If the process ends without a result.
        BaseException: Raised by the function.
    """
    from joblib.externals.loky import ProcessPoolExecutor

    with safe_path(), ProcessPoolExecutor(1, initializer=_print_to, initargs=(Path(os.devnull),)) as pool:
        try:
            result: T = pool.submit(function, *arguments).result()
            return result
        except BrokenExecutor as error:
            codes = re.findall(r"[A-Z]+\(-?\d+\)", str(error))
            raise WorkerError(f"The process ended without a result ({', '.join(codes)}).") from error


def check_device(executor: Executor, precision: str, compute: ComputeConfig) -> None:
    """Raise BackendError now, and not once per trial, if the trials of a run would not find their device."""
    if isinstance(executor, SerialExecutor):
        prepare(precision, compute)
    elif isinstance(executor, ProcessExecutor) and (compute.device.startswith("gpu") or precision != "auto"):
        try:
            call_elsewhere(prepare, precision, compute)
        except WorkerError as error:
            raise BackendError(
                f"The process that looks for the device gave no answer: {error} "
                "Run `leukemia-dl doctor`, or use executor='in-process', to see where it fails."
            ) from error
