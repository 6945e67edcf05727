"""`evaluate`: every metric of every backbone with its interval, from a frame of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from leukemia_dl.checks import choice, real_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.intervals import Resampling, Spread, bounds, resampling_of
from leukemia_dl.evaluation.metrics import METRICS, metric, values, why_undefined
from leukemia_dl.evaluation.predictions import Model, class_names_of, models_of, select_side, validated_predictions

__all__ = [
    "ONE_SEED", "Estimand", "Estimates", "check_settings", "drop_repeated_cells", "estimand_in_words", "evaluate",
]  # fmt: skip

Estimand = Literal["models", "procedure"]
_ESTIMANDS = {
    "models": "these fitted models on new {}s",
    "procedure": "the learning procedure: a mean over seeds, on new {}s",
}
ONE_SEED = "one seed: nothing is known of the spread between seeds"
_COLUMNS = (
    "backbone", "metric", "value", "low", "high", "unit", "standard_error", "degrees_of_freedom", "seeds", "seed_sd",
    "images", "groups", "prevalence", "method", "estimand", "reason",
)  # fmt: skip


class Estimates:
    """Metrics of one model: per seed, and without each block of units; means over seeds."""

    def __init__(self, model: Model, resampling: Resampling, names: Sequence[str]) -> None:
        everything = np.ones((1, resampling.sizes.size))
        weights = np.concatenate([everything, resampling.leave_one_out])
        per_run = [values(run, weights, names) for run in resampling.in_blocks(model)]
        self.model, self.resampling = model, resampling
        self.per_seed = {name: np.array([run[name][0] for run in per_run]) for name in names}
        self.left_out = {name: np.mean([run[name][1:] for run in per_run], axis=0) for name in names}

    def value(self, name: str) -> float:
        """Return the mean over seeds."""
        return float(self.per_seed[name].mean())

    def between_seeds(self, name: str) -> Spread | None:
        """Return the spread that seeds add to the mean; none for a baseline, which has no seed; None if unknown."""
        found = self.per_seed[name]
        if len(found) > 1:
            return Spread(float(found.var(ddof=1)) / len(found), len(found) - 1.0)
        return Spread(0.0, np.inf) if self.model.kind == "baseline" else None


def evaluate(
    frame: pd.DataFrame,
    *,
    metrics: str | Sequence[str] | None = None,
    by: str | None = None,
    unique_cells: bool = False,
    level: float = 0.95,
    estimand: Estimand = "models",
    side: str = "test",
) -> pd.DataFrame:
    """Return every metric of every backbone with an interval over groups of subjects.

    A prediction frame, such as `Benchmark.predictions()`, needs `label` (class name) and a column `probability_<class>`
    per class; the second class is the positive one of two. It may have `backbone`, `kind`, `seed`, `repeat`, `fold`,
    `side`, `sample`, `group` (or `subject`) and `same_cell`. Folds of one backbone and seed are one set of predictions,
    and AUROC compares images within a fold only; over seeds, means are taken first, and groups left out then.

    Args:
        frame: The prediction frame.
        metrics: Names from `METRICS`; None for all.
        by: A column to split the images by: its values, or its quartiles if it is a number with more than eight values.
        unique_cells: Count images that show one cell (column `same_cell`) once, by their first prediction in each run.
        level: Of the intervals.
        estimand: "models": intervals for these fitted models on new groups. "procedure": for the mean over seeds of the
            learning procedure on these training data; the spread between seeds enters, and two seeds are needed.
        side: Which rows of the column `side`.

    Returns:
        A row per backbone (and part) and metric: `backbone, metric, value, low, high`; `unit`: "group", or "image"
        where subjects are unknown and images are taken as independent (too narrow if patients have several);
        `standard_error, degrees_of_freedom, seeds, seed_sd` (between seeds), `images, groups, prevalence` (share of the
        positive class), `method, estimand, reason`: why a value or interval is NaN. No interval is given where a class
        has fewer than five groups.

    Raises:
        DataError: If the frame is not one of predictions.
        SettingsError: If a metric or column does not exist, or a setting is out of its range.

    Examples:
        >>> import pandas as pd
        >>> import leukemia_dl as ldl
        >>> frame = pd.DataFrame({"label": ["hem"] * 20 + ["all"] * 20, "group": [f"P{i // 2}" for i in range(40)]})
        >>> frame["probability_hem"] = ([0.8] * 7 + [0.3] * 3) * 2 + ([0.4] * 8 + [0.6] * 2) * 2
        >>> frame["probability_all"] = 1 - frame["probability_hem"]
        >>> ldl.evaluate(frame, metrics="accuracy")[["value", "low", "high", "images", "groups"]].round(2)
           value   low  high  images  groups
        0   0.75  0.51   0.9      40      20
    """
    frame = validated_predictions(frame)
    given = METRICS if metrics is None else [metrics] if isinstance(metrics, str) else metrics
    names, class_names = [metric(name).name for name in given], class_names_of(frame)
    check_settings(level, estimand)
    chosen = select_side(frame, side)
    chosen = drop_repeated_cells(chosen) if unique_cells else chosen
    rows: list[dict[str, Any]] = []
    for part, inside in _parts(chosen, by):
        for model in models_of(inside, side):
            rows += [({by: part} if by else {}) | row for row in _rows(model, names, class_names, level, estimand)]
    return pd.DataFrame(rows, columns=[*([by] if by else []), *_COLUMNS]).astype({"groups": "Int64"})


def drop_repeated_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a prediction `frame` without repetitions of a cell: the first prediction of each in each run stays.

    Raises:
        DataError: If there is no column `same_cell`, which names the cell of images that show one that is there twice.
    """
    frame = validated_predictions(frame)
    if "same_cell" not in frame:
        raise DataError(
            "To count repeated cells once, the predictions need a column same_cell: equal for images that show the same"
            " cell, empty for all others. Benchmark.predictions() has it for data sets where such cells are known."
        )
    keys = [name for name in ("backbone", "seed", "repeat", "side", "same_cell") if name in frame]
    return frame[frame["same_cell"].isna() | ~frame.duplicated(keys)]


def check_settings(level: float, estimand: str = "models") -> None:
    """Raise SettingsError unless the level of an interval lies in [0.5, 1) and there is such an estimand."""
    real_number("level", level, 0.5, 1, "[)")
    choice("estimand", estimand, _ESTIMANDS)


def estimand_in_words(estimand: str, unit: str) -> str:
    """Return what an interval is about."""
    return _ESTIMANDS[estimand].format(unit)


def _rows(
    model: Model, names: Sequence[str], class_names: tuple[str, ...], level: float, estimand: str
) -> list[dict[str, Any]]:
    """Return the rows of `evaluate` for one model."""
    run, sizes = model.runs[0], [f"{len(run.samples):,}" for run in model.runs]
    same = not model.named or all(set(other.samples) == set(run.samples) for other in model.runs)
    facts = {
        "backbone": model.name, "unit": model.unit, "seeds": len(model.runs), "images": model.images,
        "groups": len(model.units) if model.by_group else pd.NA, "method": f"delete-one-{model.unit} jackknife",
        "prevalence": float((run.labels == 1).mean()) if len(class_names) == 2 else np.nan,
        "estimand": estimand_in_words(estimand, model.unit),
        "reason": "" if same else f"the seeds have predicted different images: {', '.join(sizes)}",
    }  # fmt: skip
    found = Estimates(model, resampling_of([model]), names)
    rows = []
    for name in names:
        per_seed = found.per_seed[name]
        row = facts | {"metric": name, "value": found.value(name)}
        row["seed_sd"] = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else np.nan
        rows.append(row | _interval(found, name, class_names, level, estimand))
    return rows


def _interval(found: Estimates, name: str, class_names: tuple[str, ...], level: float, estimand: str) -> dict[str, Any]:
    """Return the interval of a metric, or the reason why it has none."""
    model, resampling, left_out = found.model, found.resampling, found.left_out[name]
    seeds = found.between_seeds(name) if estimand == "procedure" else Spread(0.0, np.inf)
    undefined = np.flatnonzero(np.isnan(found.per_seed[name]))
    if len(undefined):
        return {"reason": why_undefined(name, model.runs[undefined[0]], class_names)}
    if name == "prevalence":
        return {"reason": "class shares are held: intervals are for data with these"}
    if seeds is None:
        return {"reason": ONE_SEED}
    if why := resampling.too_few(metric(name), class_names, model.unit):
        return {"reason": why}
    if np.isnan(left_out).any():
        return {"reason": "not defined without one of the groups"}
    spread = resampling.spread(left_out) + seeds
    fewest = min(count for count in resampling.groups_per_class if count)
    low, high = bounds(metric(name), found.value(name), spread, level, fewest)
    degrees = spread.df if spread.variance else np.nan
    row = {"low": low, "high": high, "standard_error": spread.variance**0.5, "degrees_of_freedom": degrees}
    return row if np.isfinite([low, high]).all() else row | {"reason": "at 0, which bounds nothing"}


def _parts(frame: pd.DataFrame, by: str | None) -> list[tuple[Any, pd.DataFrame]]:
    """Return the rows of each value of a column, or of each quartile if it is a number with more than eight values."""
    if by is None:
        return [(None, frame)]
    if by in _COLUMNS:
        raise SettingsError(f"The result has a column {by!r} of its own: rename the frame's.")
    if by not in frame:
        raise SettingsError(f"There is no column {by!r} to split by. The frame has: {', '.join(map(str, frame))}.")
    column = frame[by]
    if column.isna().all():
        raise DataError(f"The column {by!r} is empty.")
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) and column.nunique() > 8:
        column = column.astype(float).replace([-np.inf, np.inf], np.nan)
        # Quartiles of images, not of predictions: a backbone with more seeds has no more say.
        images = column[~frame["sample"].duplicated()] if "sample" in frame else column
        edges = np.unique(np.nanquantile(images, [0, 0.25, 0.5, 0.75, 1]))
        column = pd.Series(pd.cut(column, edges.tolist(), include_lowest=True))
    parts = frame.groupby(column, sort=True, observed=True)
    return [(str(value) if isinstance(value, pd.Interval) else value, part) for value, part in parts]
