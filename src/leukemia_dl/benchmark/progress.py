"""What a person sees while a grid runs: a bar for the grid and a live line for each trial in hand.

Where standard error is no terminal, plain lines: one per trial and one per epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from leukemia_dl.benchmark.cost import duration
from leukemia_dl.benchmark.trial import Record, Trial

__all__ = ["GridProgress"]


class GridProgress:
    """Shows how far a grid is. Use as a context manager."""

    def __init__(self, total: int, show: bool = True, left: Callable[[], str] = str, protocols: bool = False) -> None:
        """Prepare.

        Args:
            total: Number of trials.
            show: False to write nothing.
            left: Tells how long the rest will take, or "".
            protocols: Whether there are several, so that a trial's line names its own.
        """
        self._total, self._done, self._show, self._left = total, 0, show, left
        self._protocols = protocols
        self._bars: Any = None
        self._grid: Any = None
        self._lines: dict[str, _Line] = {}

    def __enter__(self) -> Self:
        """Start the bars where there is a terminal."""
        if self._show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
            console = Console(stderr=True)
            self._bars = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
            self._bars.start()
            self._grid = self._bars.add_task("Benchmark", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()

    def begin(self, trial: Trial, at_once: bool = True) -> _Line:
        """Start the line of a trial, and return who is to be told of it; nothing is said if it only waits."""
        line = self._lines[trial.folder] = _Line(self, trial, at_once)
        return line

    def end(self, record: Record, seconds: float, reused: bool = False) -> None:
        """Finish the line of a trial."""
        self._done += 1
        if record.status == "ok":
            outcome = f"accuracy {record.metrics['accuracy']:.3f}, loss {record.metrics['loss']:.3f}"
        else:
            outcome = f"{record.status}: {record.error}"
        took = "from the store" if reused else duration(seconds)
        left = "" if reused else self._left()
        self.drop(record.trial)
        self.write(f"[{self._done}/{self._total}] {self.name(record.trial)}: {outcome} ({took}){left and f'; {left}'}")
        if self._bars is not None:
            self._bars.update(self._grid, completed=self._done, description=f"Benchmark {left}".strip())

    def drop(self, trial: Trial) -> None:
        """Take away the live line of a trial that has ended or was stopped."""
        line = self._lines.pop(trial.folder, None)
        if line is not None and line.bar is not None:
            self._bars.remove_task(line.bar)

    def name(self, trial: Trial) -> str:
        """Return how a trial is called."""
        parts = [trial.backbone, trial.protocol if self._protocols else ""]
        parts += [
            f"{axis} {value}" for axis, value in (("fold", trial.fold), ("seed", trial.seed)) if value is not None
        ]
        return " ".join(filter(None, parts))

    def write(self, text: str) -> None:
        """Write a line that stays."""
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False)
        elif self._show:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


class _Line:
    """The live line of one trial."""

    def __init__(self, grid: GridProgress, trial: Trial, at_once: bool) -> None:
        self._grid, self._name, self._last = grid, grid.name(trial), ""
        self.bar: Any = None
        if not at_once:
            return
        if grid._bars is not None:
            self.bar = grid._bars.add_task(self._name, total=None)
        elif trial.kind == "backbone":
            grid.write(f"[{grid._done + len(grid._lines) + 1}/{grid._total}] {self._name} ...")

    def step(self, epoch: int, step: int, steps: int, epochs: int) -> None:
        """Move; `epoch` and `step` count from 0."""
        if self.bar is not None:
            text = f"{self._name}  epoch {epoch + 1}/{epochs}{self._last}"
            total, done = epochs * steps, epoch * steps + step
            self._grid._bars.update(self.bar, description=text, total=total, completed=done)

    def epoch(self, epoch: int, epochs: int, row: Mapping[str, Any]) -> None:
        """Tell what an epoch (from 1) ended with."""
        parts = [f"{name} {row[name]:.3f}" for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in row]
        self._last = "  " + ", ".join(parts)
        if self._grid._bars is None:
            inner = f"inner fold {row['inner_fold']} " if "inner_fold" in row else ""
            several = f"{self._name} " if len(self._grid._lines) > 1 else ""
            self._grid.write(f"    {several}{inner}epoch {epoch}/{epochs}{self._last}")
