"""Run the trials of a benchmark that its store does not hold, write their records, and show how far it is."""

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from leukemia_dl.benchmark import records
from leukemia_dl.benchmark.baselines import measure_cells, run_baseline
from leukemia_dl.benchmark.executors import Executor, SubmitExecutor
from leukemia_dl.benchmark.plan import Plan, PlannedTrial, Trial
from leukemia_dl.benchmark.records import Record
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial_runner import RunContext, TrialOutput, appearances_of, read_images
from leukemia_dl.errors import BackendError, SettingsError, TrainingError
from leukemia_dl.preprocess.foreground import summary
from leukemia_dl.text import duration
from leukemia_dl.training import load_factory

_log, _MONTH = logging.getLogger(__name__), 30 * 86_400.0
# A trial that ended from outside continues from its last epoch; one that failed by itself would fail again.
_RESUMED = ("TimeLimitError", "WorkerError")


class GridRunner:
    """One run of `trials` of a plan, whose records go to a store; the other arguments are those of `Benchmark.run`."""

    def __init__(
        self, plan: Plan, store: Store, trials: Sequence[PlannedTrial], executor: Executor, existing: str,
        on_error: str, time_limit: float | None, show: bool,
    ) -> None:  # fmt: skip
        self.plan, self.store, self.trials, self.executor, self.show = plan, store, trials, executor, show
        self.existing, self.on_error, self.time_limit = existing, on_error, time_limit
        self.progress = GridProgress([planned.trial for planned in trials], show)

    def run(self) -> None:
        """Run the trials that the store does not hold; raises as `Benchmark.run`, KeyboardInterrupt after Ctrl-C."""
        to_do = self._to_do(self.trials)
        # One backbone after the other: its net is built and compiled for the first fold and serves the others.
        nets = [planned for planned in to_do if planned.spec is not None]
        nets.sort(key=lambda planned: self.plan.backbones.index(planned.trial.backbone))
        context = self._context(nets)
        for old in context.scratch.parent.glob("run-*"):  # of runs that were killed, or stopped elsewhere
            with contextlib.suppress(OSError):
                if old.stat().st_mtime < time.time() - _MONTH:
                    shutil.rmtree(old)
        context.scratch.mkdir(parents=True)
        outputs = self._outputs(to_do, nets, context)
        try:
            with _interrupt_once(context.stop), self.progress.bar, contextlib.closing(outputs):
                for output in outputs:
                    if output is not None:
                        self._finish(*output)
                    with contextlib.suppress(OSError):
                        os.utime(context.scratch)  # a run of weeks is not one that was killed
            if context.stopped:
                raise KeyboardInterrupt
        finally:
            # Trials that still run elsewhere look for it.
            if not (context.stopped and isinstance(self.executor, SubmitExecutor)):
                shutil.rmtree(context.scratch, ignore_errors=True)
                with contextlib.suppress(OSError):
                    context.scratch.parent.rmdir()

    def _to_do(self, trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
        names, done = [planned.trial.folder for planned in trials] if self.existing == "reuse" else [], set[str]()
        for record in self.store.records(names, arrays=False):
            if self.store.has_result(record, self.plan.save_models):
                self.progress.end(record, reused=True)
                done.add(record.trial.folder)
        return [planned for planned in trials if planned.trial.folder not in done]

    def _context(self, nets: Sequence[PlannedTrial]) -> RunContext:
        """Read the inputs that the trials of nets share; an image that cannot be decoded is an error before any."""
        plan, by_digest = self.plan, {planned.trial.digest: planned for planned in nets}
        sizes = sorted({planned.size for planned in nets if planned.pipeline is not None})
        images = {size: read_images(plan.dataset, plan.rows, plan.pipelines[size], self.show) for size in sizes}
        examined = appearances_of(plan.dataset, plan.rows) if nets and plan.save_models else []
        scratch = self.store.root.absolute() / "unfinished" / f"run-{uuid.uuid4().hex[:12]}"
        callbacks = None if plan.callbacks is None else load_factory(plan.callbacks)
        return RunContext(
            by_digest, records.Samples.of(plan.dataset), images, summary(examined) if examined else {}, plan.recipe,
            plan.compute, callbacks, plan.save_models, self.time_limit, self.store, scratch,
        )  # fmt: skip

    def _outputs(
        self, to_do: Sequence[PlannedTrial], nets: Sequence[PlannedTrial], context: RunContext
    ) -> Generator[TrialOutput]:
        cells = cache(partial(measure_cells, self.plan.dataset, self.plan.rows, self.show))
        for planned in to_do:
            if planned.spec is None and not context.stopped:
                yield run_baseline(planned, context.samples, cells), None
        if nets:
            self.progress.began = time.monotonic()
            for planned in nets if self.existing == "rerun" else ():
                self.store.remove_checkpoints(planned.trial)
            # Another driver on this store may have finished some of them meanwhile.
            needed = (planned for planned in nets if self._to_do([planned]) and not context.stopped)
            yield from self.executor.run(needed, context, self.progress.update)

    def _finish(self, record: Record, model: bytes | None) -> None:
        """Write the record of a trial, unless it has failed or has no net and the store has a result that has not."""
        if not isinstance(self.executor, SubmitExecutor):  # on this machine the other trials would fail too
            if record.exception == "BackendError":
                raise BackendError(record.message)
            if record.exception == "SettingsError" and record.message.startswith("precision="):
                raise SettingsError(record.message)
        earlier = next(self.store.records([record.trial.folder], False), None)
        finished = earlier is not None and earlier.status != "failed"
        if finished and record.status == "failed":
            _log.warning("%s failed now; its earlier result is kept: %s", record.trial.folder, record.error)
        elif model or not (finished and self.existing == "reuse" and self.store.has_model(record.trial)):
            self.store.write(record, model)
        if record.exception not in _RESUMED:
            self.store.remove_checkpoints(record.trial)
        self.progress.end(record)
        if record.status == "failed" and self.on_error == "raise":
            path = self.store.folder(record.trial) / "traceback.txt"
            raise TrainingError(f"{record.trial.folder} failed: {record.error} (traceback in {path})")


@contextlib.contextmanager
def _interrupt_once(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C; the second one raises KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGINT)
    # Python allows handlers in the main thread only; a job in the background of a shell ignores the signal.
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return

    def first(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()
        sys.stderr.write(
            "\nStopping after this epoch; Ctrl-C again stops at once. The next run continues from there.\n"
        )

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
        self.bar = Progress(console=self._console, transient=True, disable=not terminal)
        self._task = self.bar.add_task("Benchmark", total=len(trials))
        self._open, self._total = {trial.digest: trial.kind for trial in trials}, len(trials)
        self.began, self._ran = time.monotonic(), 0  # when the first net began, and how many have ended since

    def update(self, trial: Trial, epoch: int, epochs: int, row: Mapping[str, Any]) -> None:
        """Show that a trial begins (epoch 0) or has ended an epoch; the callback that executors are given."""
        if self._console.quiet:
            return
        name = trial.folder[:-13]  # without its digest
        values = [f"{key} {row[key]:.3f}" for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in row]
        inner = f"inner fold {row['inner_fold']} " if "inner_fold" in row else ""
        text = f"{name}: {inner}epoch {epoch}/{epochs}  {', '.join(values)}"
        if self.bar.disable:
            self._write(text if epoch else f"{name} ...")
        else:
            self.bar.update(self._task, description=text)

    def end(self, record: Record, reused: bool = False) -> None:
        """Show the result of a trial and the time left; `reused` says that it was in the store before the run."""
        self._open.pop(record.trial.digest, None)
        if self._console.quiet:
            return
        done, left = self._total - len(self._open), list(self._open.values()).count("backbone")
        result, took = f"{record.status}: {record.error}", "from the store"
        if record.status == "ok":
            result = f"accuracy {record.metrics['accuracy']:.3f}, loss {record.metrics['loss']:.3f}"
        if not reused:
            took = duration(record.timings["seconds"])
            self._ran += record.trial.kind == "backbone"
        if not reused and self._ran and left:
            took += f"; about {duration(max((time.monotonic() - self.began) / self._ran * left, 1.0))} left"
        self._write(f"[{done}/{self._total}] {record.trial.folder[:-13]}: {result} ({took})")
        self.bar.update(self._task, completed=done)

    def _write(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
