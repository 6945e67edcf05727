"""Thresholds that are chosen on one side and tested on another: sensitivity at a specificity, and the reject option."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.checks import real_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.choices import CHOSEN, chosen_elsewhere, shared_groups
from leukemia_dl.evaluation.evaluate import evaluate
from leukemia_dl.evaluation.predictions import PREFIX, class_names_of, select_side, tidy

__all__ = ["accuracy_at_coverage", "operating_points"]

_SHOWN = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy")
_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def operating_points(
    frame: pd.DataFrame,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
    thresholds_from: str = "val",
    side: str = "test",
    level: float = 0.95,
) -> pd.DataFrame:
    """Return what a threshold on the positive class's probability gives that keeps a sensitivity, or a specificity.

    Each fitted model (fold and seed) gets its own threshold, from its predictions of another side: the highest one with
    at least the sensitivity asked for, or the lowest one with the specificity. An image is positive from the threshold
    on. What was wanted need not hold on the tested side; how far it holds is what the rows say.

    Args:
        frame: The prediction frame of two classes, see `evaluate`.
        sensitivity: Wanted on the side that thresholds are from; this or the next one.
        specificity: Likewise.
        thresholds_from: Side to choose on: "val", or the name of a side with out-of-fold predictions.
        side: Side to test on.
        level: Of the intervals, which are of these models with these thresholds.

    Returns:
        A row per backbone and metric: `backbone, target, threshold` (mean over models), `threshold_lowest,
        threshold_highest`, and the columns of `evaluate`.

    Raises:
        SettingsError: If both or none of the targets are given, one is out of its range, or both sides are the same.
        DataError: If there are more than two classes, a class does not occur where a threshold is chosen, or an image
            is on both sides of one model.
    """
    real_number("level", level, 0.5, 1, "[)")
    if (sensitivity is None) == (specificity is None):
        raise SettingsError("Give one target: sensitivity=0.95, for instance, or specificity=0.95.")
    frame = tidy(frame)
    names = class_names_of(frame)
    if len(names) != 2:
        raise DataError(f"An operating point needs two classes. Received: {', '.join(names)}.")
    what = "sensitivity" if sensitivity is not None else "specificity"
    wanted = real_number(what, sensitivity if sensitivity is not None else specificity, 0, 1, "(]")
    positive = PREFIX + names[1]

    def choose(rows: pd.DataFrame) -> float:
        own = names[1] if what == "sensitivity" else names[0]
        scores = np.sort(rows.loc[rows["label"] == own, positive].to_numpy(dtype=np.float64))
        if not len(scores):
            raise DataError(f"The side {thresholds_from!r} has no image of class {own}: no threshold can be chosen.")
        return _threshold(scores, what, wanted)

    tested = chosen_elsewhere(frame, thresholds_from, side, choose)
    above = (tested[positive] >= tested[CHOSEN]).astype(np.float64)
    # As probabilities of 0 and 1, the threshold's verdicts are scored like any prediction.
    verdicts = tested.assign(**{PREFIX + names[0]: 1 - above, positive: above})
    result = evaluate(verdicts, metrics=_SHOWN, level=level, side=side)
    limits = _summary(tested).rename(columns={"min": "threshold_lowest", "max": "threshold_highest"})
    result = result.merge(limits, on="backbone", how="left")
    result.insert(1, "target", f"{what} {wanted:g}")
    for place, name in enumerate(("threshold", "threshold_lowest", "threshold_highest"), start=2):
        result.insert(place, name, result.pop(name))
    return _noted(result, shared_groups(frame, thresholds_from, side))


def accuracy_at_coverage(
    frame: pd.DataFrame,
    coverages: float | Sequence[float] = _COVERAGES,
    *,
    thresholds_from: str = "val",
    side: str = "test",
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the accuracy on the images that a model is surest of: the reject option.

    Each fitted model rejects below a confidence (probability of the predicted class) at which the wanted share of the
    side `thresholds_from` is kept; what share of the tested side that keeps is the column `coverage`.

    Args:
        frame: The prediction frame, see `evaluate`.
        coverages: Shares of images to keep, above 0 and up to 1.
        thresholds_from: Side to choose on.
        side: Side to test on.
        level: Of the intervals.

    Returns:
        A row per backbone and coverage: `backbone, wanted, coverage, threshold` (mean over models), and the columns of
        `evaluate` for the accuracy of what is kept. A backbone that keeps nothing has no row.

    Raises:
        SettingsError: If a share is out of its range, or both sides are the same.
        DataError: If an image is on both sides of one model.
    """
    real_number("level", level, 0.5, 1, "[)")
    frame = tidy(frame)
    columns = [PREFIX + name for name in class_names_of(frame)]
    order = list(dict.fromkeys(select_side(frame, side)["backbone"]))
    parts = []
    for wanted in [
        real_number("coverages", value, 0, 1, "(]") for value in np.atleast_1d(np.asarray(coverages, dtype=object))
    ]:

        def choose(rows: pd.DataFrame, wanted: float = wanted) -> float:
            surest = rows[columns].max(axis=1).to_numpy(dtype=np.float64)
            return 0.0 if wanted == 1 else _threshold(np.sort(surest), "sensitivity", wanted)

        tested = chosen_elsewhere(frame, thresholds_from, side, choose)
        kept = tested[tested[columns].max(axis=1) >= tested[CHOSEN]]
        if kept.empty:
            continue
        result = evaluate(kept, metrics="accuracy", level=level, side=side)
        share = kept.groupby("backbone").size() / tested.groupby("backbone").size()
        result.insert(1, "wanted", wanted)
        result.insert(2, "coverage", result["backbone"].map(share).astype(float))
        result.insert(3, "threshold", result["backbone"].map(_summary(tested).set_index("backbone")["threshold"]))
        parts.append(result)
    if not parts:
        return pd.DataFrame()
    joined = _noted(pd.concat(parts, ignore_index=True), shared_groups(frame, thresholds_from, side))
    return joined.sort_values("backbone", key=lambda c: c.map(order.index), kind="stable", ignore_index=True)


def _noted(table: pd.DataFrame, note: str) -> pd.DataFrame:
    if note:
        table["reason"] = [f"{why}; {note}".removeprefix("; ") for why in table["reason"]]
    return table


def _threshold(scores: NDArray[np.float64], what: str, wanted: float) -> float:
    """Return the threshold that the wanted share of sorted scores reaches, or stays below for specificity."""
    # At least this many must be right; a trifle is taken off so that .95 of 20 is 19.
    right = int(np.ceil(wanted * len(scores) - 1e-9))
    if what == "sensitivity":
        return float(scores[len(scores) - right]) if right else float(np.nextafter(scores[-1], 2))
    return float(np.nextafter(scores[right - 1], 2)) if right else float(scores[0])


def _summary(tested: pd.DataFrame) -> pd.DataFrame:
    keys = [name for name in ("backbone", "seed", "repeat", "fold") if name in tested]
    models = tested.drop_duplicates(keys)
    return models.groupby("backbone", sort=False)[CHOSEN].agg(threshold="mean", min="min", max="max").reset_index()
