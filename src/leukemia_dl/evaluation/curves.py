"""Curves with bands: ROC, precision over recall, and reliability, each point with the interval of a single metric."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.checks import real_number, whole_number
from leukemia_dl.evaluation.intervals import bounds, resampling_of
from leukemia_dl.evaluation.metrics import Metric
from leukemia_dl.evaluation.predictions import FEWEST_GROUPS, Model, Run, models_of, tidy

__all__ = ["precision_recall_curves", "reliability_curves", "roc_curves"]

_SHARE = Metric("share")
# On the logit scale a band would fill everything where a curve comes near 1 and one group decides how near.
_ON_CURVE = Metric("share", "linear")
_AT_ONCE = 2_000_000

# A row per weighting, a column per place of the curve.
_Curve = Callable[[Run, NDArray[np.float64]], NDArray[np.float64]]


def roc_curves(frame: pd.DataFrame, *, points: int = 101, level: float = 0.95, side: str = "test") -> pd.DataFrame:
    """Return the sensitivity of each backbone at evenly spaced false positive rates, with a pointwise band.

    Images are ranked within their fold; folds are weighted by their numbers of pairs, as in `auroc`, so that the area
    below the curve is that metric but for the grid. Seeds are averaged; with more than two classes, classes too
    (one against the rest). Between two thresholds the curve is straight. The band is over groups, see `evaluate`.

    Args:
        frame: The prediction frame, see `evaluate`.
        points: Of the grid from 0 to 1.
        level: Of the band, at each point by itself.
        side: Which rows of the column `side`.

    Returns:
        `backbone, kind, x` (false positive rate), `y` (sensitivity), `low, high` (NaN where no interval is given).

    Raises:
        DataError: If the frame is not one of predictions.
        SettingsError: If a setting is out of its range.
    """
    grid = _grid(points)
    return _table(frame, side, level, grid, lambda run, weights: _ranked(run, weights, grid, _roc), _ON_CURVE)


def precision_recall_curves(
    frame: pd.DataFrame, *, points: int = 101, level: float = 0.95, side: str = "test"
) -> pd.DataFrame:
    """Return the precision of each backbone at evenly spaced recalls, with a pointwise band.

    At each recall the precision at the highest threshold that reaches it, as in average precision (`auprc`); folds are
    weighted by their positive images. Otherwise as `roc_curves`.

    Args:
        frame: The prediction frame, see `evaluate`.
        points: Of the grid from 0 to 1.
        level: Of the band, at each point by itself.
        side: Which rows of the column `side`.

    Returns:
        `backbone, kind, x` (recall), `y` (precision), `low, high`.

    Raises:
        DataError: If the frame is not one of predictions.
        SettingsError: If a setting is out of its range.
    """
    grid = _grid(points)
    return _table(frame, side, level, grid, lambda run, weights: _ranked(run, weights, grid, _precision), _ON_CURVE)


def reliability_curves(frame: pd.DataFrame, *, bins: int = 10, level: float = 0.95, side: str = "test") -> pd.DataFrame:
    """Return how often an event happens where it is said to have a probability, in equal bins, with intervals.

    The event is the positive class with two classes, and with more of them that the predicted class is right.

    Args:
        frame: The prediction frame, see `evaluate`.
        bins: Equal parts of the probabilities from 0 to 1.
        level: Of the interval of each bin by itself.
        side: Which rows of the column `side`.

    Returns:
        `backbone, kind, x` (mean probability in the bin), `y` (share in which it happened), `low, high, predictions`
        (in all seeds); a bin without predictions has no row.

    Raises:
        DataError: If the frame is not one of predictions.
        SettingsError: If a setting is out of its range.
    """
    whole_number("bins", bins, 2, 100)
    edges = np.linspace(0, 1, bins + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    found = _table(frame, side, level, middles, lambda run, weights: _happened(run, weights, edges), _SHARE)
    rows = []
    for model in models_of(tidy(frame), side):
        events = [_events(run) for run in model.runs]
        said = np.concatenate([one for one, _ in events])
        place = _bin_of(said, edges)
        count = np.bincount(place, minlength=bins)
        with np.errstate(invalid="ignore"):
            rows.append(pd.DataFrame({"x": np.bincount(place, said, bins) / count, "predictions": count}))
    found[["x", "predictions"]] = pd.concat(rows, ignore_index=True)
    return found[found["predictions"] > 0].reset_index(drop=True)


def _table(
    frame: pd.DataFrame, side: str, level: float, places: NDArray[np.float64], curve: _Curve, what: Metric
) -> pd.DataFrame:
    real_number("level", level, 0.5, 1, "[)")
    parts = [_of_model(model, places, level, curve, what) for model in models_of(tidy(frame), side)]
    return pd.concat(parts, ignore_index=True)


def _of_model(model: Model, places: NDArray[np.float64], level: float, curve: _Curve, what: Metric) -> pd.DataFrame:
    resampling = resampling_of([model])
    weights = np.concatenate([np.ones((1, len(resampling.sizes))), resampling.leave_one_out])
    runs = np.array([curve(run, weights) for run in resampling.in_blocks(model)])
    # Where one seed has nothing to show, the others do; where none has, there is a gap.
    known = ~np.isnan(runs)
    with np.errstate(invalid="ignore"):
        found = np.where(known, runs, 0.0).sum(axis=0) / known.sum(axis=0)
    values, left_out = found[0], found[1:]
    ends = np.full((2, len(places)), np.nan)
    units = [count for count in resampling.groups_per_class if count]
    if min(units) >= FEWEST_GROUPS:
        for at, value in enumerate(values):
            if np.isnan(value) or np.isnan(left_out[:, at]).any():
                continue
            ends[:, at] = bounds(what, float(value), resampling.spread(left_out[:, at]), level, min(units))
    ends = np.clip(ends, 0.0, 1.0)
    facts = {"backbone": model.name, "kind": model.kind}
    return pd.DataFrame({**facts, "x": places, "y": values, "low": ends[0], "high": ends[1]})


def _ranked(
    run: Run, weights: NDArray[np.float64], grid: NDArray[np.float64], at: Callable[..., NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return a curve of ranked images under each row of weights: means over folds, then over classes."""
    classes = run.probabilities.shape[1]
    curves = []
    for positive in [1] if classes == 2 else range(classes):
        total, shares = np.zeros((len(weights), len(grid))), np.zeros((len(weights), 1))
        pairs = np.zeros((len(weights), 1), bool)
        for fold in np.unique(run.fold):
            rows = np.flatnonzero(run.fold == fold)
            rows = rows[np.argsort(-run.probabilities[rows, positive], kind="stable")]
            scores, hit = run.probabilities[rows, positive], run.labels[rows] == positive
            # Equal scores are one step.
            ends = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
            step = max(_AT_ONCE // len(rows), 1)
            for first in range(0, len(weights), step):
                part = weights[first : first + step][:, run.unit[rows]]
                above = np.cumsum(np.where(hit, part, 0.0), axis=1)[:, ends]
                below = np.cumsum(np.where(hit, 0.0, part), axis=1)[:, ends]
                for row, (one, other) in enumerate(zip(above, below, strict=True), start=first):
                    share = one[-1] * (other[-1] if at is _roc else 1.0)
                    if share > 0:
                        total[row] += share * at(one, other, grid)
                        shares[row] += share
                    pairs[row] |= one[-1] > 0 and other[-1] > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            curves.append(np.where(pairs, total / shares, np.nan))
    result: NDArray[np.float64] = np.mean(curves, axis=0)
    return result


def _roc(above: NDArray[np.float64], below: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    # Of several sensitivities at one rate the highest counts: np.interp takes the last of equal places.
    found: NDArray[np.float64] = np.interp(grid, np.r_[0.0, below / below[-1]], np.r_[0.0, above / above[-1]])
    return found


def _precision(
    above: NDArray[np.float64], below: NDArray[np.float64], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    reached = np.minimum(np.searchsorted(above / above[-1], grid - 1e-12), len(above) - 1)
    # At recall 0 nothing is predicted yet: the first threshold that predicts anything.
    some = np.maximum(reached, np.argmax(above + below > 0))
    found: NDArray[np.float64] = above[some] / (above[some] + below[some])
    return found


def _events(run: Run) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the probabilities of what may happen, and whether it did (n,)."""
    if run.probabilities.shape[1] == 2:
        return run.probabilities[:, 1], run.labels == 1
    return run.probabilities.max(axis=1), run.predicted == run.labels


def _bin_of(said: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.clip(np.ceil(said * (len(edges) - 1)).astype(np.int64) - 1, 0, len(edges) - 2)


def _happened(run: Run, weights: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    said, happened = _events(run)
    bins, units = len(edges) - 1, weights.shape[1]
    place = run.unit * bins + _bin_of(said, edges)
    sums = [np.bincount(place, value, units * bins).reshape(units, bins) for value in (happened, None)]
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float64] = (weights @ sums[0]) / (weights @ sums[1])
    return result


def _grid(points: int) -> NDArray[np.float64]:
    whole_number("points", points, 2, 10_001)
    return np.linspace(0, 1, points)
