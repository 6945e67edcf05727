"""Run the trials of a grid that the store does not hold, and write their records."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leukemia_dl.benchmark.executors import Executor, SubmitExecutor
from leukemia_dl.benchmark.inputs import CellMeasurer
from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.progress import Costs, GridProgress
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.benchmark.trial_runner import RunContext, run_baseline
from leukemia_dl.errors import TrainingError

_log = logging.getLogger(__name__)
__all__ = ["GridRunner", "split_by_store"]

# A trial that ended from outside continues from its last epoch; one that failed by itself would fail again.
_RESUMED = ("TimeLimitError", "WorkerError")


def split_by_store(
    store: Store, trials: Sequence[PlannedTrial], existing: str, save_models: bool
) -> tuple[list[PlannedTrial], list[Record]]:
    """Return the trials that have to run, and the records of the others."""
    to_do, kept = [], []
    for planned in trials:
        record = store.take(planned.trial) if existing == "reuse" else None
        if record is not None and store.has_result(record, save_models):
            kept.append(record)
        else:
            to_do.append(planned)
    return to_do, kept


@dataclass
class GridRunner:
    """One run of a grid.

    Attributes:
        store: Where records are written.
        context: Settings and data of backbones' trials; its `scratch` is set here.
        executor: Runs the backbones' trials.
        cells: Gives measures of cells to baselines.
        existing: "reuse" or "rerun".
        raise_errors: Whether a failed trial ends the run.
        show: Whether to show progress.
    """

    store: Store
    context: RunContext
    executor: Executor
    cells: CellMeasurer
    existing: str
    raise_errors: bool
    show: bool
    _running: set[str] = field(default_factory=set, init=False)

    def run(self, to_do: Sequence[PlannedTrial], kept: Sequence[Record]) -> None:
        """Run the trials of `to_do`; `kept` are the records of the rest of the grid.

        Raises:
            KeyboardInterrupt: After Ctrl-C; finished trials are in the store.
            TrainingError: If a trial failed and errors are to be raised.
            StoreError: If a record cannot be written.
        """
        trials = [*(record.trial for record in kept), *(planned.trial for planned in to_do)]
        self._changes = {planned.trial.digest: planned.changes for planned in to_do}
        self._progress = GridProgress(trials, self.show, Costs(kept))
        scratch = self.store.root.absolute() / "unfinished" / f"run-{uuid.uuid4().hex[:12]}"
        self.context = replace(self.context, store=self.store, scratch=scratch)
        scratch.mkdir(parents=True)
        for old in self.store.unfinished():
            if old.name.startswith("run-"):  # of a run that was killed
                shutil.rmtree(old, ignore_errors=True)
        again = "" if self.existing == "reuse" else "Finished trials are kept."
        try:
            with _interrupt_once(self.context.stop, again or "The next run continues from there."), self._progress:
                for record in kept:
                    self._progress.end(record, reused=True)
                self._run_baselines([planned for planned in to_do if planned.spec is None])
                nets = [planned for planned in to_do if planned.spec is not None]
                if nets:
                    self._progress.announce()
                    self._run_nets(nets)
                if self.context.stopped:
                    raise KeyboardInterrupt
        finally:
            if self._running and isinstance(self.executor, SubmitExecutor):
                self.context.stop()  # for trials that run elsewhere and cannot be ended from here
            else:
                shutil.rmtree(scratch, ignore_errors=True)
                with contextlib.suppress(OSError):
                    scratch.parent.rmdir()

    def _run_baselines(self, baselines: Sequence[PlannedTrial]) -> None:
        for planned in baselines:
            if not self.context.stopped:
                self._finish(run_baseline(planned, self.context.samples, lambda: self.cells.measures), None)

    def _update(self, *news: Any) -> None:
        with contextlib.suppress(OSError, TypeError):
            os.utime(self.context.scratch)  # type: ignore[arg-type]  # a run of days is not taken for a killed one
        self._progress.update(*news)

    def _run_nets(self, nets: Sequence[PlannedTrial]) -> None:
        # One backbone after the other: its net is built and compiled for the first fold and serves the others.
        names = list(dict.fromkeys(planned.trial.backbone for planned in nets))
        needed = self._needed(sorted(nets, key=lambda planned: names.index(planned.trial.backbone)))
        outputs = self.executor.run(needed, self.context, self._update)
        with contextlib.closing(outputs):  # type: ignore[type-var]
            for output in outputs:
                self._running.discard(output.trial.digest)
                if output.record is None:
                    self._progress.drop(output.trial)
                else:
                    self._finish(output.record, output.model)

    def _needed(self, nets: Sequence[PlannedTrial]) -> Iterator[PlannedTrial]:
        """Yield trials until the run is stopped, but for those that another driver on this store has finished."""
        for planned in nets:
            if self.context.stopped:
                return
            trial = planned.trial
            if self.existing == "reuse":
                record = self.store.take(trial)
                if record is not None and self.store.has_result(record, self.context.save_models):
                    self._progress.end(record, reused=True)
                    continue
            else:
                self.store.remove_checkpoints(trial)
            self._running.add(trial.digest)
            yield planned

    def _finish(self, record: Record, model: bytes | None) -> None:
        record = replace(record, row={**record.row, "changes": self._changes[record.trial.digest]})
        if not self._has_better(record, model):
            self.store.write(record, model)
        if record.exception not in _RESUMED:
            self.store.remove_checkpoints(record.trial)
        self._progress.end(record)
        if record.status == "failed" and self.raise_errors:
            path = self.store.folder(record.trial) / "traceback.txt"
            raise TrainingError(f"{record.trial.folder} failed: {record.error} (traceback in {path})")

    def _has_better(self, record: Record, model: bytes | None) -> bool:
        """Return whether the store holds a result that this record must not replace.

        An existing result is kept if the new record failed, or if it has no saved net and the existing one has.
        """
        there = self.store.take(record.trial)
        if there is None or there.status == "failed":
            return False
        if record.status == "failed":
            _log.warning("%s failed now; its earlier result is kept: %s", record.trial.folder, record.error)
            return True
        return self.existing == "reuse" and model is None and self.store.has_model(record.trial.folder)


@contextlib.contextmanager
def _interrupt_once(stop: Callable[[], None], then: str) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C; the second one raises KeyboardInterrupt.

    Nothing changes outside of the main thread, where Python allows no handlers, and where the signal is ignored, as for
    jobs in the background of a shell.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return

    def first(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()
        sys.stderr.write(f"\nStopping after this epoch; Ctrl-C again stops at once. {then}\n")
        sys.stderr.flush()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
