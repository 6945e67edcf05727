"""Thresholds that are chosen on one side and tested on another: sensitivity at a specificity, and the reject option."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from leukemia_dl.checks import real_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.evaluate import check_settings, evaluate
from leukemia_dl.evaluation.metrics import Floats
from leukemia_dl.evaluation.predictions import (
    CHOSEN,
    PREFIX,
    chosen_elsewhere,
    class_names_of,
    model_keys,
    select_side,
    unit_column,
    validated_predictions,
)

__all__ = ["accuracy_at_coverage", "operating_points"]

_SHOWN = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy")


def operating_points(
    frame: pd.DataFrame,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
    thresholds_from: str = "val",
    side: str = "test",
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the metrics of a threshold on the positive class's probability that keeps a sensitivity, or a specificity.

    Each fitted model (fold and seed) gets its own threshold, from its predictions of another side: the highest one with
    at least the sensitivity asked for, or the lowest one with the specificity. An image is positive from the threshold
    on. The target need not hold on the tested side.

    Give a `sensitivity` or a `specificity`. `thresholds_from` is the side to choose on: "val", or the name of a side
    with out-of-fold predictions. `frame` is of two classes; `side` and `level` are those of `evaluate`.

    Returns:
        A row per backbone and metric: `backbone, target, threshold` (mean over models), `threshold_lowest,
        threshold_highest`, and the columns of `evaluate`.

    Raises:
        SettingsError: If both or none of the targets are given, one is out of its range, or both sides are the same.
        DataError: If there are more than two classes, a class does not occur where a threshold is chosen, or an image
            is on both sides of one model.
    """
    check_settings(level)
    if (sensitivity is None) == (specificity is None):
        raise SettingsError("Give one target: sensitivity=0.95, for instance, or specificity=0.95.")
    frame = validated_predictions(frame)
    names = class_names_of(frame)
    if len(names) != 2:
        raise DataError(f"An operating point needs two classes. Received: {', '.join(names)}.")
    target, own = ("specificity", names[0]) if sensitivity is None else ("sensitivity", names[1])
    wanted = real_number(target, specificity if sensitivity is None else sensitivity, 0, 1, "(]")
    negative, positive = (PREFIX + name for name in names)

    def choose(rows: pd.DataFrame) -> float:
        scores = np.sort(rows.loc[rows["label"] == own, positive].to_numpy(dtype=np.float64))
        if not len(scores):
            raise DataError(f"The side {thresholds_from!r} has no image of class {own}: no threshold can be chosen.")
        return _threshold(scores, wanted, at_least=target == "sensitivity")

    tested = chosen_elsewhere(frame, thresholds_from, side, choose)
    above = (tested[positive] >= tested[CHOSEN]).astype(np.float64)
    # As probabilities of 0 and 1, the threshold's verdicts are scored like any prediction.
    result = evaluate(tested.assign(**{negative: 1 - above, positive: above}), metrics=_SHOWN, level=level, side=side)
    of_models = tested.drop_duplicates(model_keys(tested)).groupby("backbone")[CHOSEN].agg(["mean", "min", "max"])
    of_models.columns = ["threshold", "threshold_lowest", "threshold_highest"]
    result = of_models.assign(target=f"{target} {wanted:g}").merge(result, on="backbone", how="right")
    result = result[list(dict.fromkeys(["backbone", "target", *result]))]
    return _with_shared_groups(result, frame, thresholds_from, side)


def accuracy_at_coverage(
    frame: pd.DataFrame,
    coverages: float | Sequence[float] = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5),
    *,
    thresholds_from: str = "val",
    side: str = "test",
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the accuracy on the images that a model is surest of: the reject option.

    Each fitted model rejects below a confidence (probability of the predicted class) at which the wanted share of the
    side `thresholds_from` is kept; the share that this keeps of the tested `side` is the column `coverage`.
    `coverages` lie above 0 and up to 1; `frame` and `level` are those of `evaluate`.

    Returns:
        A row per backbone and coverage: `backbone, wanted, coverage, threshold` (mean over models), and the columns of
        `evaluate` for the accuracy on the images kept. A backbone that keeps none has no row.
    """
    check_settings(level)
    frame = validated_predictions(frame)
    columns = [PREFIX + name for name in class_names_of(frame)]
    order = list(dict.fromkeys(select_side(frame, side)["backbone"]))
    parts = []
    given = np.atleast_1d(np.asarray(coverages, dtype=object))
    for wanted in [real_number("coverages", coverage, 0, 1, "(]") for coverage in given]:

        def choose(rows: pd.DataFrame, wanted: float = wanted) -> float:
            return 0.0 if wanted == 1 else _threshold(np.sort(rows[columns].max(axis=1)), wanted, at_least=True)

        tested = chosen_elsewhere(frame, thresholds_from, side, choose)
        kept = tested[tested[columns].max(axis=1) >= tested[CHOSEN]]
        if kept.empty:
            continue
        result = evaluate(kept, metrics="accuracy", level=level, side=side)
        thresholds = tested.drop_duplicates(model_keys(tested)).groupby("backbone")[CHOSEN].mean()
        share = kept.groupby("backbone").size() / tested.groupby("backbone").size()
        result.insert(1, "wanted", wanted)
        result.insert(2, "coverage", result["backbone"].map(share))
        result.insert(3, "threshold", result["backbone"].map(thresholds))
        parts.append(result)
    if not parts:
        return pd.DataFrame()
    joined = _with_shared_groups(pd.concat(parts), frame, thresholds_from, side)
    return joined.sort_values("backbone", key=lambda column: column.map(order.index), kind="stable", ignore_index=True)


def _threshold(scores: Floats, wanted: float, *, at_least: bool) -> float:
    """Return the threshold that at least the wanted share of sorted scores reaches, or stays below."""
    # At least this many must be right; a trifle is taken off so that 0.95 of 20 is 19.
    right = int(np.ceil(wanted * len(scores) - 1e-9))
    if at_least:
        return float(scores[len(scores) - right]) if right else float(np.nextafter(scores[-1], 2))
    return float(np.nextafter(scores[right - 1], 2)) if right else float(scores[0])


def _with_shared_groups(result: pd.DataFrame, frame: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """Return a result with a note if groups of subjects are on both sides of one fitted model."""
    unit = unit_column(frame)
    if unit is not None:
        keys = [unit, *model_keys(frame)]
        sides = [frame.loc[frame["side"] == side, keys].dropna(subset=unit).drop_duplicates() for side in (one, other)]
        if count := sides[0].merge(sides[1])[unit].nunique():
            note = f"{count} groups are on the sides {one!r} and {other!r}: too good"
            result["reason"] = [f"{why}; {note}".removeprefix("; ") for why in result["reason"]]
    return result
