"""`evaluate`: every metric of every backbone with its interval; verdicts per group of subjects; wrong predictions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from leukemia_dl.checks import choice, real_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import predictions
from leukemia_dl.evaluation.intervals import NO_SPREAD, SHARES_OF_HITS, Resampling, Spread, interval, resampling_of
from leukemia_dl.evaluation.metrics import METRICS, metric, values, why_undefined
from leukemia_dl.evaluation.patients import patient_predictions
from leukemia_dl.evaluation.predictions import PREFIX, Model, class_names_of, select_side, validated_predictions

Estimand = Literal["models", "procedure"]
ESTIMANDS = {
    "models": "these fitted models on new {}s",
    "procedure": "the learning procedure: a mean over seeds, on new {}s",
}
_OF_A_CLASS = {"recall": "sensitivity", "precision": "ppv", "f1": "f1"}  # one class against the rest
_NO_INTERVAL = {
    "prevalence": "class shares are held fixed: other intervals hold for data with these",
    "ece": "biased upwards: an interval around it would often miss the true error",
}
_FIXED = ("baseline", "ensemble")  # kinds without a spread between seeds
ONE_SEED = "one seed: nothing is known of the spread between seeds"


class Estimates:
    """Metrics of one model: per seed, and means over seeds without each block of units."""

    def __init__(
        self, model: Model, resampling: Resampling, names: Sequence[str], prevalence: float | None = None
    ) -> None:
        per_run = [values(run, resampling.weights, names, prevalence) for run in resampling.in_blocks(model)]
        self.model, self.resampling, self.prevalence = model, resampling, prevalence
        self.per_seed = {name: np.array([run[name][0] for run in per_run]) for name in names}
        self.left_out = {name: np.mean([run[name][1:] for run in per_run], axis=0) for name in names}

    def value(self, name: str) -> float:
        """Return the mean over seeds."""
        return float(self.per_seed[name].mean())

    def between_seeds(self, name: str) -> Spread | None:
        """Return the spread that seeds add to the mean: 0 without seeds, see `_FIXED`; None with one seed."""
        found = self.per_seed[name]
        if len(found) > 1:
            return Spread(float(found.var(ddof=1)) / len(found), len(found) - 1.0)
        return NO_SPREAD if self.model.kind in _FIXED else None


def evaluate(
    frame: pd.DataFrame, *, metrics: str | Sequence[str] | None = None, by: str | None = None,
    unit: Literal["image", "patient"] = "image", prevalence: float | None = None, unique_cells: bool = False,
    level: float = 0.95, estimand: Estimand | None = None, side: str = "test",
) -> pd.DataFrame:  # fmt: skip
    """Return every metric of every backbone with an interval over groups of subjects.

    Folds of one backbone and seed are one set of predictions; AUROC compares images within a fold only. A value is a
    mean over seeds. No interval is given where a class has fewer than five groups, or an effective number below 3.

    Args:
        frame: Predictions, such as `Benchmark.predictions()`: `label` (class name), a column `probability_<class>` per
            class, of which the second is the positive one of two, and further columns that the guide lists.
        metrics: Names from `METRICS`, None for all of them; also "patient_accuracy" (a mean in which each group counts
            once), "lr_positive", "lr_negative" (likelihood ratios), and "f1" of the positive class.
        by: Column to split by: its values, or quartiles of a number with more than eight; SettingsError without it.
            "class": each class against the rest, by default its recall, precision and F1.
        unit: The scored unit: each image, or each patient, whose images are combined (see `patient_predictions`).
        prevalence: Share of the positive class at which `ppv` and `npv` hold, in (0, 1); None for that of the images.
        unique_cells: Count images that show one cell (column `same_cell`) once, by their first prediction in each run.
        level: Of the intervals.
        estimand: "models": intervals for these fitted models on new groups. "procedure": for the mean over seeds of the
            learning procedure on these training data; the variance between seeds is added, and two seeds are needed.
            None: "procedure" if every backbone has at least two seeds, else "models". Means over nets: "models".
        side: Which rows of the column `side`.

    Returns:
        A row per backbone (and part) and metric. `unit` is "group", "patient" (`images` are then patients), or "image":
        subjects are unknown, and intervals too narrow if they have several images. `seed_sd` is between seeds,
        `prevalence` the share of the positive class, `reason` why a value or interval is NaN. For accuracy and recalls
        `design_effect` is the variance over that of independent images, and `icc` the intraclass correlation.

    Examples:
        >>> import pandas as pd
        >>> import leukemia_dl as ldl
        >>> frame = pd.DataFrame({"label": ["hem"] * 20 + ["all"] * 20, "group": [f"P{i // 2}" for i in range(40)]})
        >>> frame["probability_hem"] = ([0.8] * 7 + [0.3] * 3) * 2 + ([0.4] * 8 + [0.6] * 2) * 2
        >>> frame["probability_all"] = 1 - frame["probability_hem"]
        >>> ldl.evaluate(frame, metrics="accuracy")[["value", "low", "high", "images", "groups"]].round(2)
           value   low  high  images  groups
        0   0.75  0.52  0.89      40      20
    """
    frame = validated_predictions(frame)
    frame = drop_repeated_cells(frame) if unique_cells else frame
    of_classes = by == "class" and "class" not in frame
    if choice("unit", unit, ("image", "patient")) == "patient":
        frame = patient_predictions(frame, side=side)
    called, usual = (_OF_A_CLASS, tuple(_OF_A_CLASS)) if of_classes else ({}, METRICS)
    given = [metrics] if isinstance(metrics, str) else list(() if metrics is None else metrics) or usual
    names, class_names = [metric(called.get(name, name)).name for name in given], class_names_of(frame)
    check_settings(level, estimand)
    if prevalence is not None:
        real_number("prevalence", prevalence, 0, 1, "()")
        if of_classes:
            raise SettingsError('A prevalence is that of the positive class: it does not go with by="class".')
    chosen = select_side(frame, side)
    models = predictions.models_of(chosen, side)
    settings: Any = (names, level, chosen_estimand(estimand, models), prevalence)
    parts: Any = [(name, [_against_the_rest(model, code) for model in models]) for code, name in enumerate(class_names)]
    if not of_classes:
        parts = [(part, predictions.models_of(inside, side) if by else models) for part, inside in _parts(chosen, by)]
    rows: list[dict[str, Any]] = []
    for part, of_part in parts:
        classes = (f"not {part}", part) if of_classes else class_names
        found = [row for model in of_part for row in _rows(model, classes, *settings)]
        if by in found[0]:
            raise SettingsError(f"The result has a column {by!r} of its own: rename the frame's.")
        rows += [({by: part} if by else {}) | row for row in found]
    table = pd.DataFrame(rows).astype({"groups": "Int64"})
    table["metric"] = table["metric"].replace({what: name for name, what in called.items()})
    return table.assign(unit="patient") if unit == "patient" else table


def _against_the_rest(model: Model, code: int) -> Model:
    """Return the predictions of one class (1) against all others (0)."""
    runs = []
    for run in model.runs:
        p = run.probabilities[:, code]
        said, labels = ((codes == code).astype(np.int64) for codes in (run.predicted, run.labels))
        runs.append(replace(run, labels=labels, probabilities=np.stack([1 - p, p], axis=1), predicted=said))
    return replace(model, runs=tuple(runs))


def drop_repeated_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a prediction `frame` without repetitions of a cell: the first prediction of each in each run stays.

    The column `same_cell` is equal for images of one cell, and empty for all others; DataError without it.
    """
    frame = validated_predictions(frame)
    if "same_cell" not in frame:
        hint = "equal for images that show the same cell, empty for all others"
        raise DataError(f"To count repeated cells once, the predictions need a column same_cell: {hint}.")
    keys = [name for name in ("backbone", "seed", "repeat", "side", "same_cell") if name in frame]
    return frame[frame["same_cell"].isna() | ~frame.duplicated(keys)]


def check_settings(level: float, estimand: str | None = None) -> None:
    """Raise SettingsError unless the level of an interval lies in [0.5, 1) and there is such an estimand."""
    real_number("level", level, 0.5, 1, "[)")
    if estimand is not None:
        choice("estimand", estimand, ESTIMANDS)


def chosen_estimand(estimand: str | None, models: Sequence[Model]) -> str:
    """Return the estimand; for None "procedure" if every backbone has several runs, else "models"."""
    seeds = [len(model.runs) for model in models if model.kind not in _FIXED]
    return estimand or ("procedure" if seeds and min(seeds) > 1 else "models")


def _rows(
    model: Model, class_names: tuple[str, ...], names: Sequence[str], level: float, estimand: str,
    prevalence: float | None,
) -> list[dict[str, Any]]:  # fmt: skip
    samples, sizes = [set(run.samples) for run in model.runs], [len(run.samples) for run in model.runs]
    estimand = "models" if model.kind == "ensemble" else estimand
    same = not model.named or all(other == samples[0] for other in samples)
    facts = {
        "backbone": model.name, "metric": "", **dict.fromkeys(("value", "low", "high"), np.nan), "unit": model.unit,
        **dict.fromkeys(("standard_error", "degrees_of_freedom", "design_effect", "icc"), np.nan),
        "seeds": len(model.runs), "seed_sd": np.nan,
        "images": len(set().union(*samples)) if model.named else max(sizes),
        "groups": len(model.units) if model.unit == "group" else pd.NA,
        "prevalence": float((model.runs[0].labels == 1).mean()) if len(class_names) == 2 else np.nan,
        "method": f"delete-one-{model.unit} jackknife", "estimand": ESTIMANDS[estimand].format(model.unit),
        "reason": "" if same else f"the seeds have predicted different images: {', '.join(f'{n:,}' for n in sizes)}",
    }  # fmt: skip
    found = Estimates(model, resampling_of([model]), names, prevalence)
    rows = []
    for name in names:
        per_seed = found.per_seed[name]
        row = facts | {"metric": name, "value": found.value(name)}
        row |= {"prevalence": prevalence} if prevalence is not None and name in ("ppv", "npv") else {}
        row["seed_sd"] = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else np.nan
        rows.append(row | _interval(found, name, class_names, level, estimand))
    return rows


def _interval(found: Estimates, name: str, class_names: tuple[str, ...], level: float, estimand: str) -> dict[str, Any]:
    model, resampling, left_out, value = found.model, found.resampling, found.left_out[name], found.value(name)
    seeds = found.between_seeds(name) if estimand == "procedure" else NO_SPREAD
    undefined = np.flatnonzero(np.isnan(found.per_seed[name]))
    if len(undefined):
        return {"reason": why_undefined(name, model.runs[undefined[0]], class_names)}
    what = metric(name)
    why = _NO_INTERVAL.get(name) or (ONE_SEED if seeds is None else resampling.too_few(what, class_names, model.unit))
    if why or np.isnan(left_out).any():
        return {"reason": why or "not defined without one of the groups"}
    if name == "brier" and len(class_names) > 2:
        what = replace(what, highest=2.0)
    low, high, spread = interval(what, value, left_out, resampling, level, seeds or NO_SPREAD, found.prevalence)
    degrees = spread.df if spread.variance else np.nan
    row = {"low": low, "high": high, "standard_error": spread.variance**0.5, "degrees_of_freedom": degrees}
    row |= resampling.clustering(left_out, what)
    alone = len(model.runs) == resampling.folds == resampling.images.sum(axis=1).max() == 1
    if alone and name in SHARES_OF_HITS:
        about = resampling.informative(what)  # each unit is right or wrong as a whole
        test = stats.binomtest(round(float(resampling.hits[about > 0].sum())), int(about.sum()))
        row["low"], row["high"] = test.proportion_ci(level, method="exact")
        row["method"] = "exact (Clopper and Pearson 1934)"
    return row if np.isfinite([low, high]).all() else row | {"reason": "the data do not bound it"}


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
        # Quartiles of images, not of predictions: a backbone with more seeds does not count more.
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
        **{"predictions": count, "errors": errors, "error_share": errors / count},
        "by_mean_probability": means.set_axis(names, axis=1).idxmax(axis=1),
        # Votes differ by at least one; the mean, halved, only decides between equals.
        "by_majority_vote": (votes + means.set_axis(names, axis=1) / 2).idxmax(axis=1),
    }
    table = means.assign(**columns)[[*columns, *means]].rename_axis(["backbone", "group"]).reset_index()
    table = table.sort_values("error_share", ascending=False, kind="stable")
    return table.sort_values("backbone", key=lambda column: column.map(order.index), kind="stable", ignore_index=True)


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
