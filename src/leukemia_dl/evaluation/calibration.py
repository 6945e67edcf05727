"""Temperatures and thresholds: fitted on one side, and used on another."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import predictions
from leukemia_dl.evaluation.intervals import effective_number
from leukemia_dl.evaluation.metrics import CLIP, Floats, Ints, as_arrays
from leukemia_dl.evaluation.predictions import FEWEST_EFFECTIVE, FEWEST_GROUPS, PREFIX, class_names_of, model_keys

CHOSEN, COVERAGE, _SENSITIVITY = "_chosen", 0.9, 0.95
_log = logging.getLogger(__name__)


def fit_temperature(labels: Ints, probabilities: Floats, groups: NDArray[Any] | None = None) -> float:
    """Return the temperature T that makes the cross-entropy of softmax(log(probabilities) / T) least (Guo et al. 2017).

    Above 1 the predictions were too confident. Fit it on predictions that were not trained on and are not the test
    side. `labels` (n,) are class indices, `probabilities` (n, classes) rows that sum to 1; `groups` (n,) are patients,
    None if unknown: then images are counted. The result lies between 0.01 and 100. It is 1.0 where it is not
    determined: fewer than 5 groups of a class, or an effective number of them below 3; no difference between classes;
    no wrong prediction; no least loss.
    """
    return choose_temperature(labels, probabilities, groups)[0]


def choose_temperature(labels: Ints, probabilities: Floats, groups: NDArray[Any] | None = None) -> tuple[float, str]:
    """Return the temperature as `fit_temperature` does, and the reason where it stays 1.0; "" where it was fitted."""
    labels, probabilities, few = checked_arrays(labels, probabilities, groups)
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


def choose_rules(
    labels: Ints, probabilities: Floats, groups: NDArray[Any] | None, temperature: float
) -> dict[str, dict[str, Any]]:
    """Return how calibrated probabilities become decisions, chosen on a val side.

    Of two classes, `threshold` is the highest one on the second class with a sensitivity of 0.95. `abstain` is the
    probability from which on a class is possible, see `conformal_limit`, for a coverage of 0.9. `value` is None, and
    `reason` says why, for too few patients. Arguments are as in `fit_temperature`, before the `temperature`.
    """
    calibrated = softmax(np.log(np.clip(probabilities, CLIP, 1.0)) / temperature, axis=1)
    limit, reason = conformal_limit(calibrated[np.arange(len(labels)), labels], groups, COVERAGE)
    number = len(labels) if groups is None else len(np.unique(groups))
    rules = {"abstain": {"value": limit, "coverage": COVERAGE, "chosen_on": "val", "reason": reason}}
    rules["abstain"] |= {"calibrated_on": number, "unit": "images" if groups is None else "groups of patients"}
    if calibrated.shape[1] == 2:
        few = checked_arrays(labels, probabilities, groups)[2]
        value = None if few else threshold_of(np.sort(calibrated[labels == 1, 1]), _SENSITIVITY, at_least=True)
        rules["threshold"] = {"value": value, "sensitivity": _SENSITIVITY, "chosen_on": "val", "reason": few}
    return rules


def conformal_limit(own: Floats, groups: NDArray[Any] | None, coverage: float) -> tuple[float | None, str]:
    """Return the highest limit that the right class of an image of a new patient reaches with a probability.

    Of `own`, the probabilities of the right classes (n,), each group weighs the same, however many images it has. So
    does the new one, which may lie below all (Lee, Barber and Willett 2023, arXiv:2306.06342). The probability is then
    at least `coverage` where patients are exchangeable. None and the reason where there are too few `groups`.
    """
    codes = np.arange(len(own)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes, order = np.bincount(codes), np.argsort(own, kind="stable")
    share = 1 / (len(sizes) + 1)
    below = share * (1 + np.concatenate([[0], np.cumsum(1 / sizes[codes[order]])[:-1]]))
    allowed = np.flatnonzero(below <= 1 - coverage + 1e-9)
    if allowed.size == 0:
        fewest, unit = math.ceil(coverage / (1 - coverage) - 1e-9), "images" if groups is None else "groups of patients"
        return None, f"a coverage of {coverage:g} needs {fewest} {unit}, and there are {len(sizes)}"
    return float(own[order[allowed[-1]]]), ""


def checked_arrays(labels: Any, probabilities: Any, groups: NDArray[Any] | None) -> tuple[Ints, Floats, str]:
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

    found = chosen_elsewhere(frame, fitted_on, side, choose).rename(columns={CHOSEN: "temperature"})
    if kept := [reason for reason in reasons if reason]:
        why = "; ".join(sorted(set(kept)))
        _log.warning("The temperature of %d of %d models stays 1: %s", len(kept), len(reasons), why)
    for temperature in found["temperature"].unique():
        rows = found["temperature"] == temperature
        found.loc[rows, columns] = apply_temperature(found.loc[rows, columns].to_numpy(np.float64), temperature)
    return found


def chosen_elsewhere(
    frame: pd.DataFrame, chosen_on: str, side: str, choose: Callable[[pd.DataFrame], float]
) -> pd.DataFrame:
    """Return the rows of one side of a validated frame, with the choice for their model on another side in `CHOSEN`.

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
    chosen = [dict(zip(keys, key, strict=True)) | {CHOSEN: choose(rows)} for key, rows in groups]
    table = pd.DataFrame(chosen).astype({name: tested[name].dtype for name in keys})
    joined = tested.merge(table, on=keys, how="left")
    if joined[CHOSEN].isna().any():
        missing = joined.loc[joined[CHOSEN].isna(), "backbone"].iloc[0]
        raise DataError(f"{missing} has predictions of the side {side!r} without any of the side {chosen_on!r}.")
    return joined


def threshold_of(scores: Floats, wanted: float, *, at_least: bool) -> float:
    """Return the threshold that at least the wanted share of sorted scores reaches, or stays below."""
    # At least this many must be right; 1e-9 is taken off so that 0.95 of 20 is 19.
    right = max(1, int(np.ceil(wanted * len(scores) - 1e-9)))
    return float(scores[len(scores) - right]) if at_least else float(np.nextafter(scores[right - 1], 2))
