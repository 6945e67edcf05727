"""Trials in separate processes, one process per backbone: the driver starts, follows and stops them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leukemia_dl.benchmark.environment import temporary_prefix
from leukemia_dl.benchmark.executors import Outcome, Watcher
from leukemia_dl.benchmark.runner import Listener, Shared, Task, failed_record
from leukemia_dl.benchmark.worker import RESULT_FILE, SHARED_FILE, TASK_FILE, TrialLog, packed, packed_task, start
from leukemia_dl.checks import whole_number
from leukemia_dl.progress import kept_memory

__all__ = ["Processes", "visible_gpus"]

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_END_SECONDS = 5.0  # for a process that has nothing left to do


@dataclass(frozen=True)
class Processes:
    """Runs trials in other processes, which give their memory back and take no other trial with them.

    The trials of a backbone follow one another in a process, for which it is built and compiled once; another backbone,
    and a trial after one that failed, begins in a new one. Its methods are for `Benchmark.run`.

    Attributes:
        workers: How many at a time; None for one per GPU, and for one where there is none, since one net keeps all
            cores busy. With several GPUs each worker sees one of them. What is no whole number from 1 on is a
            SettingsError.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        """Check."""
        if self.workers is not None:
            object.__setattr__(self, "workers", whole_number("workers", self.workers, 1, 4096))

    def workers_for(self, shared: Shared) -> int:
        """Return how many work at a time; the GPUs are those of the device in `shared`."""
        return self.workers or max(len(_gpus_of(shared)), 1)

    def run(self, tasks: Iterable[Task], shared: Shared, watcher: Watcher) -> Iterator[Outcome]:
        """Yield an outcome for each of `tasks`, which have `shared` in common; `watcher` follows and may stop them."""
        gpus, workers = _gpus_of(shared), self.workers_for(shared)
        kept = {} if gpus or shared.compute.device.startswith("gpu") else kept_memory()
        free = [_Slot({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if len(gpus) > 1 else kept) for i in range(workers)]
        slots, waiting, running = tuple(free), iter(tasks), dict[str, _Trial]()
        events: queue.Queue[str] = queue.Queue()
        folder = Path(tempfile.mkdtemp(prefix=temporary_prefix()))
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
                        slot = next((slot for slot in free if slot.suits(task)), free[0])
                        free.remove(slot)
                        running[str(number)] = _Trial(task, listener, shared, folder / str(number), slot, events)
                if watcher.stopping:
                    more = False
                    stop_file.touch()
                if not more:
                    for slot in free:
                        slot.end()
                ended = [key for key, trial in running.items() if trial.has_ended()]
                with contextlib.suppress(queue.Empty):
                    wait = 0.0 if ended else _POLL_SECONDS
                    for _ in range(events.qsize() + 1):
                        event = json.loads(events.get(timeout=wait))
                        if event.get("task") in running:  # not the last words of one that is over
                            running[event["task"]].hear(event)
                        wait = 0.0
                for key in ended:
                    if running[key].begins_again(stop_file.exists()):
                        continue
                    trial = running.pop(key)
                    outcome = trial.outcome(shared, stop_file.exists())
                    free.append(trial.slot)
                    yield outcome
            for slot in slots:
                slot.end()
        finally:
            for slot in slots:
                slot.close()
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(eq=False)
class _Slot:
    """The place of one worker: its GPU, and the process that works there now, if any.

    A process takes one trial after the other as long as they are of one backbone and none fails: what was built and
    compiled for the first serves them all. Its memory is given back after the last.
    """

    environment: dict[str, str]
    process: Any = None
    key: Any = None

    def suits(self, task: Task) -> bool:
        """Whether the process that is there can go on with a task."""
        alive = self.process is not None and self.process.poll() is None
        return alive and self.key == _key(task)

    def give(self, task: Task, shared: Shared, place: Path, events: queue.Queue[str]) -> bool:
        """Hand a task over, to a new process if need be, and return whether it is an old one.

        `place` is its folder, `events` takes what is heard.
        """
        if self.suits(task):
            with contextlib.suppress(OSError):  # it has just died, as will be seen
                self.process.stdin.write(f"{place}\n".encode())
                self.process.stdin.flush()
            return True
        self.end()
        environment = dict(self.environment)
        if shared.compute.threads is not None:
            environment["NPROC"] = str(shared.compute.threads)  # what JAX goes by
        if task.trial.backend:
            environment["KERAS_BACKEND"] = task.trial.backend
        path = TrialLog.path(task)
        with contextlib.ExitStack() as stack:
            log: Any = subprocess.DEVNULL
            with contextlib.suppress(OSError):
                log = stack.enter_context(path.open("ab")) if path else log
            self.process = start(place.parent, place, environment, log)
        self.key = _key(task)
        self._listener = threading.Thread(target=_listen, args=(self.process.stdout, events), daemon=True)
        self._listener.start()
        return False

    def kill(self) -> None:
        """End the process, with its children: it is the leader of a group of its own."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL) if os.name != "nt" else self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Let the process end by itself, so that its log files are complete; kill it after a few seconds."""
        if self.process is not None and self.process.poll() is None:
            how = "did not end and was killed"
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.process.stdin.write(b"\n")
                self.process.stdin.flush()
                how = f"ended with status {self.process.wait(_END_SECONDS)}"
            if self.process.returncode != 0:
                _log.warning("The process %d of %s %s after its last trial.", self.process.pid, self.key[0], how)
        self.close()

    def close(self) -> None:
        """Kill the process and what it may have left running, and close its streams."""
        if self.process is None:
            return
        self.kill()
        self._listener.join(timeout=1.0)
        # Something that it has started may hold the other end: then nobody can close this one, and nobody waits.
        silent = not self._listener.is_alive()
        for stream in (self.process.stdin, *([self.process.stdout] if silent else [])):
            with contextlib.suppress(OSError):
                stream.close()
        self.process = None


def _listen(stream: Any, events: queue.Queue[str]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            with contextlib.suppress(ValueError):
                text = line.decode("utf-8", "replace")
                if isinstance(json.loads(text), dict):
                    events.put(text)


def _key(task: Task) -> tuple[Any, ...]:
    return task.spec.name, task.size, task.trial.backend


@dataclass(eq=False)
class _Trial:
    """A trial that a worker process runs, as the driver sees it."""

    task: Task
    listener: Listener
    shared: Shared
    own: Path
    slot: _Slot
    events: queue.Queue[str]
    started: float = field(default_factory=time.perf_counter)
    too_late: bool = False

    def __post_init__(self) -> None:
        self.own.mkdir()
        (self.own / TASK_FILE).write_bytes(packed_task(self.task))
        self.reused = self.slot.give(self.task, self.shared, self.own, self.events)

    def hear(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if "step" in event:
                self.listener.step(*event["step"])
            else:
                self.listener.epoch(*event["epoch"])

    def has_ended(self) -> bool:
        if (self.own / RESULT_FILE).exists():
            return True
        limit, process = self.task.time_limit, self.slot.process
        if process.poll() is None and limit is not None and time.perf_counter() - self.started > limit:
            self.too_late = True
            self.slot.kill()
        return process.poll() is not None

    def begins_again(self, stopping: bool) -> bool:
        """Run it in a process of its own, if one that has run others before died of it: that may be their fault."""
        if not self.reused or self.too_late or stopping or (self.own / RESULT_FILE).exists():
            return False
        self.slot.close()
        self.started = time.perf_counter()
        self.reused = self.slot.give(self.task, self.shared, self.own, self.events)
        return True

    def outcome(self, shared: Shared, stopping: bool) -> Outcome:
        try:
            kind, value = pickle.loads((self.own / RESULT_FILE).read_bytes())
        except Exception:  # none, or half of one
            kind, value = "failed", (*self._death(), "")
        shutil.rmtree(self.own, ignore_errors=True)
        if kind != "done" or value[0].status != "ok":
            self.slot.end()  # the next trial begins in a new process
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
        self.slot.kill()
        code = self.slot.process.returncode
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


def _gpus_of(shared: Shared) -> list[str]:
    """Return the GPUs among which trials are divided; none if the user chose one GPU."""
    return visible_gpus() if shared.compute.device in ("auto", "gpu") else []
