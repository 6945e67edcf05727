"""Show how far a grid is: a bar for the grid and a live line per running trial, or plain lines without a terminal."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.identity import canonical_json

__all__ = ["Costs", "GridProgress", "duration"]


class Costs:
    """Mean seconds of finished trials, by backbone and recipe."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count a finished trial."""
        if record.status == "ok" and "seconds" in record.timings:
            self._seconds.setdefault(_kind(record.trial), []).append(float(record.timings["seconds"]))

    def expected(self, trial: Trial) -> float | None:
        """Return the seconds that a trial should take; None if no trial of its kind has finished."""
        known = self._seconds.get(_kind(trial))
        return statistics.fmean(known) if known else None


def _kind(trial: Trial) -> tuple[str, str]:
    return trial.backbone, canonical_json(trial.recipe)


def duration(seconds: float) -> str:
    """Return seconds as people say them: "less than 1 s", "40 s", "12 min", "3 h 10 min", "5 d 2 h"."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 99.5:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


class GridProgress:
    """Shows how far a grid is. Use as a context manager.

    Args:
        trials: All trials of the grid.
        show: False to write nothing.
        costs: Of trials that finished before.
    """

    def __init__(self, trials: Sequence[Trial], show: bool = True, costs: Costs | None = None) -> None:
        self._open, self._total = {trial.digest: trial for trial in trials}, len(trials)
        self._show, self._costs = show, costs or Costs()
        self._protocols = len({trial.protocol for trial in trials}) > 1
        self._began, self._busy = time.monotonic(), 0.0
        self._bars: Any = None
        self._grid: Any = None
        self._running: dict[str, Any] = {}  # the bar of each running trial, if there is a terminal

    def __enter__(self) -> Self:
        if self._show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
            self._bars = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self._bars.start()
            self._grid = self._bars.add_task("Benchmark", total=self._total)
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, trial: Trial, epoch: int, epochs: int, row: Mapping[str, Any]) -> None:
        """Show that a trial begins (epoch 0) or has ended an epoch; the callback that executors are given."""
        name = self._name(trial)
        values = [f"{key} {row[key]:.3f}" for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in row]
        inner = f"inner fold {row['inner_fold']} " if "inner_fold" in row else ""
        text = f"{inner}epoch {epoch}/{epochs}  {', '.join(values)}"
        if trial.digest not in self._running:
            self._running[trial.digest] = self._bars.add_task(name, total=None) if self._bars else None
        if self._bars and epoch:
            bar = self._running[trial.digest]
            self._bars.update(bar, description=f"{name}  {text}", total=epochs, completed=epoch)
        elif epoch:
            self._write(f"    {f'{name} ' if len(self._running) > 1 else ''}{text}")
        elif not self._bars:
            self._write(f"[{self._total - len(self._open) + len(self._running)}/{self._total}] {name} ...")

    def end(self, record: Record, reused: bool = False) -> None:
        """Finish the line of a trial."""
        self._open.pop(record.trial.digest, None)
        self.drop(record.trial)
        took = "from the store"
        if not reused:
            self._costs.add(record)
            self._busy += float(record.timings["seconds"])
            took = duration(float(record.timings["seconds"]))
        if record.status == "ok":
            result = f"accuracy {record.metrics['accuracy']:.3f}, loss {record.metrics['loss']:.3f}"
        else:
            result = f"{record.status}: {record.error}"
        done, left = self._total - len(self._open), "" if reused else self.left()
        self._write(f"[{done}/{self._total}] {self._name(record.trial)}: {result} ({took}){left and f'; {left}'}")
        if self._bars is not None:
            self._bars.update(self._grid, completed=done, description=f"Benchmark {left}".strip())

    def drop(self, trial: Trial) -> None:
        """Remove the live line of a trial that has ended or was stopped."""
        bar = self._running.pop(trial.digest, None)
        if bar is not None:
            self._bars.remove_task(bar)

    def left(self) -> str:
        """Return how long the trials of backbones that are left should take; "" if no such trial has finished."""
        expected = [self._costs.expected(trial) for trial in self._open.values() if trial.kind == "backbone"]
        known = [seconds for seconds in expected if seconds is not None]
        if not known:
            return ""
        at_a_time = max(self._busy / max(time.monotonic() - self._began, 1.0), 1.0)
        return f"about {duration(max(statistics.fmean(known) * len(expected) / at_a_time, 1.0))} left"

    def announce(self) -> None:
        """Write how long the run should take, if earlier trials tell."""
        if left := self.left():
            self._write(f"{left.capitalize()} on this machine.")

    def _name(self, trial: Trial) -> str:
        parts = [trial.backbone, trial.protocol if self._protocols else ""]
        parts += [f"{axis} {value}" for axis in ("fold", "seed") if (value := getattr(trial, axis)) is not None]
        return " ".join(filter(None, parts))

    def _write(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False)
        elif self._show:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
