"""Run the trials of a benchmark that its store does not hold, write their records, and show how far it is."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import statistics
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from leukemia_dl.benchmark.baselines import measure_cells
from leukemia_dl.benchmark.executors import SubmitExecutor
from leukemia_dl.benchmark.inputs import Samples, read_images
from leukemia_dl.benchmark.plan import Plan, PlannedTrial
from leukemia_dl.benchmark.process_executor import Executor, check_device, choose_executor
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.benchmark.trial_runner import RunContext, TrialOutput, run_baseline
from leukemia_dl.errors import TrainingError
from leukemia_dl.identity import canonical_json
from leukemia_dl.text import duration
from leukemia_dl.training import load_factory

_log = logging.getLogger(__name__)
__all__ = ["GridProgress", "GridRunner"]

# A trial that ended from outside continues from its last epoch; one that failed by itself would fail again.
_RESUMED = ("TimeLimitError", "WorkerError")


@dataclass
class GridRunner:
    """One run of a plan, whose records go to a store; the other arguments are those of `Benchmark.run`."""

    plan: Plan
    store: Store
    existing: str = "reuse"
    on_error: str = "continue"
    executor: Any = "auto"
    workers: int | None = None
    time_limit: float | None = None
    show: bool = True

    def run(self, trials: Sequence[PlannedTrial]) -> None:
        """Run those of `trials` that the store does not hold.

        Raises:
            KeyboardInterrupt: After Ctrl-C; finished trials are in the store.
            TrainingError: If a trial failed and `on_error` is "raise".
            StoreError, ImageError, BackendError: As `Benchmark.run`.
        """
        self._progress = GridProgress([planned.trial for planned in trials], self.show)
        to_do = [planned for planned in trials if not self._is_done(planned)]
        # One backbone after the other: its net is built and compiled for the first fold and serves the others.
        nets = [planned for planned in to_do if planned.spec is not None]
        nets.sort(key=lambda planned: self.plan.backbones.index(planned.trial.backbone))
        executor = choose_executor(self.executor, self.workers, len(nets))
        if nets:
            check_device(executor, self.plan.recipe.precision, self.plan.compute)
        with self._context(nets, executor) as context, self._progress:
            with contextlib.closing(self._outputs(to_do, nets, executor, context)) as outputs:
                for output in outputs:
                    self._finish(output)
            if context.stopped:
                raise KeyboardInterrupt

    def _is_done(self, planned: PlannedTrial) -> bool:
        """Return whether the store holds the result of a trial, and show it."""
        record = self.store.take(planned.trial) if self.existing == "reuse" else None
        if record is None or not self.store.has_result(record, self.plan.save_models):
            return False
        self._progress.end(record, reused=True)
        return True

    @contextlib.contextmanager
    def _context(self, nets: Sequence[PlannedTrial], executor: Executor) -> Iterator[RunContext]:
        """Read what the trials of nets share, and hand it out with a folder that lasts as long as they run.

        A file that cannot be decoded is an error of the data, not of a backbone.
        """
        plan, sizes = self.plan, sorted({planned.size for planned in nets})
        images = {size: read_images(plan.dataset, plan.rows, plan.pipelines[size], self.show) for size in sizes}
        samples = Samples.of(plan.dataset, plan.rows if nets and plan.save_models else None)
        shared = (plan.recipe, plan.compute, load_factory(plan.callbacks), plan.save_models)
        self._scratch = scratch = self.store.root.absolute() / "unfinished" / f"run-{uuid.uuid4().hex[:12]}"
        context = RunContext(samples, images, *shared, self.time_limit, self.store, scratch)
        scratch.mkdir(parents=True)
        try:
            with _interrupt_once(context.stop):
                yield context
        finally:
            if not (context.stopped and isinstance(executor, SubmitExecutor)):  # else trials elsewhere look for it
                shutil.rmtree(scratch, ignore_errors=True)
                with contextlib.suppress(OSError):
                    scratch.parent.rmdir()

    def _outputs(
        self, to_do: Sequence[PlannedTrial], nets: Sequence[PlannedTrial], executor: Executor, context: RunContext
    ) -> Generator[TrialOutput]:
        """Yield the outputs of baselines, then those of nets, until the run is stopped."""
        cells = cache(partial(measure_cells, self.plan.dataset, self.plan.rows, self.show))
        for planned in to_do:
            if planned.spec is None and not context.stopped:
                yield TrialOutput(planned.trial, run_baseline(planned, context.samples, cells))
        if nets:
            self._progress.announce()
            yield from executor.run(self._needed(nets, context), context, self._update)

    def _needed(self, nets: Sequence[PlannedTrial], context: RunContext) -> Iterator[PlannedTrial]:
        """Yield trials until the run is stopped, but for those that another driver on this store has finished."""
        for planned in nets:
            if context.stopped:
                return
            if self.existing == "rerun":
                self.store.remove_checkpoints(planned.trial)
            if not self._is_done(planned):
                yield planned

    def _update(self, trial: Trial, epoch: int, epochs: int, row: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._scratch)  # for `leukemia-dl runs gc`: a run of days is not one that was killed
        self._progress.update(trial, epoch, epochs, row)

    def _finish(self, output: TrialOutput) -> None:
        """Write the record of a trial, unless it has failed or has no net and the store has a result that has not."""
        record = output.record
        if record is None:
            return
        earlier = self.store.take(record.trial)
        finished = earlier is not None and earlier.status != "failed"
        keeps_net = finished and self.existing == "reuse" and self.store.has_model(record.trial)
        if finished and record.status == "failed":
            _log.warning("%s failed now; its earlier result is kept: %s", record.trial.folder, record.error)
        elif not (keeps_net and output.model is None):
            self.store.write(record, output.model)
        if record.exception not in _RESUMED:
            self.store.remove_checkpoints(record.trial)
        self._progress.end(record)
        if record.status == "failed" and self.on_error == "raise":
            path = self.store.folder(record.trial) / "traceback.txt"
            raise TrainingError(f"{record.trial.folder} failed: {record.error} (traceback in {path})")


@contextlib.contextmanager
def _interrupt_once(stop: Callable[[], None]) -> Iterator[None]:
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
        sys.stderr.write(
            "\nStopping after this epoch; Ctrl-C again stops at once. The next run continues from there.\n"
        )
        sys.stderr.flush()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class GridProgress:
    """Shows how far `trials` are on standard error, unless `show` is False: a bar on a terminal, else plain lines."""

    def __init__(self, trials: Sequence[Trial], show: bool = True) -> None:
        from rich.console import Console
        from rich.progress import Progress

        terminal = show and sys.stderr.isatty()
        self._console = Console(stderr=True, quiet=not show, force_terminal=terminal, force_jupyter=False)
        self._bar = Progress(console=self._console, transient=True, disable=not terminal)
        self._task = self._bar.add_task("Benchmark", total=len(trials))
        self._open = {trial.digest: trial for trial in trials}
        self._show, self._total, self._protocols = show, len(trials), {trial.protocol for trial in trials}
        self._began, self._busy = time.monotonic(), 0.0
        self._seconds = defaultdict[tuple[str, str], list[float]](list)  # of finished trials, by backbone and recipe

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *failure: object) -> None:
        self._bar.stop()

    def update(self, trial: Trial, epoch: int, epochs: int, row: Mapping[str, Any]) -> None:
        """Show that a trial begins (epoch 0) or has ended an epoch; the callback that executors are given."""
        values = [f"{key} {row[key]:.3f}" for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in row]
        inner = f"inner fold {row['inner_fold']} " if "inner_fold" in row else ""
        text = f"{self._name(trial)}: {inner}epoch {epoch}/{epochs}  {', '.join(values)}"
        if not self._bar.disable:
            self._bar.update(self._task, description=text)
        else:
            self._write(text if epoch else f"{self._name(trial)} ...")

    def end(self, record: Record, reused: bool = False) -> None:
        """Show the result of a trial and the time left; `reused` says that it was in the store before the run."""
        self._open.pop(record.trial.digest, None)
        if not self._show:
            return
        result, took, left = f"{record.status}: {record.error}", "from the store", ""
        if record.status == "ok":
            result = f"accuracy {record.metrics['accuracy']:.3f}, loss {record.metrics['loss']:.3f}"
            self._seconds[_kind(record.trial)].append(record.timings["seconds"])
        if not reused:
            self._busy += record.timings["seconds"]
            took, left = duration(record.timings["seconds"]), self._left()
        done = self._total - len(self._open)
        self._write(f"[{done}/{self._total}] {self._name(record.trial)}: {result} ({took}){left and f'; {left}'}")
        self._bar.update(self._task, completed=done)

    def announce(self) -> None:
        """Write how long the run should take, if trials in the store say so."""
        if left := self._left():
            self._write(f"{left.capitalize()} on this machine.")

    def _left(self) -> str:
        """Return how long the trials of backbones that are left should take; "" if no such trial has finished."""
        kinds = [_kind(trial) for trial in self._open.values() if trial.kind == "backbone"]
        known = [statistics.fmean(self._seconds[kind]) for kind in kinds if kind in self._seconds]
        if not known:
            return ""
        at_a_time = max(self._busy / max(time.monotonic() - self._began, 1.0), 1.0)
        return f"about {duration(max(statistics.fmean(known) * len(kinds) / at_a_time, 1.0))} left"

    def _name(self, trial: Trial) -> str:
        parts = [trial.backbone, trial.protocol if len(self._protocols) > 1 else ""]
        parts += [f"{axis} {value}" for axis in ("fold", "seed") if (value := getattr(trial, axis)) is not None]
        return " ".join(filter(None, parts))

    def _write(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _kind(trial: Trial) -> tuple[str, str]:
    return trial.backbone, canonical_json(trial.recipe)
