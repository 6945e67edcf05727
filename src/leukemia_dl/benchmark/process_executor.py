"""Run trials in other processes by loky's pools: one process per backbone, killed at the time limit.

Loky and not pebble: pebble imports the user's script in its processes, leaves out their `atexit` functions, and leaves
programs that a trial has started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from leukemia_dl.benchmark.executors import (
    POLL_SECONDS,
    Executor,
    SerialExecutor,
    SubmitExecutor,
    lost_trial,
    packed,
    run_isolated,
)
from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.trial import Trial
from leukemia_dl.benchmark.trial_runner import OnProgress, RunContext, TrialOutput
from leukemia_dl.checks import whole_number
from leukemia_dl.errors import BackendError, SettingsError, TimeLimitError, WorkerError
from leukemia_dl.progress import kept_memory, safe_path
from leukemia_dl.training.backends import ComputeConfig, prepare

__all__ = ["ProcessExecutor", "call_elsewhere", "check_device", "choose_executor", "visible_gpus"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_END_SECONDS = 10.0  # for a process that has nothing left to do


def choose_executor(executor: Any, workers: int | None, trials: int) -> Executor:
    """Return the executor for a number of trials that a user has named, see `Benchmark.run`.

    Raises:
        SettingsError: If it is none that is allowed, or workers are planned to one that has none.
    """
    if executor == "auto":
        executor = "processes" if trials > 1 or workers is not None else "in-process"
    if executor == "processes":
        return ProcessExecutor(workers)
    kind, _, address = executor.partition(":") if isinstance(executor, str) else ("", "", "")
    known = kind in ("ray", "in-process") or isinstance(executor, (SerialExecutor, ProcessExecutor, SubmitExecutor))
    if not known:
        executor = SubmitExecutor(executor)
    if workers is not None:
        raise SettingsError(f"workers belongs to executor='processes'. Received: executor={executor!r}.")
    if kind == "ray":
        from leukemia_dl.benchmark.ray_executor import RayExecutor

        return RayExecutor(address=address or None)
    return SerialExecutor() if kind == "in-process" else cast(Executor, executor)


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

    def run(
        self, trials: Iterable[PlannedTrial], context: RunContext, on_progress: OnProgress
    ) -> Iterator[TrialOutput]:
        """Yield the output of each of `trials`, with `context`, as it ends; `on_progress` is called per epoch."""
        assert context.scratch is not None
        (context.scratch / "context").write_bytes(packed(context))
        device = context.compute.device
        gpus = visible_gpus() if device in ("auto", "gpu") else []
        environment = {} if gpus or device.startswith("gpu") else kept_memory()
        if context.compute.threads is not None:
            environment["NPROC"] = str(context.compute.threads)  # read by JAX
        free = list[_Worker]()
        for number in range(self.workers or max(len(gpus), 1)):
            gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if len(gpus) > 1 else {}
            free.append(_Worker(context, context.scratch / f"worker-{number}", environment | gpu))
        workers, busy, waiting = tuple(free), list[_Worker](), iter(trials)
        try:
            while True:
                while free and (planned := next(waiting, None)) is not None:
                    worker = next((worker for worker in free if worker.suits(planned)), free[0])
                    free.remove(worker)
                    busy.append(worker)
                    on_progress(planned.trial, 0, 0, {})
                    worker.start(planned)
                for worker in free:
                    worker.end()  # no trial is left for it: its memory is planned back
                if not busy:
                    return
                wait([worker.future for worker in busy], POLL_SECONDS, FIRST_COMPLETED)
                for worker in tuple(busy):
                    for epoch in worker.new_epochs():
                        on_progress(worker.planned.trial, *epoch)
                    output = worker.output()
                    if output is not None:
                        busy.remove(worker)
                        free.append(worker)
                        yield output
        finally:
            for worker in workers:
                worker.kill()


class _Worker:
    """One process at a time, a loky pool of one, which runs the trials of one backbone after the other."""

    def __init__(self, context: RunContext, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir()
        self._context, self._folder, self._environment = context, folder, environment
        self._pool: Any = None
        self._process: Any = None
        self.future: Future[None] = Future()
        self.planned: PlannedTrial

    def suits(self, planned: PlannedTrial) -> bool:
        """Return whether the process has the backbone of a trial already."""
        return self._process is not None and self._process.is_alive() and self.planned.spec is planned.spec

    def start(self, planned: PlannedTrial) -> None:
        """Run a trial, in a new process if need be."""
        self._reused = self.suits(planned)
        if not self._reused:
            self.end()
            self._begin(planned)
        self.planned, self._started, self._read = planned, time.perf_counter(), 0
        for name in ("result", "progress"):
            (self._folder / name).unlink(missing_ok=True)
        try:
            with safe_path():
                self.future = self._pool.submit(_work, replace(planned, spec=None), self._folder)
            self._process = next(iter(self._pool._processes.values()), self._process)
        except BrokenExecutor as error:  # the process died a moment ago
            self.future = Future()
            self.future.set_exception(error)

    def _begin(self, planned: PlannedTrial) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        (self._folder / "spec").write_bytes(packed(planned.spec))
        environment = self._environment | ({"KERAS_BACKEND": planned.trial.backend} if planned.trial.backend else {})
        start = (os.getpid(), self._folder.parent)
        with safe_path():  # loky starts a process of its own already here
            self._pool = ProcessPoolExecutor(1, initializer=_begin_worker, initargs=start, env=environment)

    def new_epochs(self) -> list[tuple[int, int, dict[str, Any]]]:
        """Return the epochs that have ended since the last call."""
        with contextlib.suppress(FileNotFoundError), (self._folder / "progress").open("rb") as file:
            file.seek(self._read)
            lines = file.read().rpartition(b"\n")[0]
            self._read += len(lines) + 1 if lines else 0
            return [json.loads(line) for line in lines.splitlines()]
        return []

    def output(self) -> TrialOutput | None:
        """Return the output of the trial; None while it runs, and if it begins again in a new process."""
        if self.future.done() and self.future.exception() is None:
            output: TrialOutput = pickle.loads((self._folder / "result").read_bytes())
            if output.record is None or output.record.status != "ok":
                self.end()
            return output
        limit = self._context.time_limit
        late = limit is not None and time.perf_counter() - self._started > limit
        if not (late or self.future.done() or self._process.exitcode is not None):
            return None
        process, error = self._process, self.future.exception() if self.future.done() else None
        self.kill()
        if late:
            error = TimeLimitError(f"It took longer than the limit of {limit:g} s and was killed.")
        elif self._context.stopped:
            return TrialOutput(self.planned.trial, None)
        elif self._reused:  # the trials before it in the process may be the cause
            self.start(self.planned)
            return None
        elif error is None or isinstance(error, BrokenExecutor):
            error = WorkerError(f"The process ended without a result, by {_ending(process.exitcode)}. See its log.txt.")
        return lost_trial(self.planned, self._context, error, self._started)

    def end(self) -> None:
        """Let the process end by itself, which calls its `atexit` functions; kill it after a few seconds."""
        if self._pool is None:
            return
        self._pool.shutdown(wait=False)
        until = time.monotonic() + _END_SECONDS
        while self._process.exitcode is None and time.monotonic() < until:
            time.sleep(0.02)
        if self._process.exitcode != 0:
            how = "was killed" if self._process.exitcode is None else f"ended by {_ending(self._process.exitcode)}"
            _log.warning(
                "The process %d of %s %s after its last trial.", self._process.pid, self.planned.trial.backbone, how
            )
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


def _begin_worker(driver: int, scratch: Path) -> None:
    """Separate a new process from the terminal of its driver, and end it when the driver ends."""
    from joblib.externals.loky import process_executor as loky

    loky._USE_PSUTIL = False  # or loky replaces a process that has grown, without the driver
    os.environ.pop("PYTHONSAFEPATH", None)  # for the programs that callbacks start
    os.dup2(2, 1)  # until the log of a trial is open
    if os.name != "nt":
        os.setsid()  # Ctrl-C is for the driver, which lets epochs finish
        threading.Thread(target=_end_with_driver, args=(driver, scratch), daemon=True).start()


def _end_with_driver(driver: int, scratch: Path) -> None:
    while os.getppid() == driver:
        time.sleep(POLL_SECONDS)
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


@cache
def _unpickled(path: Path) -> Any:
    # Read once: a function of a script would be another one each time, and its net be built anew.
    return pickle.loads(path.read_bytes())


def _work(planned: PlannedTrial, folder: Path) -> None:
    """Run a trial in a process of a `_Worker`, and write its progress and its output to files in `folder`.

    Pipes would break if the process is killed while it writes a net of many megabytes.
    """
    planned, context = replace(planned, spec=_unpickled(folder / "spec")), _unpickled(folder.parent / "context")
    _print_to(context.store.logs(planned.trial))

    def report(trial: Trial, *epoch: Any) -> None:
        with contextlib.suppress(OSError), (folder / "progress").open("a", encoding="utf-8") as file:
            file.write(json.dumps(epoch, default=float) + "\n")

    output = run_isolated(planned, context, report)
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "result").write_bytes(packed(output))


def _print_to(folder: Path | None) -> None:
    """Redirect everything that this process prints to log.txt in a folder; discard it without one."""
    path = Path(os.devnull)
    if folder is not None:
        with contextlib.suppress(OSError):  # a trial does not fail for its log
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "log.txt").touch()
            path = folder / "log.txt"
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def call_elsewhere(function: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a function that is called in a new process, whose output is discarded.

    Raises:
        WorkerError: If the process ends without a result.
        BaseException: Raised by the function.
    """
    from joblib.externals.loky import ProcessPoolExecutor

    with safe_path(), ProcessPoolExecutor(1, initializer=_print_to, initargs=(None,)) as pool:
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
            call_elsewhere(_prepare, precision, compute)
        except WorkerError as error:
            raise BackendError(
                f"The process that looks for the device gave no answer: {error} "
                "Run `leukemia-dl doctor`, or use executor='in-process', to see where it fails."
            ) from error


def _prepare(precision: str, compute: ComputeConfig) -> None:
    prepare(precision, compute)  # whose result cannot be sent


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without starting CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [part.strip() for part in chosen.split(",") if part.strip() and part.strip() != "-1"]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.splitlines() if line.strip().isdigit()]
