"""Temperatures and thresholds: fitted on one side, and used on another."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from leukemia_dl.checks import real_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import predictions
from leukemia_dl.evaluation.evaluate import check_settings, evaluate
from leukemia_dl.evaluation.intervals import effective_number
from leukemia_dl.evaluation.metrics import CLIP, Floats, Ints, as_arrays
from leukemia_dl.evaluation.predictions import FEWEST_EFFECTIVE, FEWEST_GROUPS, PREFIX, class_names_of, model_keys

_CHOSEN = "_chosen"
_SHOWN = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy")
_log = logging.getLogger(__name__)


def fit_temperature(labels: Ints, probabilities: Floats, groups: NDArray[Any] | None = None) -> float:
    """Return the temperature T that makes the cross-entropy of softmax(log(probabilities) / T) least (Guo et al. 2017).

    Above 1 the predictions were too confident. Fit it on predictions that were not trained on and are not the test
    side. `labels` (n,) are class indices, `probabilities` (n, classes) rows that sum to 1; `groups` (n,) are patients,
    None if unknown: then images are counted. The result lies between 0.01 and 100, and is 1.0 where it is not
    determined: fewer than 5 groups of a class, or an effective number of them below 3; no difference between
    classes; no wrong prediction; no least loss.
    """
    return choose_temperature(labels, probabilities, groups)[0]


def choose_temperature(labels: Ints, probabilities: Floats, groups: NDArray[Any] | None = None) -> tuple[float, str]:
    """Return the temperature as `fit_temperature` does, and the reason where it stays 1.0; "" where it was fitted."""
    labels, probabilities, few = _checked(labels, probabilities, groups)
    if few:
        return 1.0, few
    logits = np.log(np.clip(probabilities, CLIP, 1.0))
    logits -= logits.mean(axis=1, keepdims=True)
    own = logits[np.arange(len(labels)), labels]
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits).max(axis=1)
    if not np.abs(logits).max() > 1e-12:
        return 1.0, "predictions do not differ between classes"
    if (own >= others).all():
        return 1.0, "no prediction is wrong"

    # The loss is convex in the inverse temperature, so that a minimum is the only one.
    def loss(inverse: float) -> float:
        return float((logsumexp(inverse * logits, axis=1) - inverse * own).mean())

    found = minimize_scalar(loss, bounds=(0.01, 100.0), method="bounded", options={"xatol": 1e-8}).x
    return (float(1.0 / found), "") if 0.0101 < found < 99.0 else (1.0, "the loss still falls at the bound")


def choose_threshold(
    labels: Ints, probabilities: Floats, groups: NDArray[Any] | None, sensitivity: float, temperature: float
) -> dict[str, Any]:
    """Return the highest threshold on the second of two classes' calibrated probability that keeps a sensitivity.

    `value` is None, and `reason` says why, where a class has too few groups. Arguments are as in `fit_temperature`,
    `probabilities` being those before the `temperature`.
    """
    value, (labels, probabilities, few) = None, _checked(labels, probabilities, groups)
    if not few:
        calibrated = softmax(np.log(np.clip(probabilities, CLIP, 1.0)) / temperature, axis=1)
        value = _threshold(np.sort(calibrated[labels == 1, 1]), sensitivity, at_least=True)
    return {"value": value, "sensitivity": sensitivity, "chosen_on": "val", "reason": few}


def _checked(labels: Any, probabilities: Any, groups: NDArray[Any] | None) -> tuple[Ints, Floats, str]:
    """Return predictions as arrays, and why nothing is fitted on them: a class has too few groups; "" if it may be."""
    labels, probabilities = as_arrays(labels, probabilities)
    for own in (labels == code for code in range(probabilities.shape[1])):
        sizes = np.ones(own.sum()) if groups is None else np.unique(np.asarray(groups)[own], return_counts=True)[1]
        if len(sizes) < FEWEST_GROUPS:
            units = "images" if groups is None else "groups"
            return labels, probabilities, f"fewer than {FEWEST_GROUPS} {units} of a class"
        if effective_number(sizes) < FEWEST_EFFECTIVE:
            return labels, probabilities, f"effective number of groups of a class below {FEWEST_EFFECTIVE:g}"
    return labels, probabilities, ""


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log(`probabilities`) / `temperature`), float64 (n, classes); DataError for wrong arguments.

    Examples:
        >>> import numpy as np
        >>> from leukemia_dl import evaluation
        >>> evaluation.apply_temperature(np.array([[0.9, 0.1]]), 2.0).round(3)
        array([[0.75, 0.25]])
    """
    if not 0 < temperature < math.inf:
        raise DataError(f"A temperature is a positive number. Received: {temperature!r}.")
    _, probabilities = as_arrays(np.zeros(np.shape(probabilities)[:1], np.int64), probabilities)
    return np.asarray(softmax(np.log(np.clip(probabilities, CLIP, 1.0)) / temperature, axis=1))


def calibrate(frame: pd.DataFrame, *, fitted_on: str = "val", side: str = "test") -> pd.DataFrame:
    """Return the predictions of one side with the temperatures applied that were fitted on another, one per model.

    Compare their `loss`, `brier` and `ece` with the originals'. No predicted class changes; with two, no ranking does.
    The temperatures are those of the side `fitted_on` of `frame` ("val", or a side of out-of-fold predictions); the
    result has the rows of another `side` with other probabilities, and a column `temperature`.
    """
    frame = predictions.validated_predictions(frame).drop(columns="temperature", errors="ignore")
    columns, reasons = [PREFIX + name for name in class_names_of(frame)], list[str]()

    def choose(rows: pd.DataFrame) -> float:
        fitted, reason = choose_temperature(*predictions.arrays_of(rows), predictions.groups_of(rows))
        reasons.append(reason)
        return fitted

    found = _chosen_elsewhere(frame, fitted_on, side, choose).rename(columns={_CHOSEN: "temperature"})
    if kept := [reason for reason in reasons if reason]:
        why = "; ".join(sorted(set(kept)))
        _log.warning("The temperature of %d of %d models stays 1: %s", len(kept), len(reasons), why)
    for temperature in found["temperature"].unique():
        rows = found["temperature"] == temperature
        found.loc[rows, columns] = apply_temperature(found.loc[rows, columns].to_numpy(np.float64), temperature)
    return found


def operating_points(
    frame: pd.DataFrame, *, sensitivity: float | None = None, specificity: float | None = None,
    thresholds_from: str = "val", side: str = "test", level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Return the metrics of a threshold on the positive class's probability that keeps a sensitivity, or a specificity.

    Each fitted model (fold and seed) gets its own threshold, from its predictions of another side: the highest one with
    at least the `sensitivity` asked for, or the lowest one with the `specificity`. An image is positive from the
    threshold on. The target need not hold on the tested side. `thresholds_from` is the side to choose on: "val", or the
    name of a side with out-of-fold predictions. `frame` is of two classes; `side` and `level` are those of `evaluate`.

    Returns:
        A row per backbone and metric: `backbone, target, threshold` (mean over models), `threshold_lowest,
        threshold_highest`, and the columns of `evaluate`. Where a class has fewer than five groups to choose on, or an
        effective number of them below 3, values are NaN, and `reason` says so.

    Raises:
        SettingsError, DataError: For none or two targets; for frames that lack one of two classes on a side.
    """
    check_settings(level)
    if (sensitivity is None) == (specificity is None):
        raise SettingsError("Give one target: sensitivity=0.95, for instance, or specificity=0.95.")
    frame = predictions.validated_predictions(frame)
    names = class_names_of(frame)
    if len(names) != 2:
        raise DataError(f"An operating point needs two classes. Received: {', '.join(names)}.")
    target, own = ("specificity", names[0]) if sensitivity is None else ("sensitivity", names[1])
    wanted = real_number(target, specificity if sensitivity is None else sensitivity, 0, 1, "(]")
    negative, positive = (PREFIX + name for name in names)
    reasons = dict[str, str]()

    def choose(rows: pd.DataFrame) -> float:
        if few := _checked(*predictions.arrays_of(rows), predictions.groups_of(rows))[2]:
            reasons[rows["backbone"].iloc[0]] = f"no threshold is chosen on {thresholds_from}: {few}"
            return 0.5
        scores = np.sort(rows.loc[rows["label"] == own, positive].to_numpy(dtype=np.float64))
        return _threshold(scores, wanted, at_least=target == "sensitivity")

    tested = _chosen_elsewhere(frame, thresholds_from, side, choose)
    above = (tested[positive] >= tested[_CHOSEN]).astype(np.float64)
    # As probabilities of 0 and 1, the threshold's verdicts are scored like any prediction.
    result = evaluate(tested.assign(**{negative: 1 - above, positive: above}), metrics=_SHOWN, level=level, side=side)
    thresholds = tested.drop_duplicates(model_keys(tested)).groupby("backbone")[_CHOSEN]
    shown = thresholds.agg(threshold="mean", threshold_lowest="min", threshold_highest="max")
    shown.insert(0, "target", f"{target} {wanted:g}")
    result = shown.reset_index().merge(result, on="backbone", how="right")
    unchosen = result["backbone"].isin(list(reasons))
    numbers = result.select_dtypes("float").columns.drop("prevalence")
    result.loc[unchosen, numbers] = np.nan
    result.loc[unchosen, "reason"] = result["backbone"].map(reasons)
    return _with_shared_groups(result, frame, thresholds_from, side)


def accuracy_at_coverage(
    frame: pd.DataFrame, coverages: float | Sequence[float] = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5), *,
    thresholds_from: str = "val", side: str = "test", level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Return the accuracy on the images that a model is surest of: the reject option.

    Each fitted model rejects below a confidence (probability of the predicted class) at which the wanted share of the
    side `thresholds_from` is kept; the share that this keeps of the tested `side` is the column `coverage`.
    `coverages` lie above 0 and up to 1; `frame` and `level` are those of `evaluate`.

    Returns:
        A row per backbone and coverage: `backbone, wanted, coverage, threshold` (mean over models), and the columns of
        `evaluate` for the accuracy on the images kept. A backbone that keeps none has no row.
    """
    check_settings(level)
    frame = predictions.validated_predictions(frame)
    columns = [PREFIX + name for name in class_names_of(frame)]
    order = list(dict.fromkeys(predictions.select_side(frame, side)["backbone"]))
    parts = []
    given = np.atleast_1d(np.asarray(coverages, dtype=object))
    for wanted in [real_number("coverages", coverage, 0, 1, "(]") for coverage in given]:

        def choose(rows: pd.DataFrame, wanted: float = wanted) -> float:
            return 0.0 if wanted == 1 else _threshold(np.sort(rows[columns].max(axis=1)), wanted, at_least=True)

        tested = _chosen_elsewhere(frame, thresholds_from, side, choose)
        kept = tested[tested[columns].max(axis=1) >= tested[_CHOSEN]]
        if kept.empty:
            continue
        result = evaluate(kept, metrics="accuracy", level=level, side=side)
        thresholds = tested.drop_duplicates(model_keys(tested)).groupby("backbone")[_CHOSEN].mean()
        share = kept.groupby("backbone").size() / tested.groupby("backbone").size()
        result.insert(1, "wanted", wanted)
        result.insert(2, "coverage", result["backbone"].map(share))
        result.insert(3, "threshold", result["backbone"].map(thresholds))
        parts.append(result)
    if not parts:
        return pd.DataFrame()
    joined = _with_shared_groups(pd.concat(parts), frame, thresholds_from, side)
    return joined.sort_values("backbone", key=lambda column: column.map(order.index), kind="stable", ignore_index=True)


def _chosen_elsewhere(
    frame: pd.DataFrame, chosen_on: str, side: str, choose: Callable[[pd.DataFrame], float]
) -> pd.DataFrame:
    """Return the rows of one side of a validated frame, with the choice for their model on another side in `_CHOSEN`.

    `choose` gets the rows of one fitted model on the side `chosen_on`.
    """
    if chosen_on == side:
        raise SettingsError(f"A choice on the tested side {side!r} looks better than it is: take another side.")
    if "side" not in frame:
        raise DataError("To choose on one side and test on another, the predictions need a column side.")
    tested, other = (predictions.select_side(frame, name) for name in (side, chosen_on))
    predictions.models_of(tested, side)  # checks
    predictions.arrays_of(other)  # checks
    keys = model_keys(frame)
    if "sample" in frame:
        images = [*keys, "sample"]
        if other.duplicated(images).any():
            raise DataError(f"An image of the side {chosen_on!r} is there twice for one model.")
        if len(tested[images].merge(other[images])):
            raise DataError(f"Images of the side {side!r} are among those of the side {chosen_on!r} of one model.")
    groups = other.groupby(keys, dropna=False, sort=False)
    chosen = [dict(zip(keys, key, strict=True)) | {_CHOSEN: choose(rows)} for key, rows in groups]
    table = pd.DataFrame(chosen).astype({name: tested[name].dtype for name in keys})
    joined = tested.merge(table, on=keys, how="left")
    if joined[_CHOSEN].isna().any():
        missing = joined.loc[joined[_CHOSEN].isna(), "backbone"].iloc[0]
        raise DataError(f"{missing} has predictions of the side {side!r} without any of the side {chosen_on!r}.")
    return joined


def _threshold(scores: Floats, wanted: float, *, at_least: bool) -> float:
    """Return the threshold that at least the wanted share of sorted scores reaches, or stays below."""
    # At least this many must be right; 1e-9 is taken off so that 0.95 of 20 is 19.
    right = max(1, int(np.ceil(wanted * len(scores) - 1e-9)))
    return float(scores[len(scores) - right]) if at_least else float(np.nextafter(scores[right - 1], 2))


def _with_shared_groups(result: pd.DataFrame, frame: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    if unit := predictions.unit_column(frame):
        keys = [unit, *model_keys(frame)]
        sides = [frame.loc[frame["side"] == side, keys].dropna(subset=unit).drop_duplicates() for side in (one, other)]
        if count := sides[0].merge(sides[1])[unit].nunique():
            note = f"{count} groups are on the sides {one!r} and {other!r}: too good"
            result["reason"] = [f"{why}; {note}".removeprefix("; ") for why in result["reason"]]
    return result
