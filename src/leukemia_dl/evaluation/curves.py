"""Curves with bands: ROC, precision over recall, and reliability, each point with the interval of a single metric."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.evaluate import check_settings
from leukemia_dl.evaluation.intervals import interval, resampling_of
from leukemia_dl.evaluation.metrics import Floats, Ints, Metric, Run, ranked_folds
from leukemia_dl.evaluation.predictions import FEWEST_GROUPS, Model, models_of, validated_predictions

# On the scale of a share, a band would fill the plot where a curve is near 1 and one group determines how near.
_SHARE, _ON_CURVE = Metric("share", better=""), Metric("share", "linear")
_NET_BENEFIT = Metric("net benefit", "linear", lowest=-np.inf)
_Interpolation = Callable[[Floats, Floats, Floats], Floats]  # cumulative weights of both classes, and the grid


def roc_curves(frame: pd.DataFrame, *, points: int = 101, level: float = 0.95, side: str = "test") -> pd.DataFrame:
    """Return the sensitivity of each backbone at so many evenly spaced false positive rates, with a pointwise band.

    Images are ranked within their fold; folds are weighted by their numbers of pairs, so that the area below the curve
    is `auroc` but for the grid of `points`. Seeds are averaged; with more than two classes, classes too (one against
    the rest). Between two thresholds the curve is straight. `frame`, `level` and `side` are those of `evaluate`.

    Returns:
        `backbone, kind, x` (false positive rate), `y` (sensitivity), `low, high` (NaN where no interval is given),
        `unit` ("group" or "image").
    """
    return _ranked_curves(frame, side, level, points, _roc)


def precision_recall_curves(
    frame: pd.DataFrame, *, points: int = 101, level: float = 0.95, side: str = "test"
) -> pd.DataFrame:
    """Return the precision of each backbone at evenly spaced recalls, with a pointwise band.

    The precision at a recall is that of the highest threshold that reaches it, as in `auprc`; folds are weighted by
    their positive images. `frame`, `points`, `level`, `side` and the columns are those of `roc_curves`, with `x` the
    recall and `y` the precision.
    """
    return _ranked_curves(frame, side, level, points, _precision)


def reliability_curves(frame: pd.DataFrame, *, bins: int = 10, level: float = 0.95, side: str = "test") -> pd.DataFrame:
    """Return the share of events among predictions of about the same probability, in equal bins, with intervals.

    The event is the positive class with two classes, and with more of them that the predicted class is right. There are
    so many `bins` from 0 to 1; `frame`, `level` and `side` are those of `evaluate`.

    Returns:
        `backbone, kind, x` (mean probability in the bin), `y` (share of events), `low, high, unit, predictions` (in all
        seeds); a bin without predictions has no row.
    """
    check_settings(level)
    tables = []
    for model in models_of(validated_predictions(frame), side):
        events = [_events(run, bins) for run in model.runs]
        said, _, place = (np.concatenate(parts) for parts in zip(*events, strict=True))
        count = np.bincount(place, minlength=bins)
        means = np.bincount(place, said, bins) / np.maximum(count, 1)
        table = _with_band(model, means, level, partial(_shares, bins=bins), _SHARE, partial(_counts, bins=bins))
        tables.append(table.assign(predictions=count)[count > 0])
    return pd.concat(tables, ignore_index=True)


def net_benefit(
    frame: pd.DataFrame, *, thresholds: ArrayLike | None = None, level: float = 0.95, side: str = "test"
) -> pd.DataFrame:
    """Return the net benefit of acting on each backbone's predictions: decision curves (Vickers and Elkin 2006).

    Acting at probabilities of t or more implies that a false alarm costs t / (1 - t) of what acting on a case gains.
    The net benefit is the share of images that are cases and acted on, less this weight times that of false alarms. It
    holds at the prevalence of the images. `frame`, of two classes, `level` and `side` are those of `evaluate`;
    `thresholds` are probabilities in (0, 1), None for 0.01 to 0.99.

    Returns:
        `backbone` ("all" and "none": acting on every image, and on none), `kind, x` (threshold), `y` (net benefit),
        `low, high, unit`.

    Raises:
        SettingsError, DataError: For thresholds out of range; for more than two classes.
    """
    given = np.arange(1, 100) / 100 if thresholds is None else np.atleast_1d(np.asarray(thresholds))
    grid = given.astype(np.float64) if given.dtype.kind in "iuf" else np.zeros(1)
    if not ((grid > 0) & (grid < 1)).all() or grid.ndim != 1 or not grid.size:
        raise SettingsError(f"thresholds are probabilities between 0 and 1. Received: {thresholds!r}.")
    check_settings(level)
    models = models_of(validated_predictions(frame), side)
    if models[0].runs[0].probabilities.shape[1] != 2:
        raise DataError("The net benefit is that of acting on one of two classes: the predictions are of more.")
    all_cases = replace(
        models[0], name="all", kind="baseline",
        runs=tuple(replace(run, probabilities=np.tile([0.0, 1.0], (len(run.labels), 1))) for run in models[0].runs[:1]),
    )  # fmt: skip
    curve = partial(_net_benefit, thresholds=grid)
    tables = [_with_band(model, grid, level, curve, _NET_BENEFIT) for model in (*models, all_cases)]
    none = tables[-1].assign(backbone="none", y=0.0, low=0.0, high=0.0)
    return pd.concat([*tables, none], ignore_index=True)


def _net_benefit(run: Run, weights: Floats, thresholds: Floats) -> Floats:
    acted = run.probabilities[:, 1, None] >= thresholds
    gain = acted * np.where(run.labels[:, None] == 1, 1.0, -thresholds / (1 - thresholds))
    sums = np.zeros((weights.shape[1], len(thresholds)))
    np.add.at(sums, run.unit, gain)
    with np.errstate(invalid="ignore"):
        return np.asarray(weights @ sums / (weights @ np.bincount(run.unit, minlength=weights.shape[1]))[:, None])


def _with_band(
    model: Model, x: Floats, level: float, curve: Callable[[Run, Floats], Floats], what: Metric,
    images: Callable[[Run, int], Ints] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return a curve of a model; `curve` returns a row per weighting of the units and a column per place.

    `images` returns how many images of each unit each place is about (units, places); None if all are.
    """
    resampling = resampling_of([model])
    blocks, units = resampling.in_blocks(model), len(resampling.stratum)
    runs = np.array([curve(run, resampling.weights) for run in blocks])
    # A mean is over the seeds that have a value at a place; where none has, there is a gap.
    known = ~np.isnan(runs)
    with np.errstate(invalid="ignore"):
        found = np.where(known, runs, 0.0).sum(axis=0) / known.sum(axis=0)
    ends = np.full((len(x), 2), np.nan)
    about = None if images is None else np.sum([images(run, units) for run in blocks], axis=0)
    for place in np.flatnonzero(~np.isnan(found).any(axis=0)):
        here = resampling if about is None else replace(resampling, images=about[:, place, None].astype(float))
        fewest = min(filter(None, resampling.groups_per_class)) if about is None else np.count_nonzero(about[:, place])
        if fewest >= FEWEST_GROUPS:
            low, high, spread = interval(what, float(found[0, place]), found[1:, place], here, level)
            if what.scale == "share" or spread.variance > 0:  # otherwise the variance is unknown
                ends[place] = low, high
    low, high = np.clip(ends, what.lowest, what.highest).T
    facts = {"backbone": model.name, "kind": model.kind}
    return pd.DataFrame({**facts, "x": x, "y": found[0], "low": low, "high": high, "unit": model.unit})


def _ranked_curves(frame: pd.DataFrame, side: str, level: float, points: int, at: _Interpolation) -> pd.DataFrame:
    grid = np.linspace(0, 1, points)
    check_settings(level)
    models = models_of(validated_predictions(frame), side)
    curve = partial(_ranked_curve, grid=grid, at=at)
    return pd.concat([_with_band(model, grid, level, curve, _ON_CURVE) for model in models], ignore_index=True)


def _ranked_curve(run: Run, weights: Floats, grid: Floats, at: _Interpolation) -> Floats:
    """Return the curve under each row of weights: a weighted mean over folds, of several classes against the rest."""
    curves, classes = [], run.probabilities.shape[1]
    for positive in [1] if classes == 2 else range(classes):
        total, shares, paired = np.zeros((len(weights), len(grid))), *np.zeros((2, len(weights)))
        for part, above, below in ranked_folds(run, weights, positive):
            for row, (positives, negatives) in enumerate(zip(above, below, strict=True), start=part.start):
                share = positives[-1] * (negatives[-1] if at is _roc else 1.0)
                if share > 0:
                    total[row] += share * at(positives, negatives, grid)
                    shares[row] += share
                paired[row] += positives[-1] * negatives[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            curves.append(np.where(paired[:, None] > 0, total / shares[:, None], np.nan))
    return np.asarray(np.mean(curves, axis=0))


def _roc(above: Floats, below: Floats, grid: Floats) -> Floats:
    """Return the sensitivity at each false positive rate: the highest, as np.interp takes the last of equal places."""
    return np.interp(grid, np.r_[0.0, below / below[-1]], np.r_[0.0, above / above[-1]])


def _precision(above: Floats, below: Floats, grid: Floats) -> Floats:
    """Return the precision at each recall; at recall 0, that of the first threshold that predicts anything."""
    reached = np.minimum(np.searchsorted(above / above[-1], grid - 1e-12), len(above) - 1)
    some = np.maximum(reached, np.argmax(above + below > 0))
    return np.asarray(above[some] / (above[some] + below[some]))


def _events(run: Run, bins: int) -> tuple[Floats, NDArray[np.bool_], Ints]:
    said, happened = run.probabilities.max(axis=1), run.predicted == run.labels
    if run.probabilities.shape[1] == 2:
        said, happened = run.probabilities[:, 1], run.labels == 1
    return said, happened, np.clip(np.ceil(said * bins).astype(np.int64) - 1, 0, bins - 1)


def _shares(run: Run, weights: Floats, bins: int) -> Floats:
    _, happened, place = _events(run, bins)
    shape, count = (weights.shape[1], bins), _counts(run, weights.shape[1], bins)
    events = np.bincount(run.unit * bins + place, happened, count.size).reshape(shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ events) / (weights @ count))


def _counts(run: Run, units: int, bins: int) -> Ints:
    place = run.unit * bins + _events(run, bins)[2]
    return np.bincount(place, minlength=units * bins).reshape(units, bins)
