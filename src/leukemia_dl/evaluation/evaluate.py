"""`evaluate`: every metric of every backbone with its interval; verdicts per group of subjects; wrong predictions."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from leukemia_dl.checks import choice, real_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import predictions
from leukemia_dl.evaluation.intervals import Resampling, Spread, bounds, resampling_of
from leukemia_dl.evaluation.metrics import METRICS, metric, values, why_undefined
from leukemia_dl.evaluation.predictions import PREFIX, Model, class_names_of, select_side, validated_predictions

Estimand = Literal["models", "procedure"]
ESTIMANDS = {
    "models": "these fitted models on new {}s",
    "procedure": "the learning procedure: a mean over seeds, on new {}s",
}
ONE_SEED = "one seed: nothing is known of the spread between seeds"


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

    Folds of one backbone and seed are one set of predictions, and AUROC compares images within a fold only; over seeds,
    means are taken first, and groups left out then. No interval is given where a class has fewer than five groups.

    Args:
        frame: Predictions, such as `Benchmark.predictions()`: `label` (class name), a column `probability_<class>` per
            class, of which the second is the positive one of two, and further columns that the guide lists.
        metrics: Names from `METRICS`; None, or no name, for all.
        by: Column to split by: its values, or quartiles of a number with more than eight; SettingsError without it.
        unique_cells: Count images that show one cell (column `same_cell`) once, by their first prediction in each run.
        level: Of the intervals.
        estimand: "models": intervals for these fitted models on new groups. "procedure": for the mean over seeds of the
            learning procedure on these training data; the spread between seeds enters, and two seeds are needed.
        side: Which rows of the column `side`.

    Returns:
        A row per backbone (and part) and metric. `unit` is "group", or "image" where subjects are unknown and images
        are taken as independent (too narrow if patients have several); `seed_sd` is between seeds, `prevalence` the
        share of the positive class, `reason` why a value or interval is NaN.

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
    given = [metrics] if isinstance(metrics, str) else list(() if metrics is None else metrics) or METRICS
    names, class_names = [metric(name).name for name in given], class_names_of(frame)
    check_settings(level, estimand)
    chosen = select_side(frame, side)
    chosen = drop_repeated_cells(chosen) if unique_cells else chosen
    rows: list[dict[str, Any]] = []
    for part, inside in _parts(chosen, by):
        for model in predictions.models_of(inside, side):
            found = _rows(model, names, class_names, level, estimand)
            if by in found[0]:
                raise SettingsError(f"The result has a column {by!r} of its own: rename the frame's.")
            rows += [({by: part} if by else {}) | row for row in found]
    return pd.DataFrame(rows).astype({"groups": "Int64"})


def drop_repeated_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a prediction `frame` without repetitions of a cell: the first prediction of each in each run stays.

    The column `same_cell` names the cell of images that show one that is there twice; without it, DataError.
    """
    frame = validated_predictions(frame)
    if "same_cell" not in frame:
        hint = "equal for images that show the same cell, empty for all others"
        raise DataError(f"To count repeated cells once, the predictions need a column same_cell: {hint}.")
    keys = [name for name in ("backbone", "seed", "repeat", "side", "same_cell") if name in frame]
    return frame[frame["same_cell"].isna() | ~frame.duplicated(keys)]


def check_settings(level: float, estimand: str = "models") -> None:
    """Raise SettingsError unless the level of an interval lies in [0.5, 1) and there is such an estimand."""
    real_number("level", level, 0.5, 1, "[)")
    choice("estimand", estimand, ESTIMANDS)


def _rows(
    model: Model, names: Sequence[str], class_names: tuple[str, ...], level: float, estimand: str
) -> list[dict[str, Any]]:
    """Return the rows of `evaluate` for one model."""
    samples, sizes = [set(run.samples) for run in model.runs], [len(run.samples) for run in model.runs]
    same = not model.named or all(other == samples[0] for other in samples)
    facts = {
        "backbone": model.name, "metric": "", **dict.fromkeys(("value", "low", "high"), np.nan), "unit": model.unit,
        **dict.fromkeys(("standard_error", "degrees_of_freedom"), np.nan), "seeds": len(model.runs), "seed_sd": np.nan,
        "images": len(set().union(*samples)) if model.named else max(sizes),
        "groups": len(model.units) if model.unit == "group" else pd.NA,
        "prevalence": float((model.runs[0].labels == 1).mean()) if len(class_names) == 2 else np.nan,
        "method": f"delete-one-{model.unit} jackknife", "estimand": ESTIMANDS[estimand].format(model.unit),
        "reason": "" if same else f"the seeds have predicted different images: {', '.join(f'{n:,}' for n in sizes)}",
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
    low, high = bounds(metric(name), found.value(name), spread, level, resampling.fewest)
    degrees = spread.df if spread.variance else np.nan
    row = {"low": low, "high": high, "standard_error": spread.variance**0.5, "degrees_of_freedom": degrees}
    return row if np.isfinite([low, high]).all() else row | {"reason": "at 0, which bounds nothing"}


def _parts(frame: pd.DataFrame, by: str | None) -> list[tuple[Any, pd.DataFrame]]:
    """Return the rows of each value of a column, or of each quartile if it is a number with more than eight values."""
    if by is None:
        return [(None, frame)]
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


def group_table(frame: pd.DataFrame, side: str = "test") -> pd.DataFrame:
    """Return the verdicts of each backbone on each group, the group with the largest share of errors first.

    Predictions of all seeds are taken together. `by_mean_probability` is the class of the highest mean probability,
    `by_majority_vote` the class predicted most often (of equals, the one of higher mean probability). `frame` and
    `side` are those of `evaluate`. A DataError says that subjects are unknown.

    Returns:
        A row per backbone and group; `label` is NA if it has several, `probability_<class>` a mean over its images.
    """
    rows, unit = _predicted(frame, side)
    if unit is None:
        raise DataError("Nothing is known of subjects: the predictions need a column group or subject without gaps.")
    order, names = list(rows["backbone"].unique()), list(class_names_of(rows))
    groups = rows.groupby(["backbone", unit])
    labels, count = groups["label"].agg(["first", "nunique"]), groups.size()
    # Rounded, so that errors of the last digit do not decide between equal means.
    means = groups[[PREFIX + name for name in names]].mean().round(12)
    votes = groups["predicted"].value_counts().unstack(fill_value=0).reindex(columns=names, fill_value=0)
    errors = count - groups["right"].sum()
    columns = {
        "label": labels["first"].where(labels["nunique"] == 1, None),
        "images": groups["sample"].nunique() if "sample" in rows else count,
        "predictions": count,
        "errors": errors,
        "error_share": errors / count,
        "by_mean_probability": means.set_axis(names, axis=1).idxmax(axis=1),
        # Votes differ by at least one; the mean, halved, only decides between equals.
        "by_majority_vote": (votes + means.set_axis(names, axis=1) / 2).idxmax(axis=1),
    }
    table = means.assign(**columns)[[*columns, *means]].rename_axis(["backbone", "group"]).reset_index()
    table = table.sort_values("error_share", ascending=False, kind="stable")
    return table.sort_values("backbone", key=lambda column: column.map(order.index), kind="stable", ignore_index=True)


def evaluate_groups(frame: pd.DataFrame, level: float = 0.95, side: str = "test") -> pd.DataFrame:
    """Return how often the verdict on a whole group is right, with exact intervals (Clopper and Pearson 1934).

    Predictions of all seeds are taken together, as a committee. Groups with images of several classes have no verdict
    and are left out (column `reason`). `frame`, `level` and `side` are those of `evaluate`.

    Returns:
        A row per backbone, rule ("mean_probability", "majority_vote") and metric (accuracy; with two classes also
        sensitivity and specificity): `backbone, rule, metric, value, low, high, unit, right, groups, reason`.
    """
    check_settings(level)
    names, table = class_names_of(frame), group_table(frame, side)
    of_class = {"sensitivity": names[1], "specificity": names[0]} if len(names) == 2 else {}
    rows = []
    for backbone, part in table.groupby("backbone", sort=False):
        pure = part[part["label"].notna()]
        left_out = len(part) - len(pure)
        mixed = f"{left_out} groups with images of several classes are left out" if left_out else ""
        for rule, name in product(("mean_probability", "majority_vote"), ("accuracy", *of_class)):
            groups = pure[pure["label"] == of_class[name]] if name in of_class else pure
            right, count = int((groups[f"by_{rule}"] == groups["label"]).sum()), len(groups)
            test = stats.binomtest(right, count) if count else None
            low, high = test.proportion_ci(level, method="exact") if test else (np.nan, np.nan)
            row = {"backbone": backbone, "rule": rule, "metric": name, "value": right / count if count else np.nan}
            row |= {"low": low, "high": high, "unit": "group", "right": right, "groups": count}
            rows.append(row | {"reason": mixed if count else "no group"})
    return pd.DataFrame(rows)


def error_list(frame: pd.DataFrame, side: str = "test") -> pd.DataFrame:
    """Return the wrong predictions, by backbone, those of the group with the most errors first.

    These are rows of `frame` on one `side`, with `predicted` (class name), `confidence` (its probability) and, where
    groups are known, `errors_in_group` (in all seeds); within a group the highest confidence first.
    """
    rows, unit = _predicted(frame, side)
    found = rows[~rows["right"]].drop(columns="right")
    order = {"backbone": True, "confidence": False}
    if unit:
        found["errors_in_group"] = found.groupby(["backbone", unit])[unit].transform("size").astype(np.int64)
        order = {"backbone": True, "errors_in_group": False, unit: True, "confidence": False}
    return found.sort_values(list(order), ascending=list(order.values()), kind="stable", ignore_index=True)


def _predicted(frame: pd.DataFrame, side: str) -> tuple[pd.DataFrame, str | None]:
    """Return the rows of one side with the predicted class, its probability and if it is right; the unit column."""
    frame = validated_predictions(frame)
    predictions.models_of(frame, side)  # checks
    rows = select_side(frame, side)
    _, probabilities = predictions.arrays_of(rows)
    predicted = np.asarray(class_names_of(rows), dtype=object)[probabilities.argmax(axis=1)]
    right = predicted == rows["label"].to_numpy()
    rows = rows.assign(predicted=predicted, confidence=probabilities.max(axis=1), right=right)
    return rows, predictions.unit_column(rows)
