"""Estimate how long a grid takes, from finished trials."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.identity import canonical_json

__all__ = ["Costs", "duration"]


class Costs:
    """Expected seconds of trials, by backbone and recipe."""

    def __init__(self, earlier: Iterable[Record] = ()) -> None:
        """Take records of a store; those that are ok count."""
        self._seconds: dict[tuple[str, str], list[float]] = {}
        for record in earlier:
            self.note(record)

    def note(self, record: Record) -> None:
        """Learn from a finished trial."""
        seconds = record.timings.get("seconds")
        if record.status == "ok" and isinstance(seconds, (int, float)):
            self._seconds.setdefault(_key(record.trial), []).append(float(seconds))

    def expected(self, trial: Trial) -> float | None:
        """Return the seconds that a trial should take; None if nothing is known."""
        known = self._seconds.get(_key(trial))
        return statistics.fmean(known) if known else None


def _key(trial: Trial) -> tuple[str, str]:
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
