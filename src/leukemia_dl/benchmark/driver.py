"""The driver of a run: which trials still have to run, who runs them, and writing down what they leave."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leukemia_dl.benchmark.cost import Costs, duration
from leukemia_dl.benchmark.environment import remove_leftovers
from leukemia_dl.benchmark.executors import Executor, Outcome
from leukemia_dl.benchmark.inputs import Cells
from leukemia_dl.benchmark.interrupt import Interruptible
from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.progress import GridProgress
from leukemia_dl.benchmark.runner import Listener, Shared, Task, run_baseline
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.errors import TrainingError

_log = logging.getLogger(__name__)
__all__ = ["Driver", "is_kept", "split_by_store"]

# What ended from outside is gone on with from its last epoch; what failed by itself would fail again.
_GONE_ON_WITH = ("TimeLimitError", "WorkerError")
_MESSAGE_RERUN = "Stopping after this epoch; Ctrl-C again stops at once. Trials that have ended are kept."
_MESSAGE = "Stopping after this epoch; Ctrl-C again stops at once. Either way the next run goes on from there."


def is_kept(store: Store, record: Record | None, wants_model: bool, compare: bool = True) -> bool:
    """Return whether the store holds the result of a trial and, if it is wanted, its net.

    With `compare` the net is compared with its checksum, and a warning names a damaged net.
    """
    if record is None or record.status == "failed":
        return False
    if not wants_model or record.trial.kind == "baseline":
        return True
    name = record.trial.folder
    problem = store.model_problem(name, compare)
    if problem and store.has_model(name):
        _log.warning("%s: %s. The trial runs again.", store.trials / name, problem)
    return not problem


@dataclass
class Driver:
    """One run of a grid.

    Attributes:
        store: Where records go.
        cells: This run's part of the grid.
        cells_read: Gives measures of cells to baselines.
        executor: Runs the backbones' trials.
        workers: How many of them at a time; to tell how long it takes.
        existing: "reuse" or "rerun".
        raise_errors: Whether a failed trial ends the run.
        save_models: Whether trained nets are kept.
        time_limit: Of a trial, in seconds; or None.
        show: Whether to tell how far it is.
    """

    store: Store
    cells: Sequence[PlannedTrial]
    cells_read: Cells
    executor: Executor
    workers: int
    existing: str
    raise_errors: bool
    save_models: bool
    time_limit: float | None
    show: bool
    _open: dict[str, PlannedTrial] = field(default_factory=dict, init=False)
    _started: dict[str, float] = field(default_factory=dict, init=False)

    def run(self, to_do: Sequence[PlannedTrial], kept: Sequence[Record], shared: Shared) -> None:
        """Run what is to do.

        Args:
            to_do: Cells that have to run.
            kept: Records of the others.
            shared: What the trials of backbones need.

        Raises:
            KeyboardInterrupt: After Ctrl-C; what was finished is in the store.
            TrainingError: If a trial failed and that is to be raised.
            StoreError: If a record cannot be written.
        """
        remove_leftovers()
        self._open = {cell.trial.digest: cell for cell in to_do}
        self.costs = Costs(self.store.records(arrays=False))
        protocols = len({cell.trial.protocol for cell in self.cells}) > 1
        with (
            Interruptible(_MESSAGE if self.existing == "reuse" else _MESSAGE_RERUN) as self._interrupt,
            GridProgress(len(self.cells), self.show, self._left, protocols) as self.progress,
        ):
            for record in kept:
                self.progress.end(record, 0.0, reused=True)
            for cell in to_do:
                if cell.spec is None and not self.stopping:
                    self._run_baseline(cell, shared)
            tasks = [self._task(cell, cell.spec) for cell in to_do if cell.spec is not None]
            # One backbone after the other: what is built, compiled and computed for the first fold serves the others.
            names = list(dict.fromkeys(task.trial.backbone for task in tasks))
            tasks.sort(key=lambda task: names.index(task.trial.backbone))
            if tasks:
                if left := self._left():
                    self.progress.write(f"{left[0].upper()}{left[1:]} on this machine.")
                for outcome in self.executor.run(iter(tasks), shared, self):
                    self._take(outcome)
            if self.stopping:
                raise KeyboardInterrupt

    @property
    def stopping(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._interrupt.requested

    def begins(self, task: Task, at_once: bool = True) -> Listener | None:
        """Start the line of a trial; None if another driver on this store has finished it."""
        cell = self._open[task.trial.digest]
        if self.existing == "reuse":
            record = self.store.take(task.trial)
            if is_kept(self.store, record, self.save_models) and record is not None:
                self._close(cell, record, reused=True)
                return None
        else:
            self.store.remove_checkpoints(task.trial)
        self._started[task.trial.digest] = time.perf_counter()
        return self.progress.begin(task.trial, at_once)

    def _task(self, cell: PlannedTrial, spec: Any) -> Task:
        trial, store = cell.trial, self.store
        folders = (store.checkpoints(trial), store.logs(trial))
        return Task(trial, cell.split, spec, cell.size, *folders, self.save_models, self.time_limit)

    def _run_baseline(self, cell: PlannedTrial, shared: Shared) -> None:
        self.progress.begin(cell.trial)
        self._started[cell.trial.digest] = time.perf_counter()
        record = run_baseline(cell.trial, cell.split, shared.samples, self.cells_read.measures)
        self._finish(cell, record, None)

    def _take(self, outcome: Outcome) -> None:
        trial = outcome.task.trial
        if outcome.record is None:
            self.progress.drop(trial)
            return
        self._finish(self._open[trial.digest], outcome.record, outcome.model)

    def _finish(self, cell: PlannedTrial, record: Record, model: bytes | None) -> None:
        record, folder = replace(record, row={**record.row, "changes": cell.changes}), self.store.folder(cell.trial)
        if not self._has_better(record, model):
            self.store.write(record, model)
        if record.exception not in _GONE_ON_WITH:
            self.store.remove_checkpoints(cell.trial)
        self.costs.note(record)
        self._close(cell, record)
        if record.status == "failed" and self.raise_errors:
            raise TrainingError(f"{cell.trial.folder} failed: {record.error} (traceback in {folder / 'traceback.txt'})")

    def _has_better(self, record: Record, model: bytes | None) -> bool:
        """Whether the store holds a result that this record should not replace.

        No failure takes the place of a result, and where results are reused, none without its net that of one with it.
        """
        there = self.store.take(record.trial)
        if there is None or there.status == "failed":
            return False
        if record.status == "failed":
            _log.warning("%s failed now; its earlier result is kept: %s", record.trial.folder, record.error)
            return True
        return self.existing == "reuse" and model is None and self.store.has_model(record.trial.folder)

    def _close(self, cell: PlannedTrial, record: Record, reused: bool = False) -> None:
        del self._open[cell.trial.digest]
        started = self._started.get(cell.trial.digest, time.perf_counter())
        self.progress.end(record, time.perf_counter() - started, reused)

    def _left(self) -> str:
        """Return how long what is open should take, or "" where that is not known."""
        expected = [self.costs.expected(cell.trial) for cell in self._open.values() if cell.spec is not None]
        known = [seconds for seconds in expected if seconds is not None]
        if not known:
            return ""
        # What has not been timed yet is taken to be like the rest; trials that run have some of their time behind them.
        mean, now = sum(known) / len(known), time.perf_counter()
        running = sorted((now - self._started[key] for key in self._open if key in self._started), reverse=True)
        behind = sum(min(seconds, mean) for seconds in running[: self.workers])
        total = max(mean * len(expected) - behind, 1.0)
        rough = "" if len(known) == len(expected) else f" (of {len(expected) - len(known)} trials nothing is known yet)"
        return f"about {duration(total / max(min(self.workers, len(expected)), 1))} left{rough}"


def split_by_store(
    store: Store, cells: Sequence[PlannedTrial], existing: str, save_models: bool
) -> tuple[list[PlannedTrial], list[Record]]:
    """Return the cells that have to run, and the records of the others."""
    to_do, kept = [], []
    for cell in cells:
        record = store.take(cell.trial) if existing == "reuse" else None
        if record is not None and is_kept(store, record, save_models):
            kept.append(record)
        else:
            to_do.append(cell)
    return to_do, kept
