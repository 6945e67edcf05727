"""What a person sees while a grid runs: a bar for the grid and a live line for the trial in hand.

Where standard error is no terminal, plain lines: one per trial and one per epoch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from leukemia_dl.benchmark.trial import Record, Trial

__all__ = ["GridProgress"]


class GridProgress:
    """Shows how far a grid is. Use as a context manager."""

    def __init__(self, total: int, show: bool = True) -> None:
        """Take the number of trials; with `show=False` nothing is written."""
        self._total, self._done, self._show = total, 0, show
        self._bars: Any = None
        self._grid: Any = None
        self._line: Any = None
        self._name = ""
        self._last = ""
        self._started = time.monotonic()

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

    def begin(self, trial: Trial) -> None:
        """Start the line of a trial."""
        where = "" if trial.fold is None else f" fold {trial.fold}"
        self._name = f"{trial.backbone}{where}" + ("" if trial.seed is None else f" seed {trial.seed}")
        self._last = ""
        if self._bars is not None:
            self._line = self._bars.add_task(self._name, total=None)
        elif trial.kind == "backbone":
            self._write(f"[{self._done + 1}/{self._total}] {self._name} ...")

    def step(self, epoch: int, step: int, steps: int, epochs: int) -> None:
        """Move the live line; `epoch` and `step` count from 0."""
        if self._bars is not None and self._line is not None:
            text = f"{self._name}  epoch {epoch + 1}/{epochs}{self._last}"
            self._bars.update(self._line, description=text, total=epochs * steps, completed=epoch * steps + step)

    def epoch(self, epoch: int, epochs: int, row: Mapping[str, Any]) -> None:
        """Tell what an epoch (from 1) ended with."""
        parts = [f"{name} {row[name]:.3f}" for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in row]
        self._last = "  " + ", ".join(parts)
        if self._bars is None:
            inner = f"inner fold {row['inner_fold']} " if "inner_fold" in row else ""
            self._write(f"    {inner}epoch {epoch}/{epochs}{self._last}")

    def end(self, record: Record, seconds: float, reused: bool = False) -> None:
        """Finish the line of a trial."""
        self._done += 1
        if record.status == "ok":
            outcome = f"accuracy {record.metrics['accuracy']:.3f}, loss {record.metrics['loss']:.3f}"
        else:
            outcome = f"{record.status}: {record.error}"
        took = "from the store" if reused else f"{seconds:.0f} s"
        text = f"[{self._done}/{self._total}] {self._name}: {outcome} ({took})"
        if self._bars is not None:
            if self._line is not None:
                self._bars.remove_task(self._line)
                self._line = None
            self._bars.update(self._grid, completed=self._done)
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            self._write(text)

    def _write(self, text: str) -> None:
        if self._show:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
