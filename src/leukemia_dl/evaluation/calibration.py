"""Temperature scaling of probabilities."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from leukemia_dl.errors import DataError
from leukemia_dl.evaluation.metrics import CLIP, Floats, Ints, as_arrays
from leukemia_dl.evaluation.predictions import (
    CHOSEN,
    FEWEST_GROUPS,
    PREFIX,
    arrays_of,
    chosen_elsewhere,
    class_names_of,
    groups_of,
    validated_predictions,
)

__all__ = ["apply_temperature", "calibrate", "choose_temperature", "fit_temperature"]

_log = logging.getLogger(__name__)


def fit_temperature(labels: Ints, probabilities: Floats, groups: NDArray[Any] | None = None) -> float:
    """Return the temperature T that makes the cross-entropy of softmax(log(probabilities) / T) least (Guo et al. 2017).

    Above 1 the predictions were too confident. Fit it on predictions that were not trained on and are not the test
    side: the val side, or inner out-of-fold predictions.

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
    labels, probabilities = as_arrays(labels, probabilities)
    units = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if min(len(set(units[labels == code])) for code in range(probabilities.shape[1])) < FEWEST_GROUPS:
        return 1.0, f"fewer than {FEWEST_GROUPS} {'images' if groups is None else 'groups'} of a class"
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
    if kept := [reason for reason in reasons if reason]:
        why = "; ".join(sorted(set(kept)))
        _log.warning("The temperature of %d of %d models stays 1: %s", len(kept), len(reasons), why)
    for temperature in found["temperature"].unique():
        rows = found["temperature"] == temperature
        found.loc[rows, columns] = apply_temperature(found.loc[rows, columns].to_numpy(np.float64), temperature)
    return found


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log(`probabilities`) / `temperature`), float64 (n, classes). The order of classes stays.

    Raises:
        DataError: If the temperature is not positive and finite, or `probabilities` are none.

    Examples:
        >>> import numpy as np
        >>> from leukemia_dl import evaluation
        >>> evaluation.apply_temperature(np.array([[0.9, 0.1], [0.5, 0.5]]), 2.0).round(3)
        array([[0.75, 0.25],
               [0.5 , 0.5 ]])
    """
    if not 0 < temperature < math.inf:
        raise DataError(f"A temperature is a positive number. Received: {temperature!r}.")
    _, probabilities = as_arrays(np.zeros(np.shape(probabilities)[:1], np.int64), probabilities)
    return np.asarray(softmax(np.log(np.clip(probabilities, CLIP, 1.0)) / temperature, axis=1))
