"""How long a grid takes and how much it leaves on disk: from earlier trials, or from a few timed steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from leukemia_dl.benchmark.runner import Shared, Task
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.identity import canonical_json
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.training.backends import prepare
from leukemia_dl.training.callbacks import FitContext
from leukemia_dl.training.fit import fit
from leukemia_dl.training.phases import predict_batch_size

__all__ = ["PROBED_FROM", "Costs", "duration", "expected_seconds", "size"]

# Fewer trials of one backbone than this are not worth the timing: their first one tells as much.
PROBED_FROM = 4
_STEPS = 4
_INNER_FOLDS = 5
_MODEL_BYTES_PER_PARAMETER, _RECORD_BYTES = 4, 50_000


class Costs:
    """Expected seconds of trials, by backbone and recipe."""

    def __init__(self, earlier: Iterable[Record] = ()) -> None:
        """Take records of a store; those that are ok count."""
        self._seconds: dict[tuple[str, str], list[float]] = {}
        self._guessed: dict[tuple[str, str], float] = {}
        for record in earlier:
            self.note(record)

    def note(self, record: Record) -> None:
        """Learn from a finished trial."""
        seconds = record.timings.get("seconds")
        if record.status == "ok" and isinstance(seconds, (int, float)):
            self._seconds.setdefault(_key(record.trial), []).append(float(seconds))

    def guess(self, trial: Trial, seconds: float) -> None:
        """Learn from timed steps; what finished trials say counts more."""
        self._guessed[_key(trial)] = seconds

    def expected(self, trial: Trial) -> float | None:
        """Return the seconds that a trial should take; None if nothing is known."""
        key = _key(trial)
        known = self._seconds.get(key)
        return statistics.fmean(known) if known else self._guessed.get(key)


def _key(trial: Trial) -> tuple[str, str]:
    return trial.backbone, canonical_json(trial.recipe)


def expected_seconds(task: Task, shared: Shared) -> float:
    """Time a few steps of a trial and return the seconds that the whole should take.

    Raises:
        Exception: Whatever the trial itself would raise.
    """
    started = time.perf_counter()
    prepare(shared.recipe.precision, shared.compute)
    import keras

    keras.utils.clear_session(free_memory=True)
    recipe = shared.recipe.for_backbone(task.spec)
    split, images = task.split, shared.images[task.size]
    rows = np.resize(split.train, _STEPS * recipe.batch_size)
    pixels, labels = images.read(images.pipeline(split), rows), shared.samples.labels[rows]
    short = replace(
        recipe, head_epochs=min(recipe.head_epochs, 1), epochs=min(recipe.epochs, 1), select_epoch=False,
        class_balance="none", without_weights={},
    )  # fmt: skip
    ends: dict[str, list[float]] = {"head": [], "all": []}

    def clock(context: FitContext) -> list[Any]:
        class Clock(keras.callbacks.Callback):  # type: ignore[misc]
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                ends[context.phase].append(time.perf_counter())

        return [Clock()]

    classes = len(shared.samples.class_names)
    # Batches are timed: whole epochs on the device are shorter, if anything.
    compute = replace(shared.compute, engine="keras")
    model = fit(task.spec, pixels, labels, classes, short, compute=compute, callbacks=clock).model
    predict_logits(model, pixels, predict_batch_size(recipe))
    before = time.perf_counter()
    predict_logits(model, pixels, predict_batch_size(recipe))
    per_image = (time.perf_counter() - before) / len(pixels)
    # A batch is over before its numbers are there: steps that follow one another are what counts.
    step = {phase: float(np.median(np.diff(times))) if len(times) > 1 else 0.0 for phase, times in ends.items()}
    steps = -(-len(split.train) // recipe.batch_size)
    seen = len(split.train) + len(split.val)
    fits = recipe.head_epochs * steps * step["head"]
    fits += recipe.epochs * (steps * step["all"] + len(split.val) * per_image) + len(split.train) * per_image
    fits *= 1 + (_INNER_FOLDS - 1 if recipe.select_epoch else 0)
    if recipe.head_epochs:
        fits += seen * per_image * (8 if recipe.head_symmetries else 1)  # features, computed once
    predictions = (len(split.val) + len(split.test)) * per_image * (9 if recipe.symmetry_average else 1)
    return before - started + fits + predictions


def size(trials: int, parameters: int) -> int:
    """Return about how many bytes the records of trials take; `parameters` is the sum of those of kept nets."""
    return trials * _RECORD_BYTES + parameters * _MODEL_BYTES_PER_PARAMETER


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
