"""Trials in another process: how it is started, what it is given and what comes back.

Driver and worker share a private folder. `shared.pickle` and `task.pickle` lie there, the worker writes
`result.pickle`; each line that it prints on its original standard output is an event, as JSON. What the trial itself
prints goes to its log. The worker ends at an empty line on its standard input, and at once if the input is closed, so
that no worker outlives its driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, cast

from leukemia_dl import errors
from leukemia_dl.benchmark.runner import Listener, Shared, Task, run_task
from leukemia_dl.training.backends import ComputeConfig, prepare

__all__ = ["TrialLog", "main", "packed", "packed_task", "prepare_elsewhere", "python_command", "run_packed", "start"]

SHARED_FILE, TASK_FILE, RESULT_FILE = "shared.pickle", "task.pickle", "result.pickle"
_STEP_SECONDS = 0.2


def packed(value: Any, buffers: list[Any] | None = None) -> bytes:
    """Return a value as bytes that another process can read, functions of a script or a notebook included.

    Args:
        value: Anything.
        buffers: Takes the memory of its arrays, which is not in the bytes then.

    Raises:
        SettingsError: If there is something in it that cannot be sent.
    """
    import cloudpickle

    try:
        keep = None if buffers is None else lambda buffer: buffers.append(buffer)
        return bytes(cloudpickle.dumps(value, protocol=5, buffer_callback=keep))
    except Exception as error:  # whatever a callback factory holds
        raise errors.SettingsError(
            f"The trials cannot be sent to other processes ({type(error).__name__}: {error}). Name callbacks and "
            "builders by a function of a module, or use executor='in-process'."
        ) from error


def packed_task(task: Task) -> bytes:
    """Return a task as bytes for `main`, its backbone apart: that of the next task is told by the same bytes."""
    return packed((packed(task.spec), replace(task, spec=cast(Any, None))))


def start(folder: Path, task_folder: Path, environment: Mapping[str, str], log: IO[bytes] | int) -> Any:
    """Start a worker; `folder` holds what is shared, `task_folder` its task."""
    return subprocess.Popen(
        python_command(__name__, "main", folder, task_folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, **environment},
        # Ctrl-C is the driver's: it lets workers finish their epoch. Windows has process groups instead.
        start_new_session=os.name != "nt",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def python_command(module: str, function: str, *arguments: object) -> list[str]:
    """Return the command that calls a function of a module with arguments as text, in a new process.

    The new process has this one's module path. Without -P the current folder would come first, and a file json.py in a
    folder of downloaded images would be executed.
    """
    program = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import {function}; "
    program += f"{function}(*sys.argv[2:])"
    return [sys.executable, "-P", "-c", program, json.dumps([*map(str, sys.path)]), *map(str, arguments)]


def prepare_elsewhere(precision: str, compute: ComputeConfig) -> None:
    """Try whether trials will find their device, in a process of its own, so that this one starts no backend.

    Raises:
        LeukemiaDLError: What `leukemia_dl.training.backends.prepare` raises.
        BackendError: If the process dies; the message ends in its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.pickle"  # not standard output, where imported modules may print
        command = python_command(__name__, "answer_prepare", answer, precision, json.dumps(asdict(compute)))
        ended = subprocess.run(command, capture_output=True, check=False)
        if not answer.exists():
            lines = ended.stderr.decode("utf-8", "replace").split("\n")
            said = next((line for line in reversed(lines) if line.strip()), "It printed no error.")
            raise errors.BackendError(
                f"The process that looks for the device ended with status {ended.returncode} and no answer: {said} "
                "Run `leukemia-dl doctor`, or use executor='in-process', to see where it fails."
            )
        if (found := pickle.loads(answer.read_bytes())) is not None:
            raise found


def answer_prepare(path: str, precision: str, compute: str) -> None:
    """Call `prepare` and write its error, or None, to the file at `path`."""
    found = None
    try:
        prepare(precision, ComputeConfig(**json.loads(compute)))
    except errors.LeukemiaDLError as error:
        found = error
    Path(path).write_bytes(pickle.dumps(found))


def run_packed(path: list[str], task_content: bytes, shared_content: bytes, buffers: Sequence[Any] = ()) -> Any:
    """Run a packed task with what it shares, and return its record and model: for processes of others.

    Args:
        path: Where the driver finds modules; what is missing here is added.
        task_content: A task, by `packed`.
        shared_content: What it shares, likewise.
        buffers: Of the latter's arrays, if they travel apart.

    Raises:
        KeyboardInterrupt: If the driver's stop file has appeared.
    """
    sys.path += [folder for folder in path if folder not in sys.path]
    task, shared = pickle.loads(task_content), pickle.loads(shared_content, buffers=buffers)
    with TrialLog(task) as log:
        return run_task(task, shared, log)


class TrialLog:
    """The log of a trial: a line per epoch, in `log.txt` of its folder. Where that cannot be written, none."""

    def __init__(self, task: Task, listener: Listener | None = None) -> None:
        """Take the task, and who else is told."""
        self._task, self._listener = task, listener
        self._file: IO[str] | None = None

    @staticmethod
    def path(task: Task) -> Path | None:
        """Return the file, its folder made; None where there is none."""
        if task.logs is None:
            return None
        with contextlib.suppress(OSError):
            task.logs.mkdir(parents=True, exist_ok=True)
            return task.logs / "log.txt"
        return None

    def __enter__(self) -> TrialLog:
        """Begin."""
        path = self.path(self._task)
        with contextlib.suppress(OSError):
            self._file = path.open("a", encoding="utf-8") if path else None
        self.write(f"{self._task.trial.folder} begins in process {os.getpid()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End."""
        self.write("ends" if error is None else f"stops: {type(error).__name__}: {error}")
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def write(self, text: str) -> None:
        """Write a line with the time (UTC)."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")
                self._file.flush()

    def step(self, epoch: int, step: int, steps: int, epochs: int) -> None:
        """Pass on."""
        if self._listener is not None:
            self._listener.step(epoch, step, steps, epochs)

    def epoch(self, epoch: int, epochs: int, row: Mapping[str, Any]) -> None:
        """Write a line and pass on."""
        values = (
            f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
        self.write(", ".join(values))
        if self._listener is not None:
            self._listener.epoch(epoch, epochs, row)


class _Events:
    """Tells the driver by lines of JSON."""

    def __init__(self, stream: IO[str], task: str) -> None:
        self._stream, self._task, self._lock, self._last = stream, task, threading.Lock(), 0.0

    def step(self, epoch: int, step: int, steps: int, epochs: int) -> None:
        now = time.monotonic()
        if now - self._last >= _STEP_SECONDS:
            self._last = now
            self._tell({"step": [epoch, step, steps, epochs]})

    def epoch(self, epoch: int, epochs: int, row: Mapping[str, Any]) -> None:
        self._tell({"epoch": [epoch, epochs, dict(row)]})

    def _tell(self, event: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._stream.write(json.dumps({"task": self._task, **event}, default=float) + "\n")
            self._stream.flush()


def main(folder: str, task_folder: str) -> None:
    """Run tasks, in a process that `start` has started: that of a folder, then those that the driver hands over.

    An empty name ends the process normally, so that functions registered with `atexit` run.
    """
    tasks: queue.Queue[str] = queue.Queue()
    tasks.put(task_folder)
    threading.Thread(target=_hear_driver, args=(folder, tasks), daemon=True).start()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a plugin prints belongs to the log
    shared: Shared | None = None
    specs: dict[bytes, Any] = {}
    while name := tasks.get():
        place = Path(name)
        try:
            if shared is None:
                shared = pickle.loads((Path(folder) / SHARED_FILE).read_bytes())
            spec, rest = pickle.loads((place / TASK_FILE).read_bytes())
            # Read once, since a function of a script would be another one each time, and its net be built anew.
            if spec not in specs:
                specs[spec] = pickle.loads(spec)
            task: Task = replace(rest, spec=specs[spec])
            if str(place) != task_folder:
                _print_to(TrialLog.path(task))
            with TrialLog(task, _Events(events, place.name)) as log:
                result: tuple[str, Any] = ("done", run_task(task, shared, log))
        except KeyboardInterrupt:
            result = ("stopped", None)
        except BaseException as error:  # sent to the driver, whatever it is
            result = ("failed", (type(error).__name__, str(error), traceback.format_exc()))
        sys.stdout.flush()
        sys.stderr.flush()
        aside = place / f"{RESULT_FILE}.part"
        aside.write_bytes(packed(result))
        aside.replace(aside.with_suffix(""))


def _print_to(path: Path | None) -> None:
    """Have all that is printed from now on end in another trial's log."""
    for place in (path, Path(os.devnull)):  # nowhere, rather than in the log before
        with contextlib.suppress(OSError, AttributeError), place.open("ab") as log:  # type: ignore[union-attr]
            os.dup2(log.fileno(), 2)
            os.dup2(2, 1)
            return


def _hear_driver(folder: str, tasks: queue.Queue[str]) -> None:
    """Take further tasks; at the driver's end clean up after it, and end this process with all that it has started."""
    with contextlib.suppress(OSError, ValueError), os.fdopen(0, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            tasks.put(line.rstrip("\n"))
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError, AttributeError):
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
