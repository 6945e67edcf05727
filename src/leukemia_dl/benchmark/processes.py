"""Trials each in a process of its own: started, listened to, stopped and mourned by the driver."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leukemia_dl.benchmark.executors import Outcome, Watcher
from leukemia_dl.benchmark.runner import Listener, Shared, Task, failed_record
from leukemia_dl.benchmark.worker import RESULT_FILE, SHARED_FILE, TASK_FILE, TrialLog, packed, start
from leukemia_dl.errors import SettingsError

__all__ = ["Processes", "visible_gpus", "whole_number"]

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Processes:
    """Runs each trial in a process of its own, which gives its memory back and takes no other trial with it.

    Attributes:
        workers: How many at a time; None for one per GPU, and for one where there is none, since one net keeps all
            cores busy. With several GPUs each worker sees one of them.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        """Check."""
        if self.workers is not None:
            whole_number("workers", self.workers)

    def workers_for(self, shared: Shared) -> int:
        """Return how many work at a time."""
        return self.workers or max(len(_gpus_of(shared)), 1)

    def run(self, tasks: Iterable[Task], shared: Shared, watcher: Watcher) -> Iterator[Outcome]:
        """Yield an outcome per task."""
        gpus, workers = _gpus_of(shared), self.workers_for(shared)
        free = deque({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if len(gpus) > 1 else {} for i in range(workers))
        waiting, running = iter(tasks), dict[int, _Worker]()
        events: queue.Queue[tuple[int, str]] = queue.Queue()
        folder = Path(tempfile.mkdtemp(prefix="leukemia-dl-"))
        stop_file, number, more = folder / "stop", 0, True
        try:
            (folder / SHARED_FILE).write_bytes(packed(shared))
            while more or running:
                while more and free and not watcher.stopping:
                    task = next(waiting, None)
                    if task is None:
                        more = False
                        break
                    listener = watcher.begins(task)
                    if listener is not None:
                        number += 1
                        task = replace(task, stop_file=stop_file)
                        running[number] = _Worker(task, listener, shared, folder, free.popleft(), number, events)
                if watcher.stopping:
                    more = False
                    stop_file.touch()
                ended = [key for key, worker in running.items() if worker.has_ended()]
                for key in ended:
                    running[key].bury()
                with contextlib.suppress(queue.Empty):
                    wait = 0.0 if ended else _POLL_SECONDS
                    for _ in range(events.qsize() + 1):
                        which, line = events.get(timeout=wait)
                        if which in running:  # not the last words of one that was buried
                            running[which].hear(line)
                        wait = 0.0
                for key in ended:
                    worker = running.pop(key)
                    free.append(worker.slot)
                    yield worker.outcome(shared, stop_file.exists())
        finally:
            for worker in running.values():
                worker.bury()
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(eq=False)
class _Worker:
    """A worker process, as the driver sees it."""

    task: Task
    listener: Listener
    shared: Shared
    folder: Path
    slot: dict[str, str]
    number: int
    events: queue.Queue[tuple[int, str]]
    started: float = field(default_factory=time.perf_counter)
    too_late: bool = False

    def __post_init__(self) -> None:
        self.own = self.folder / str(self.number)
        self.own.mkdir()
        (self.own / TASK_FILE).write_bytes(packed(self.task))
        environment = dict(self.slot)
        if self.shared.compute.threads is not None:
            environment["NPROC"] = str(self.shared.compute.threads)  # what JAX goes by
        if self.task.trial.backend:
            environment["KERAS_BACKEND"] = self.task.trial.backend
        path = TrialLog.path(self.task)
        with contextlib.ExitStack() as stack:
            log: Any = subprocess.DEVNULL
            with contextlib.suppress(OSError):
                log = stack.enter_context(path.open("ab")) if path else log
            self.process = start(self.folder, self.own, environment, log)
        self._listener_thread = threading.Thread(target=self._listen, daemon=True)
        self._listener_thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                self.events.put((self.number, line.decode("utf-8", "replace")))

    def hear(self, line: str) -> None:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            event = json.loads(line)
            if "step" in event:
                self.listener.step(*event["step"])
            else:
                self.listener.epoch(*event["epoch"])

    def has_ended(self) -> bool:
        limit = self.task.time_limit
        if self.process.poll() is None and limit is not None and time.perf_counter() - self.started > limit:
            self.too_late = True
            self.kill()
        return self.process.poll() is not None

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            # With its children: it is the leader of a group of its own.
            os.killpg(self.process.pid, signal.SIGKILL) if os.name != "nt" else self.process.kill()
        self.process.wait()

    def bury(self) -> None:
        """Hear the last words of a process that has ended, and end what it may have left behind."""
        self.kill()
        self._listener_thread.join(timeout=1.0)
        # Something that it has started may hold the other end: then nobody can close this one, and nobody waits.
        silent = not self._listener_thread.is_alive()
        for stream in (self.process.stdin, *([self.process.stdout] if silent else [])):
            with contextlib.suppress(OSError):
                stream.close()

    def outcome(self, shared: Shared, stopping: bool) -> Outcome:
        try:
            kind, value = pickle.loads((self.own / RESULT_FILE).read_bytes())
        except Exception:  # none, or half of one
            kind, value = "failed", (*self._death(), "")
        shutil.rmtree(self.own, ignore_errors=True)
        if kind == "done":
            return Outcome(self.task, *value)
        if kind == "stopped" and stopping:
            return Outcome(self.task, None)
        if kind == "stopped":
            value = ("WorkerError", "It raised KeyboardInterrupt, though nobody had asked it to stop.", "")
        return Outcome(self.task, failed_record(self.task, shared, value, self.started))

    def _death(self) -> tuple[str, str]:
        if self.too_late:
            return "TimeLimitError", f"It took longer than the limit of {self.task.time_limit:g} s and was killed."
        code = self.process.returncode
        how = f"exit code {code}"
        if code < 0:
            names = {number.value: number.name for number in signal.Signals}
            how = f"signal {-code} ({names.get(-code, 'unknown')})"
            how += ", as the system does where memory runs out" if -code == signal.SIGKILL else ""
        return "WorkerError", f"The process ended without a result, by {how}. Its output is in log.txt of its logs."


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


def whole_number(name: str, value: int) -> int:
    """Return a whole number from 1 on, or raise SettingsError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
        raise SettingsError(f"{name} must be a whole number from 1 on. Received: {name}={value!r}.")
    return value


def _gpus_of(shared: Shared) -> list[str]:
    """Return the GPUs that trials are shared out among, as many together as one takes; none where one is chosen."""
    if shared.compute.device not in ("auto", "gpu"):
        return []
    gpus, each = visible_gpus(), shared.compute.replicas
    return [",".join(gpus[first : first + each]) for first in range(0, len(gpus) - each + 1, each)]
