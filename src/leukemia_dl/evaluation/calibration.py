"""Calibration: the slope and intercept of predicted log-odds, and temperature scaling."""

from __future__ import annotations

import logging
import numbers
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from leukemia_dl.errors import DataError
from leukemia_dl.evaluation.choices import CHOSEN, chosen_elsewhere
from leukemia_dl.evaluation.predictions import FEWEST_GROUPS, PREFIX, Run, as_arrays, class_names_of, groups_of, tidy

__all__ = ["apply_temperature", "calibrate", "calibration_fits", "choose_temperature", "fit_temperature"]

_CLIP = 1e-15
# Weighted predictions that are held at once: few enough for a processor's cache.
_AT_ONCE = 200_000
# Of the last step: Newton's error is then about its square.
_TOLERANCE = 1e-4
_QUICK_STEPS, _CAREFUL_STEPS = 8, 100
# Where Newton's method without care has gone that far, it is lost.
_FAR = 1e6
_ROUNDING = 1e-12
_log = logging.getLogger(__name__)


def calibration_fits(run: Run, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return `calibration_slope` and `calibration_intercept` of a binary run under each row of weights (r, units).

    Both are maximum-likelihood logistic regressions of the label on the predicted log-odds; NaN where there is no
    finite maximum, and with more than two classes.
    """
    names = ("calibration_slope", "calibration_intercept")
    if run.probabilities.shape[1] != 2:
        return {name: np.full(len(weights), np.nan) for name in names}
    clipped = np.clip(run.probabilities, _CLIP, 1.0)
    odds = np.log(clipped[:, 1]) - np.log(clipped[:, 0])
    label, one = run.labels.astype(np.float64), np.ones_like(odds)
    spread = float(odds.std()) or 1.0
    x = (odds - odds.mean()) / spread
    present = weights > 0
    low = [_per_unit(np.minimum, np.inf, odds, run, weights.shape[1], code) for code in (0, 1)]
    high = [_per_unit(np.maximum, -np.inf, odds, run, weights.shape[1], code) for code in (0, 1)]
    lowest = [np.where(present, ends, np.inf).min(axis=1) for ends in low]
    highest = [np.where(present, ends, -np.inf).max(axis=1) for ends in high]
    # Without both classes there is nothing to fit; where they do not overlap the likelihood rises for ever.
    both = np.isfinite(lowest[0]) & np.isfinite(lowest[1])
    overlap = both & (highest[0] > lowest[1]) & (highest[1] > lowest[0])
    slopes = _Logistic(np.stack([one, x], axis=1), np.zeros_like(x), label).fit(run.unit, weights, overlap)[:, 1]
    intercepts = _Logistic(one[:, None], odds, label).fit(run.unit, weights, both)[:, 0]
    return dict(zip(names, (slopes / spread, intercepts), strict=True))


def _per_unit(
    function: np.ufunc, start: float, odds: NDArray[np.float64], run: Run, units: int, code: int
) -> NDArray[np.float64]:
    ends = np.full(units, start)
    chosen = run.labels == code
    function.at(ends, run.unit[chosen], odds[chosen])
    return ends


@dataclass(frozen=True, eq=False)
class _Logistic:
    """Weighted regressions of one label on one design: label ~ sigmoid(offset + design @ coefficients).

    Attributes:
        design: (n, columns).
        offset: (n,).
        label: 0 or 1 (n,).
    """

    design: NDArray[np.float64]
    offset: NDArray[np.float64]
    label: NDArray[np.float64]

    def fit(
        self, unit: NDArray[np.int64], weights: NDArray[np.float64], defined: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return coefficients (r, columns) per row of weights (r, units); NaN where not `defined` or not found.

        All rows start where unweighted predictions have their maximum, which is near to theirs: Newton's method then
        needs three or four steps, the first of them for all rows at once from sums per unit.
        """
        n, columns = self.design.shape
        result = np.full((len(weights), columns), np.nan)
        if not defined.any():
            return result
        start = np.nan_to_num(self._careful(np.ones((1, n)), np.zeros((1, columns))))
        p = self._expected(start)[0]
        shares = np.c_[(self.label - p)[:, None] * self.design, (p * (1 - p))[:, None] * self._products]
        sums = np.stack([np.bincount(unit, share, weights.shape[1]) for share in shares.T], axis=1)
        totals = weights @ sums
        count = weights @ np.bincount(unit, None, weights.shape[1])
        first = start + _solved(totals[:, :columns], totals[:, columns:], count)
        rows = np.flatnonzero(defined)
        step = max(_AT_ONCE // n, 1)
        for place in range(0, len(rows), step):
            part = rows[place : place + step]
            weighted = weights[part][:, unit]
            found, last = first[part], np.full(len(part), np.inf)
            for _ in range(_QUICK_STEPS):
                moved = self._newton(weighted, found)
                found, last = np.clip(found + moved, -_FAR, _FAR), np.abs(moved).max(axis=1)
                if not (last > _TOLERANCE).any():
                    break
            astray = ~(last <= _TOLERANCE)
            if astray.any():
                found[astray] = self._careful(weighted[astray], np.broadcast_to(start, found[astray].shape))
            result[part] = found
        return result

    @cached_property
    def _products(self) -> NDArray[np.float64]:
        return (self.design[:, :, None] * self.design[:, None, :]).reshape(len(self.design), -1)

    def _expected(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = expit(at @ self.design.T + self.offset)
        return result

    def _newton(self, weights: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return Newton's step (r, columns) for weights (r, n)."""
        p = self._expected(at)
        expected = weights * p
        gradient = weights @ (self.label[:, None] * self.design) - expected @ self.design
        expected *= 1 - p
        return _solved(gradient, expected @ self._products, weights.sum(axis=1))

    def _careful(self, weights: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return coefficients by Newton's method with halved steps; NaN where it comes to no end."""
        found = start.copy()
        likelihood = self._likelihood(weights, found)
        last = np.full(len(found), np.inf)
        for _ in range(_CAREFUL_STEPS):
            moved = np.clip(self._newton(weights, found), -10.0, 10.0)
            last = np.abs(moved).max(axis=1)
            for _ in range(40):
                tried = self._likelihood(weights, found + moved)
                worse = tried < likelihood - 1e-12 * np.abs(likelihood)
                if not worse.any():
                    break
                moved = np.where(worse[:, None], moved / 2, moved)
            found, likelihood = found + moved, tried
            if not (last > _TOLERANCE).any():
                break
        return np.where((last <= _TOLERANCE)[:, None], found, np.nan)

    def _likelihood(self, weights: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
        eta = at @ self.design.T + self.offset
        result: NDArray[np.float64] = -(weights * np.logaddexp(0, (1 - 2 * self.label) * eta)).sum(axis=1)
        return result


def _solved(
    gradient: NDArray[np.float64], curvature: NDArray[np.float64], total: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return steps (r, columns); none where rounding is all that is left of the gradient of r sums of weights."""
    columns = gradient.shape[1]
    # The curvature may be as small there, and the step large.
    gradient = np.where(np.abs(gradient) < _ROUNDING * total[:, None], 0.0, gradient)
    matrices = curvature.reshape(-1, columns, columns)
    # Where all probabilities are 0 or 1 the curvature is nothing: a trace of it keeps the step finite, and small.
    ridge = 1e-12 * np.trace(matrices, axis1=1, axis2=2) + 1e-12
    result: NDArray[np.float64] = np.linalg.solve(
        matrices + ridge[:, None, None] * np.eye(columns), gradient[..., None]
    )
    return result[..., 0]


def fit_temperature(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], groups: NDArray[Any] | None = None
) -> float:
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
        DataError: If shapes, labels or probabilities are not as said.
    """
    return choose_temperature(labels, probabilities, groups)[0]


def choose_temperature(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], groups: NDArray[Any] | None = None
) -> tuple[float, str]:
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

    # In the inverse temperature the loss is convex, so what is found is the minimum.
    def loss(inverse: float) -> float:
        return float((logsumexp(inverse * logits, axis=1) - inverse * own).mean())

    found = minimize_scalar(loss, bounds=(0.01, 100.0), method="bounded", options={"xatol": 1e-8}).x
    return (float(1.0 / found), "") if 0.0101 < found < 99.0 else (1.0, "the loss still falls at the bound")


def calibrate(frame: pd.DataFrame, *, fitted_on: str = "val", side: str = "test") -> pd.DataFrame:
    """Return the predictions of one side with each fitted model's temperature applied, which was fitted on another.

    Evaluating them beside the originals shows what calibration changes: the loss, Brier score and calibration error; no
    prediction, and of two classes no ranking.

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
    frame = tidy(frame).drop(columns="temperature", errors="ignore")
    names, reasons = class_names_of(frame), list[str]()
    columns = [PREFIX + name for name in names]

    def choose(rows: pd.DataFrame) -> float:
        labels = pd.Index(names).get_indexer(pd.Index(rows["label"])).astype(np.int64)
        fitted, reason = choose_temperature(labels, rows[columns].to_numpy(dtype=np.float64), groups_of(rows))
        reasons.append(reason)
        return fitted

    found = chosen_elsewhere(frame, fitted_on, side, choose).rename(columns={CHOSEN: "temperature"})
    if kept := list(filter(None, reasons)):
        _log.warning(
            "The temperature of %d of %d models stays 1: %s", len(kept), len(reasons), "; ".join(sorted({*kept}))
        )
    for _, rows in found.groupby("temperature").groups.items():
        softened = apply_temperature(found.loc[rows, columns].to_numpy(dtype=np.float64), found["temperature"][rows[0]])
        found.loc[rows, columns] = softened
    return found


def apply_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return softmax(log(`probabilities`) / `temperature`), float64 (n, classes). The order of classes stays.

    Raises:
        DataError: If the temperature is not a positive number, or the probabilities are none (n, classes).

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
    shape = np.shape(probabilities)
    _, probabilities = as_arrays(np.zeros(shape[:1], np.int64), probabilities)
    logits = np.log(np.clip(probabilities, _CLIP, 1.0))
    result: NDArray[np.float64] = softmax(logits / temperature, axis=1)
    return result
