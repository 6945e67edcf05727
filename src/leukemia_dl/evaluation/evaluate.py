"""`evaluate`: every metric of every backbone with its interval, from a frame of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from leukemia_dl.checks import choice, real_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.intervals import Resampling, Spread, bounds, resampling_of
from leukemia_dl.evaluation.metrics import METRICS, Metric, metric, values, why_undefined
from leukemia_dl.evaluation.predictions import Model, class_names_of, models_of, select_side, tidy

__all__ = [
    "ESTIMANDS", "Estimates", "drop_repeated_cells", "evaluate",
    "metrics_of", "rows_of",
]  # fmt: skip

Estimand = Literal["models", "procedure"]
ESTIMANDS = {
    "models": "these fitted models on new {units}",
    "procedure": "the learning procedure: a mean over seeds, on new {units}",
}
_COLUMNS = (
    "backbone", "metric", "value", "low", "high", "low_image_level", "high_image_level", "standard_error",
    "degrees_of_freedom", "seeds", "seed_sd", "images", "groups", "prevalence", "method", "estimand", "reason",
)  # fmt: skip


class Estimates:
    """Metrics of one model: per seed, and without each block of units; means over seeds."""

    def __init__(self, model: Model, resampling: Resampling, names: Sequence[str]) -> None:
        """ComputeConfig them."""
        everything = np.ones((1, resampling.sizes.size))
        weights = np.concatenate([everything, resampling.leave_one_out])
        per_run = [values(run, weights, names) for run in resampling.in_blocks(model)]
        self.kind = model.kind
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
        return Spread(0.0, np.inf) if self.kind == "baseline" else None

    def seed_sd(self, name: str) -> float:
        """Return the standard deviation between seeds; NaN for one seed."""
        found = self.per_seed[name]
        return float(found.std(ddof=1)) if len(found) > 1 else float("nan")


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
    """Return every metric of every backbone with an interval that takes groups of subjects as what is independent.

    Works on `Benchmark.predictions()` and on predictions from anywhere: only `label` (class name) and a column
    `probability_<class>` per class are needed. The second class is the positive one of two. Further columns are used
    where they are there: `backbone`, `kind`, `seed`, `repeat`, `fold`, `side`, `sample`, `group` (or `subject`) and
    `same_cell`. Folds of one backbone and seed are one set of predictions, and AUROC compares images within a fold
    only; over seeds, means are taken first, and groups left out then.

    Args:
        frame: The prediction frame.
        metrics: Names from `METRICS`; None for all.
        by: A column to split the images by: its values, or its quartiles if it is a number with more than eight values,
            such as `cell_area`. Each part is evaluated by itself.
        unique_cells: Count images that show one cell (column `same_cell`) once, by their first prediction in each run.
        level: Of the intervals.
        estimand: What the interval is about. "models": these fitted models, on new groups. "procedure": the mean over
            seeds of the learning procedure on these training data, so that the spread between seeds enters; two seeds
            (or repeats) are needed.
        side: Which rows of the column `side`.

    Returns:
        A row per backbone (and part) and metric: `backbone, metric, value`, then `low, high`, or `low_image_level,
        high_image_level` where nothing is known of subjects and images are taken as independent (too narrow if patients
        have several); `standard_error`, `degrees_of_freedom`, `seeds`, `seed_sd` (between them), `images`, `groups`,
        `prevalence` (share of the positive class), `method`, `estimand` and `reason`: why a value or interval is NaN.
        No interval is given where a class has fewer than five groups.

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
    frame = tidy(frame)
    names, class_names = metrics_of(metrics), class_names_of(frame)
    choice("estimand", estimand, get_args(Estimand))
    real_number("level", level, 0.5, 1, "[)")
    chosen = drop_repeated_cells(select_side(frame, side)) if unique_cells else select_side(frame, side)
    rows: list[dict[str, Any]] = []
    for part, inside in _parts(chosen, by):
        for model in models_of(inside, side):
            rows += [({by: part} if by else {}) | row for row in rows_of(model, names, class_names, level, estimand)]
    table = pd.DataFrame(rows).astype({"groups": "Int64"})
    return table[[name for name in ([by] if by else []) + [*_COLUMNS] if name in table]]


def drop_repeated_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a prediction `frame` without repetitions of a cell: the first prediction of each in each run stays.

    Raises:
        DataError: If there is no column `same_cell`, which names the cell of images that show one that is there twice.
    """
    frame = tidy(frame)
    if "same_cell" not in frame:
        raise DataError(
            "To count repeated cells once, the predictions need a column same_cell: equal for images that show the same"
            " cell, empty for all others. Benchmark.predictions() has it for data sets where such cells are known."
        )
    keys = [name for name in ("backbone", "seed", "repeat", "side", "same_cell") if name in frame]
    return frame[frame["same_cell"].isna() | ~frame.duplicated(keys)]


def metrics_of(metrics: str | Sequence[str] | None) -> list[str]:
    """Return the names of metrics that were asked for, checked."""
    if metrics is None:
        return list(METRICS)
    if not isinstance(metrics, (str, Sequence)) or not len(metrics):
        raise SettingsError(f"metrics takes names, at least one: {', '.join(METRICS)}. Received: {metrics!r}.")
    return [metric(name).name for name in ([metrics] if isinstance(metrics, str) else metrics)]


def rows_of(
    model: Model, names: Sequence[str], class_names: tuple[str, ...], level: float, estimand: str = "models"
) -> list[dict[str, Any]]:
    """Return the rows of `evaluate` for one model."""
    resampling = resampling_of([model])
    found, run = Estimates(model, resampling, names), model.runs[0]
    unit = "group" if model.by_group else "image"
    facts = {
        "seeds": len(model.runs),
        "images": model.images,
        "groups": len(model.units) if model.by_group else pd.NA,
        "prevalence": float((run.labels == 1).mean()) if run.probabilities.shape[1] == 2 else float("nan"),
        "method": f"delete-one-{unit} jackknife",
        "estimand": ESTIMANDS[estimand].format(units=unit + "s"),
    }
    rows = []
    for name in names:
        one = {"backbone": model.name, "metric": name, "value": found.value(name), "seed_sd": found.seed_sd(name)}
        rows.append(one | facts | _interval(model, resampling, found, metric(name), class_names, level, estimand))
    return rows


def _interval(
    model: Model,
    resampling: Resampling,
    found: Estimates,
    what: Metric,
    class_names: tuple[str, ...],
    level: float,
    estimand: str,
) -> dict[str, Any]:
    ends = ("low", "high") if model.by_group else ("low_image_level", "high_image_level")
    nothing = dict.fromkeys((*ends, "standard_error", "degrees_of_freedom"), float("nan"))
    value, left_out = found.value(what.name), found.left_out[what.name]
    seeds, why = found.between_seeds(what.name), ""
    if np.isnan(value):
        why = next(
            why_undefined(what.name, run, class_names)
            for run, one in zip(model.runs, found.per_seed[what.name], strict=True)
            if np.isnan(one)
        )
    elif what.name == "prevalence":
        why = "class shares are held: intervals are for data with these"
    elif estimand == "procedure" and seeds is None:
        why = "one seed: nothing is known of the spread between seeds"
    else:
        why = resampling.too_few(what, class_names, "group" if model.by_group else "image")
    if not why and np.isnan(left_out).any():
        why = "not defined without one of the groups"
    if why:
        return nothing | {"reason": why}
    spread = resampling.spread(left_out)
    if estimand == "procedure" and seeds is not None:
        spread = spread + seeds
    error = {"standard_error": spread.variance**0.5, "degrees_of_freedom": spread.df if spread.variance else np.nan}
    low, high = bounds(what, value, spread, level, min(n for n in resampling.groups_per_class if n))
    reason = _seeds_differ(model) if np.isfinite([low, high]).all() else "at 0, which bounds nothing"
    return dict(zip(ends, (low, high), strict=True)) | error | {"reason": reason}


def _seeds_differ(model: Model) -> str:
    counts = [len(run.samples) for run in model.runs]
    same = not model.named or all(set(run.samples) == set(model.runs[0].samples) for run in model.runs[1:])
    return "" if same else f"the seeds have predicted different images: {', '.join(f'{n:,}' for n in counts)}"


def _parts(frame: pd.DataFrame, by: str | None) -> list[tuple[Any, pd.DataFrame]]:
    if by is None:
        return [(None, frame)]
    if not isinstance(by, str) and by not in frame:
        raise SettingsError(f"by takes the name of a column. Received: by={by!r}.")
    if by in _COLUMNS:
        raise SettingsError(f"The result has a column {by!r} of its own: rename the frame's.")
    if by not in frame:
        raise SettingsError(f"There is no column {by!r} to split by. The frame has: {', '.join(map(str, frame))}.")
    column = frame[by]
    if column.isna().all():
        raise DataError(f"The column {by!r} is empty.")
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) and column.nunique() > 8:
        column = column.astype(float).where(np.isfinite(column.astype(float)))
        # Quartiles of images, not of predictions: a backbone with more seeds has no more say.
        images = column[~frame["sample"].duplicated()] if "sample" in frame else column
        edges = np.unique(np.nanquantile(images.to_numpy(dtype=float), [0, 0.25, 0.5, 0.75, 1]))
        if len(edges) > 1:
            column = pd.Series(pd.cut(column, [*map(float, edges)], include_lowest=True))
    parts = list(frame.groupby(column, sort=True, observed=True))
    return [(str(value) if isinstance(value, pd.Interval) else value, part) for value, part in parts]
