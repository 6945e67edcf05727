"""Every metric as a function of weights: one row of weights gives a value, a row per left-out group an interval.

The value and its interval are thus of one definition. The tests compare with scikit-learn; calling it once per left-out
group would take a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from leukemia_dl.errors import SettingsError
from leukemia_dl.evaluation.calibration import calibration_fits
from leukemia_dl.evaluation.predictions import Floats, Ints, Run, as_arrays
from leukemia_dl.evaluation.ranking import ranking_values

__all__ = ["ECE_BINS", "LOSS_CLIP", "METRICS", "Metric", "metric", "score", "values", "why_undefined"]

# Probabilities are clipped to [LOSS_CLIP, 1] in the loss, so that one confident error costs at most 34.5 nats.
LOSS_CLIP = 1e-15
ECE_BINS = 15
_RANKING, _CALIBRATION = ("auroc", "auprc"), ("calibration_slope", "calibration_intercept")


@dataclass(frozen=True)
class Metric:
    """The properties of a metric that its interval depends on.

    An interval is symmetric on `scale`, "logit" between the bounds `lowest` and `highest`. `classes` is the only class
    whose images the metric depends on, in a binary task; None for all. `better` is "" where neither high nor low is.
    """

    name: str
    scale: Literal["logit", "log", "linear"] = "logit"
    better: Literal["high", "low", ""] = "high"
    classes: int | None = None
    lowest: float = 0.0
    highest: float = 1.0


# accuracy and loss come first, everywhere.
_ALL = (
    Metric("accuracy"),
    Metric("loss", "log", "low"),
    Metric("balanced_accuracy"),
    Metric("balanced_loss", "log", "low"),
    Metric("weighted_f1"),
    Metric("macro_f1"),
    Metric("auroc"),
    Metric("auprc"),
    Metric("sensitivity", classes=1),
    Metric("specificity", classes=0),
    Metric("ppv"),
    Metric("npv"),
    Metric("prevalence", better=""),
    Metric("mcc", lowest=-1.0),
    Metric("brier", "log", "low"),
    Metric("ece", "log", "low"),
    Metric("calibration_slope", "linear", ""),
    Metric("calibration_intercept", "linear", ""),
)
METRICS = tuple(metric.name for metric in _ALL)
"""Names of all metrics, in the order of columns; `score` defines them."""


def metric(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        SettingsError: If there is none.
    """
    found = {metric.name: metric for metric in _ALL}.get(name) if isinstance(name, str) else None
    if found is None:
        raise SettingsError(f"There is no metric {name!r}. Known: {', '.join(METRICS)}.")
    return found


def score(labels: Ints, probabilities: Floats) -> dict[str, float]:
    """Return every metric of `METRICS`; NaN where undefined, never 0.

    The predicted class is the most probable one (the first of equals). Class 1 is the positive one of two.

    - `accuracy`: Share of correct predictions.
    - `loss`: Mean cross-entropy in nats, unweighted, uncalibrated; probabilities are clipped to at least 1e-15.
    - `balanced_accuracy`, `balanced_loss`: Mean over the classes that occur of their recalls, and of their losses.
    - `weighted_f1`, `macro_f1`: Mean F1 of the classes, weighted by class size (the metric of the C-NMC challenge), and
      of the classes that occur or are predicted.
    - `auroc`, `auprc`: Area under the ROC curve, and average precision; with more than two classes the means over
      one-against-the-rest. NaN when a class does not occur.
    - `sensitivity`, `specificity`: Recall of class 1 and of class 0. `ppv`, `npv`: Share of correct predictions among
      those of class 1 and of class 0; they hold at the `prevalence`, the share of class 1. NaN with more classes.
    - `mcc`: Matthews' correlation coefficient; with more classes Gorodkin's R_K (2004).
    - `brier`: Mean squared error of the probability of class 1 (Brier 1950, halved); with more classes their sum.
    - `ece`: Expected calibration error of the predicted class's probability in 15 equal bins (Guo et al. 2017).
    - `calibration_slope`, `calibration_intercept`: Of a logistic regression of the label on the predicted log-odds; the
      intercept with the slope held at 1, "calibration in the large" (Cox 1958; Van Calster et al. 2019). 1 and 0 are
      right. NaN with more than two classes, and where the classes are separated perfectly.

    Args:
        labels: True class indices (n,).
        probabilities: (n, classes), rows that sum to 1.

    Raises:
        DataError: If shapes, labels or probabilities are wrong.

    Examples:
        >>> import numpy as np
        >>> import leukemia_dl as ldl
        >>> found = ldl.score(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]]))
        >>> found["accuracy"], round(found["loss"], 3), found["auroc"], found["calibration_slope"]
        (0.75, 0.4, 1.0, nan)
    """
    labels, probabilities = as_arrays(labels, probabilities)
    run = replace(Run.of(labels, probabilities), unit=np.zeros(len(labels), np.int64))
    return {name: float(value[0]) for name, value in values(run, np.ones((1, 1))).items()}


def values(run: Run, weights: Floats, names: Sequence[str] = METRICS) -> dict[str, Floats]:
    """Return metrics (r,) of weighted predictions; weights (r, units) say how often each unit counts."""
    found: dict[str, Floats] = {}
    if set(names) - {*_RANKING, *_CALIBRATION}:
        found |= _of_sums(run, weights)
    if set(names) & set(_RANKING):
        found |= ranking_values(run, weights)
    if set(names) & set(_CALIBRATION):
        found |= calibration_fits(run, weights)
    return {name: found[name] for name in METRICS if name in names}


def _of_sums(run: Run, weights: Floats) -> dict[str, Floats]:
    """Return the metrics that are functions of sums over predictions: those are taken per unit, once."""
    n, k = run.probabilities.shape
    rows = np.arange(n)
    own = np.maximum(run.probabilities[rows, run.labels], LOSS_CLIP)
    squared = (run.probabilities**2).sum(axis=1) - 2 * run.probabilities[rows, run.labels] + 1
    confidence = run.probabilities[rows, run.predicted]
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    units = weights.shape[1]

    def per_unit(column: Ints, columns: int, value: Floats | None = None) -> Floats:
        sums = np.bincount(run.unit * columns + column, value, units * columns)
        return sums.reshape(units, columns).astype(np.float64)

    right = run.predicted == run.labels
    known, called = per_unit(run.labels, k), per_unit(run.predicted, k)
    caught = per_unit(run.labels, k, right.astype(np.float64))
    losses = per_unit(run.labels, k, -np.log(own))
    brier = per_unit(np.zeros(n, np.int64), 1, squared / (2 if k == 2 else 1))
    gaps = per_unit(bins, ECE_BINS, confidence - right)
    with np.errstate(invalid="ignore", divide="ignore"):
        loss, true, said, hits = (weights @ sums for sums in (losses, known, called, caught))
        total = true.sum(axis=1)
        recalls, precisions = hits / true, hits / said
        f1 = 2 * hits / (true + said)
        both = k == 2
        nothing = np.full(len(weights), np.nan)
        return {
            "accuracy": hits.sum(axis=1) / total,
            "loss": loss.sum(axis=1) / total,
            "balanced_accuracy": _mean_of_defined(recalls),
            "balanced_loss": _mean_of_defined(loss / true),
            "weighted_f1": np.where(true > 0, f1 * true, 0.0).sum(axis=1) / total,
            "macro_f1": _mean_of_defined(f1),
            "sensitivity": recalls[:, 1] if both else nothing,
            "specificity": recalls[:, 0] if both else nothing,
            "ppv": precisions[:, 1] if both else nothing,
            "npv": precisions[:, 0] if both else nothing,
            "prevalence": true[:, 1] / total if both else nothing,
            "mcc": _matthews(hits.sum(axis=1), true, said, total),
            "brier": (weights @ brier)[:, 0] / total,
            "ece": np.abs(weights @ gaps).sum(axis=1) / total,
        }


def _matthews(hits: Floats, true: Floats, said: Floats, total: Floats) -> Floats:
    """Return Matthews' correlation (Gorodkin 2004, equation 8); NaN where all images are of one class, true or said."""
    spread_true = total**2 - (true**2).sum(axis=1)
    spread_said = total**2 - (said**2).sum(axis=1)
    tiny = 1e-9 * total**2
    defined = (spread_true > tiny) & (spread_said > tiny)
    found = (hits * total - (true * said).sum(axis=1)) / np.sqrt(spread_true * spread_said)
    return np.where(defined, found, np.nan)


def _mean_of_defined(table: Floats) -> Floats:
    """Return the mean of each row's defined values."""
    return np.asarray(np.nansum(table, axis=1) / (~np.isnan(table)).sum(axis=1))


def why_undefined(name: str, run: Run, class_names: Sequence[str]) -> str:
    """Return why a metric of a run is NaN."""
    k = run.probabilities.shape[1]
    if k > 2 and name in ("sensitivity", "specificity", "ppv", "npv", "prevalence", *_CALIBRATION):
        return "defined for two classes; with more see balanced_accuracy, macro_f1 and ece"
    missing = [class_names[code] for code in range(k) if not (run.labels == code).any()]
    if name in ("sensitivity", "specificity"):
        return f"no image of class {class_names[1 if name == 'sensitivity' else 0]}"
    if name in ("ppv", "npv"):
        return f"no image is predicted as {class_names[1 if name == 'ppv' else 0]}"
    if missing:
        return f"no image of class {', '.join(missing)}"
    if name == "mcc":
        return "every image is predicted as one class"
    return "the probabilities are constant, or separate the classes perfectly"
