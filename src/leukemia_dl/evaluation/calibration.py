"""Calibration: the slope and intercept of predicted log-odds, and temperature scaling."""

from __future__ import annotations

import logging
import numbers
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from leukemia_dl.errors import DataError
from leukemia_dl.evaluation.choices import CHOSEN, chosen_elsewhere
from leukemia_dl.evaluation.predictions import (
    FEWEST_GROUPS,
    PREFIX,
    Floats,
    Ints,
    Run,
    arrays_of,
    as_arrays,
    class_names_of,
    groups_of,
    validated_predictions,
)

__all__ = ["apply_temperature", "calibrate", "calibration_fits", "choose_temperature", "fit_temperature"]

_CLIP = 1e-15
# Weighted predictions that are held at once: few enough for a processor's cache.
_AT_ONCE = 200_000
_MOST_STEPS, _LONGEST_STEP, _LAST_STEP, _ROUNDING = 100, 10.0, 1e-5, 1e-12
_log = logging.getLogger(__name__)


def calibration_fits(run: Run, weights: Floats) -> dict[str, Floats]:
    """Return `calibration_slope` and `calibration_intercept` of a binary run under each row of weights (r, units).

    Both are maximum-likelihood logistic regressions of the label on the predicted log-odds; NaN where there is no
    finite maximum, and with more than two classes.
    """
    slopes, intercepts = np.full((2, len(weights)), np.nan)
    if run.probabilities.shape[1] == 2:
        clipped, label = np.clip(run.probabilities, _CLIP, 1.0), run.labels
        odds = np.log(clipped[:, 1]) - np.log(clipped[:, 0])
        spread = float(odds.std()) or 1.0
        constant, zero = np.ones((len(odds), 1)), np.zeros(len(odds))
        line = np.c_[constant, (odds - odds.mean()) / spread]
        # The maxima of all weightings are near to that of the unweighted predictions.
        starts = _logistic(line, zero, label, constant.T), _logistic(constant, odds, label, constant.T)
        step = max(_AT_ONCE // len(odds), 1)
        for part in (slice(first, first + step) for first in range(0, len(weights), step)):
            weight = weights[part][:, run.unit]
            present = [(weight > 0) & (label == code) for code in (0, 1)]
            lowest, highest = (
                [reduce(np.where(rows, odds, end), axis=1) for rows in present]
                for reduce, end in ((np.min, np.inf), (np.max, -np.inf))
            )
            both = np.isfinite(lowest[0]) & np.isfinite(lowest[1])
            # Where the classes do not overlap the likelihood rises for ever.
            overlap = both & (highest[0] > lowest[1]) & (highest[1] > lowest[0])
            slopes[part][overlap] = _logistic(line, zero, label, weight[overlap], starts[0])[:, 1] / spread
            intercepts[part][both] = _logistic(constant, odds, label, weight[both], starts[1])[:, 0]
    return {"calibration_slope": slopes, "calibration_intercept": intercepts}


def _logistic(design: Floats, offset: Floats, label: Ints, weights: Floats, start: Floats | float = 0.0) -> Floats:
    """Return coefficients (r, columns) of label ~ sigmoid(offset + design @ coefficients) per row of weights (r, n).

    By Newton's method; a step is halved until the likelihood does not fall. NaN where no maximum is found.
    """
    columns, total = design.shape[1], weights.sum(axis=1)[:, None]
    products = (design[:, :, None] * design[:, None, :]).reshape(-1, columns**2)

    def likelihood(at: Floats) -> Floats:
        return np.asarray(-(weights * np.logaddexp(0, (1 - 2 * label) * (at @ design.T + offset))).sum(axis=1))

    at = np.zeros((len(weights), columns)) + np.nan_to_num(start)
    best, last = likelihood(at), np.full(len(at), np.inf)
    for _ in range(_MOST_STEPS):
        p = expit(at @ design.T + offset)
        gradient = (weights * (label - p)) @ design
        # Where only rounding is left of the gradient, the curvature may be as small, and the step large.
        gradient[np.abs(gradient) < _ROUNDING * total] = 0.0
        curvature = ((weights * p * (1 - p)) @ products).reshape(-1, columns, columns)
        # Where all probabilities are 0 or 1 there is no curvature: a trace of it keeps the step finite.
        ridge = _ROUNDING * (1 + np.trace(curvature, axis1=1, axis2=2))[:, None, None] * np.eye(columns)
        step = np.clip(np.linalg.solve(curvature + ridge, gradient[..., None])[..., 0], -_LONGEST_STEP, _LONGEST_STEP)
        last = np.abs(step).max(axis=1)
        while ((tried := likelihood(at + step)) < best - _ROUNDING * np.abs(best)).any() and np.abs(step).max() > 1e-15:
            step[tried < best - _ROUNDING * np.abs(best)] /= 2
        at, best = at + step, tried
        if (last < _LAST_STEP).all():
            break
    return np.where((last < _LAST_STEP)[:, None], at, np.nan)


def fit_temperature(labels: Ints, probabilities: Floats, groups: NDArray[Any] | None = None) -> float:
    """Return the temperature T that makes softmax(log(probabilities) / T) fit best: the least cross-entropy.

    Above 1 the predictions were too confident. Fit it on predictions that were not trained on and are not the test
    side: the val side, or inner out-of-fold predictions (Guo et al. 2017, section 4.2).

    Args:
        labels: True class indices (n,).
        probabilities: (n, classes), rows that sum to 1.
        groups: The group (patient) of each image (n,); None if unknown: then images are counted.

    Returns:
        A number between 0.01 and 100; 1.0 where these predictions do not determine it: fewer than 5 groups of a class,
        no difference between classes, no wrong prediction, or a loss that still falls at the bound.

    Raises:
        DataError: If shapes, labels or probabilities are wrong.
    """
    return choose_temperature(labels, probabilities, groups)[0]


def choose_temperature(labels: Ints, probabilities: Floats, groups: NDArray[Any] | None = None) -> tuple[float, str]:
    """Return the temperature as `fit_temperature` does, and the reason where it stays 1.0; "" where it was fitted."""
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    labels, probabilities = as_arrays(labels, probabilities)
    units = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if min(len(set(units[labels == code])) for code in range(probabilities.shape[1])) < FEWEST_GROUPS:
        return 1.0, f"fewer than {FEWEST_GROUPS} {'images' if groups is None else 'groups'} of a class"
    logits = np.log(np.clip(probabilities, _CLIP, 1.0))
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


def calibrate(frame: pd.DataFrame, *, fitted_on: str = "val", side: str = "test") -> pd.DataFrame:
    """Return the predictions of one side with the temperatures applied that were fitted on another, one per model.

    Compare their `loss`, `brier` and `ece` with the originals'; no prediction changes, and of two classes no ranking.

    Args:
        frame: The prediction frame, see `evaluate`.
        fitted_on: Side to fit on: "val", or the name of a side with out-of-fold predictions.
        side: Side to return.

    Returns:
        Its rows with other probabilities, and a column `temperature`.

    Raises:
        SettingsError: If both sides are the same.
        DataError: If a side is missing for a model, or an image is on both sides of one.
    """
    frame = validated_predictions(frame).drop(columns="temperature", errors="ignore")
    columns, reasons = [PREFIX + name for name in class_names_of(frame)], list[str]()

    def choose(rows: pd.DataFrame) -> float:
        fitted, reason = choose_temperature(*arrays_of(rows), groups_of(rows))
        reasons.append(reason)
        return fitted

    found = chosen_elsewhere(frame, fitted_on, side, choose).rename(columns={CHOSEN: "temperature"})
    if kept := list(filter(None, reasons)):
        _log.warning(
            "The temperature of %d of %d models stays 1: %s", len(kept), len(reasons), "; ".join(sorted({*kept}))
        )
    for temperature in found["temperature"].unique():
        rows = found["temperature"] == temperature
        found.loc[rows, columns] = apply_temperature(found.loc[rows, columns].to_numpy(np.float64), temperature)
    return found


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log(`probabilities`) / `temperature`), float64 (n, classes). The order of classes stays.

    Raises:
        DataError: If the temperature is not a positive number, or `probabilities` are none.

    Examples:
        >>> import numpy as np
        >>> from leukemia_dl import evaluation
        >>> evaluation.apply_temperature(np.array([[0.9, 0.1], [0.5, 0.5]]), 2.0).round(3)
        array([[0.75, 0.25],
               [0.5 , 0.5 ]])
    """
    from scipy.special import softmax

    if not isinstance(temperature, numbers.Real) or not np.isfinite(temperature) or temperature <= 0:
        raise DataError(f"A temperature is a positive number. Received: {temperature!r}.")
    _, probabilities = as_arrays(np.zeros(np.shape(probabilities)[:1], np.int64), probabilities)
    return np.asarray(softmax(np.log(np.clip(probabilities, _CLIP, 1.0)) / temperature, axis=1))
