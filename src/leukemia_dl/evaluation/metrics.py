"""Every metric as a function of weights: one row of weights gives a value, a row per left-out group an interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from leukemia_dl.checks import choice
from leukemia_dl.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

CLIP = 1e-15  # of probabilities in logarithms, so that one confident error costs at most 34.5 nats
_ECE_BINS, _ROUNDING = 15, 1e-12
_SUM_TOLERANCE = 1e-2 + 1e-9  # for probabilities that another program rounded to two digits
_AT_ONCE = 2_000_000  # weighted predictions in a ranking: 16 MB for each of a few arrays
_RANKING, _CALIBRATION = ("auroc", "auprc"), ("calibration_slope", "calibration_intercept")
_OF_TWO_CLASSES = ("sensitivity", "specificity", "ppv", "npv", "prevalence", "f1", "lr_positive", "lr_negative")


@dataclass(frozen=True)
class Metric:
    """The properties of a metric that its interval depends on.

    The interval is computed on `scale`; "share" lies between `lowest` and `highest`. `classes` is the only class whose
    images the metric depends on, of two classes; None for both. `better` is "" where neither high nor low is better.
    """

    name: str
    scale: Literal["share", "log", "linear"] = "share"
    better: Literal["high", "low", ""] = "high"
    classes: int | None = None
    lowest: float = 0.0
    highest: float = 1.0


# accuracy and loss come first, everywhere.
_ALL = (
    Metric("accuracy"), Metric("loss", "log", "low"),
    Metric("balanced_accuracy"), Metric("balanced_loss", "log", "low"), Metric("weighted_f1"), Metric("macro_f1"),
    Metric("auroc"), Metric("auprc"),
    Metric("sensitivity", classes=1), Metric("specificity", classes=0), Metric("ppv"), Metric("npv"),
    Metric("prevalence", better=""), Metric("mcc", lowest=-1.0),
    Metric("brier", better="low"), Metric("ece", "log", "low"),
    Metric("calibration_slope", "linear", ""), Metric("calibration_intercept", "linear", ""),
)  # fmt: skip
METRICS = tuple(metric.name for metric in _ALL)
"""Names of all metrics, in the order of columns; `score` defines them."""
RANKED = tuple(metric.name for metric in _ALL if metric.better)  # of which one end is better
# Further ones of `evaluate`, which `score` cannot give or that are seldom asked for.
_FURTHER = (
    Metric("patient_accuracy"), Metric("f1"), Metric("lr_positive", "log"), Metric("lr_negative", "log", "low"),
)  # fmt: skip
FURTHER_METRICS = tuple(metric.name for metric in _FURTHER)


@dataclass(frozen=True, eq=False)
class Run:
    """Predictions of one backbone and seed over all its folds, each array of n rows.

    `predicted` is the most probable class (the first of equals), `unit` the group or image that is left out at a time.
    """

    labels: Ints
    probabilities: Floats
    predicted: Ints
    unit: Ints
    fold: Ints
    samples: NDArray[np.object_]

    @classmethod
    def of(cls, labels: Ints, probabilities: Floats) -> Run:
        """Return a run of one fold, each prediction its own unit."""
        rows = np.arange(len(labels))
        return cls(labels, probabilities, probabilities.argmax(axis=1), rows, np.zeros_like(rows), rows.astype(object))

    def at(self, rows: NDArray[Any]) -> Run:
        """Return some of the predictions."""
        return Run(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def metric(name: str) -> Metric:
    """Return a metric by its name; SettingsError if there is none."""
    return next(one for one in (*_ALL, *_FURTHER) if one.name == choice("metric", name, [*METRICS, *FURTHER_METRICS]))


def as_arrays(labels: Any, probabilities: Any) -> tuple[Ints, Floats]:
    """Return labels (n,) and probabilities (n, classes) as int64 and float64; DataError if they are none."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or labels.shape != probabilities.shape[:1]:
        wanted = "labels (n,) and probabilities (n, classes) with at least two classes"
        raise DataError(f"Expected {wanted}. Received: {labels.shape} and {probabilities.shape}.")
    if not len(labels):
        raise DataError("There are no predictions to score: the test side is empty.")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        found = f"{labels.dtype} from {labels.min()} to {labels.max()}; samples without a label cannot be scored"
        raise DataError(f"Labels must be class indices from 0 to {probabilities.shape[1] - 1}. Received: {found}.")
    right = np.isfinite(probabilities).all(axis=1) & (probabilities >= 0).all(axis=1)
    right[right] = np.abs(probabilities[right].sum(axis=1) - 1) <= _SUM_TOLERANCE
    if not right.all():
        rows = f"{(~right).sum():,} rows are not so. Received, the first of them: {probabilities[~right][0].tolist()}"
        raise DataError(f"Probabilities must be finite, not negative, and sum to 1 in each row (within 0.01). {rows}.")
    return labels.astype(np.int64), probabilities


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
    - `ece`: Expected calibration error of the predicted class's probability in 15 equal bins (Guo et al. 2017). It is
      biased upwards, the more the fewer the images: above 0 also where probabilities are right.
    - `calibration_slope`, `calibration_intercept`: Of a logistic regression of the label on the predicted log-odds; the
      intercept with the slope held at 1, "calibration in the large" (Cox 1958; Van Calster et al. 2019). 1 and 0 are
      right. NaN with more than two classes, and where the classes are separated perfectly.

    `labels` (n,) are true class indices, `probabilities` (n, classes) rows that sum to 1.

    Examples:
        >>> import numpy as np
        >>> import leukemia_dl as ldl
        >>> found = ldl.score(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]]))
        >>> found["accuracy"], round(found["loss"], 3), found["auroc"], found["calibration_slope"]
        (0.75, 0.4, 1.0, nan)
    """
    run = replace(Run.of(*as_arrays(labels, probabilities)), unit=np.zeros(len(labels), np.int64))
    return {name: float(value[0]) for name, value in values(run, np.ones((1, 1))).items()}


def values(
    run: Run, weights: Floats, names: Sequence[str] = METRICS, prevalence: float | None = None
) -> dict[str, Floats]:
    """Return metrics (r,) of weighted predictions; weights (r, units) say how often each unit counts.

    With a `prevalence` of the positive class, `ppv` and `npv` are those at it (Bayes' theorem).
    """
    found = _sums(run, weights) if set(names) - {*_RANKING, *_CALIBRATION} else {}
    found |= _ranking(run, weights) if set(names) & {*_RANKING} else {}
    found |= _calibration(run, weights) if set(names) & {*_CALIBRATION} else {}
    if prevalence is not None and {"ppv", "npv"} & set(names):
        hit, miss = found["sensitivity"] * prevalence, (1 - found["sensitivity"]) * prevalence
        right, wrong = found["specificity"] * (1 - prevalence), (1 - found["specificity"]) * (1 - prevalence)
        with np.errstate(invalid="ignore"):
            found |= {"ppv": hit / (hit + wrong), "npv": right / (right + miss)}
    return {name: found[name] for name in (*METRICS, *FURTHER_METRICS) if name in names}


def why_undefined(name: str, run: Run, class_names: Sequence[str]) -> str:
    """Return why a metric of a run is NaN."""
    if len(class_names) > 2 and name in (*_OF_TWO_CLASSES, *_CALIBRATION):
        return "defined for two classes; with more see balanced_accuracy, macro_f1 and ece"
    if name in ("sensitivity", "specificity"):
        return f"no image of class {class_names[name == 'sensitivity']}"
    if name in ("ppv", "npv"):
        return f"no image is predicted as {class_names[name == 'ppv']}"
    if name in ("lr_positive", "lr_negative") and len(set(run.labels)) > 1:
        return f"no image of class {class_names[0]} is predicted {'wrongly' if name == 'lr_positive' else 'rightly'}"
    if missing := [class_names[code] for code in range(len(class_names)) if not (run.labels == code).any()]:
        return f"no image of class {', '.join(missing)}"
    if name == "mcc":
        return "every image is predicted as one class"
    return "the probabilities are constant, or separate the classes perfectly"


def _sums(run: Run, weights: Floats) -> dict[str, Floats]:
    n, k = run.probabilities.shape
    rows, units = np.arange(n), weights.shape[1]
    own, confidence = run.probabilities[rows, run.labels], run.probabilities[rows, run.predicted]
    squared = (run.probabilities**2).sum(axis=1) - 2 * own + 1
    bins = np.clip(np.ceil(confidence * _ECE_BINS).astype(np.int64) - 1, 0, _ECE_BINS - 1)
    right = run.predicted == run.labels

    def summed(column: Ints, columns: int, value: Floats | None = None) -> Floats:
        sums = np.bincount(run.unit * columns + column, value, units * columns)
        return np.asarray(weights @ sums.reshape(units, columns).astype(np.float64))

    true, said = summed(run.labels, k), summed(run.predicted, k)
    hits = summed(run.labels, k, right.astype(np.float64))
    loss = summed(run.labels, k, -np.log(np.maximum(own, CLIP)))
    of_unit, counts = (np.bincount(run.unit, value, units) for value in (right, None))
    present = np.sign(weights)  # each unit counts once
    brier = summed(np.zeros(n, np.int64), 1, squared / (2 if k == 2 else 1))[:, 0]
    gaps = summed(bins, _ECE_BINS, confidence - right)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = true.sum(axis=1)
        recalls, precisions = hits / true, hits / said
        f1 = 2 * hits / (true + said)
        found = {
            "accuracy": hits.sum(axis=1) / total, "loss": loss.sum(axis=1) / total,
            "balanced_accuracy": _mean_of_defined(recalls), "balanced_loss": _mean_of_defined(loss / true),
            "weighted_f1": np.where(true > 0, f1 * true, 0.0).sum(axis=1) / total,
            "macro_f1": _mean_of_defined(f1),
            "sensitivity": recalls[:, 1], "specificity": recalls[:, 0], "ppv": precisions[:, 1],
            "npv": precisions[:, 0], "f1": f1[:, 1], "prevalence": true[:, 1] / total,
            "mcc": _matthews(hits.sum(axis=1), true, said, total),
            "brier": brier / total, "ece": np.abs(gaps).sum(axis=1) / total,
            "patient_accuracy": present @ (of_unit / np.maximum(counts, 1)) / (present @ np.sign(counts)),
            "lr_positive": np.where(recalls[:, 0] < 1, recalls[:, 1] / (1 - recalls[:, 0]), np.nan),
            "lr_negative": np.where(recalls[:, 0] > 0, (1 - recalls[:, 1]) / recalls[:, 0], np.nan),
        }  # fmt: skip
    return found if k == 2 else found | dict.fromkeys(_OF_TWO_CLASSES, np.full(len(weights), np.nan))


def _matthews(hits: Floats, true: Floats, said: Floats, total: Floats) -> Floats:
    """Return Matthews' correlation (Gorodkin 2004, equation 8); NaN where all images are of one class, true or said."""
    spread_true, spread_said = (total**2 - (counts**2).sum(axis=1) for counts in (true, said))
    defined = np.minimum(spread_true, spread_said) > 1e-9 * total**2
    found = (hits * total - (true * said).sum(axis=1)) / np.sqrt(spread_true * spread_said)
    return np.where(defined, found, np.nan)


def _mean_of_defined(table: Floats) -> Floats:
    return np.asarray(np.nansum(table, axis=1) / (~np.isnan(table)).sum(axis=1))


def ranked_folds(run: Run, weights: Floats, positive: int) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield which weightings, and their cumulative weights of positives and negatives at each score of a fold."""
    for fold in np.unique(run.fold):
        rows = np.flatnonzero(run.fold == fold)
        rows = rows[np.argsort(-run.probabilities[rows, positive], kind="stable")]
        scores, hit = run.probabilities[rows, positive], run.labels[rows] == positive
        ends = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
        step = max(_AT_ONCE // len(rows), 1)
        for first in range(0, len(weights), step):
            part = slice(first, first + step)
            weight = weights[part][:, run.unit[rows]]
            above, below = (np.cumsum(np.where(own, weight, 0.0), axis=1)[:, ends] for own in (hit, ~hit))
            yield part, above, below


def _ranking(run: Run, weights: Floats) -> dict[str, Floats]:
    """Return `auroc` and `auprc`, with more than two classes means over one against the rest.

    Scores of two folds, which have two models, need not be comparable: images are compared within their fold. AUROCs
    are weighted by their numbers of pairs, average precisions by their numbers of positives.
    """
    areas = []
    classes = run.probabilities.shape[1]
    for positive in [1] if classes == 2 else range(classes):
        wins, pairs, precision, count = np.zeros((4, len(weights)))
        for part, above, below in ranked_folds(run, weights, positive):
            positives, negatives = (np.diff(steps, axis=1, prepend=0.0) for steps in (above, below))
            # A negative loses to the positives above it, and to half of those with its own score.
            wins[part] += (negatives * (above - 0.5 * positives)).sum(axis=1)
            pairs[part] += above[:, -1] * below[:, -1]
            found = np.divide(positives * above, above + below, out=np.zeros_like(above), where=above + below > 0)
            precision[part] += found.sum(axis=1)
            count[part] += above[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            areas.append((wins / pairs, np.where(pairs > 0, precision / count, np.nan)))
    return dict(zip(_RANKING, np.mean(areas, axis=0), strict=True))


def _calibration(run: Run, weights: Floats) -> dict[str, Floats]:
    """Return the maximum-likelihood logistic regressions of the label on the log-odds; NaN without a finite maximum."""
    slopes, intercepts = found = np.full((2, len(weights)), np.nan)
    clipped = np.clip(run.probabilities, CLIP, 1.0)
    odds = np.log(clipped[:, 1]) - np.log(clipped[:, 0])
    spread = float(odds.std()) or 1.0
    line = np.c_[np.ones(len(odds)), (odds - odds.mean()) / spread]
    on_line, on_constant = np.zeros(2), np.zeros(1)
    for row, per_unit in enumerate(weights if run.probabilities.shape[1] == 2 else ()):
        weight = per_unit[run.unit]
        negative, positive = (odds[(weight > 0) & (run.labels == code)] for code in (0, 1))
        if not len(negative) or not len(positive):
            continue
        # Each fit starts from the one before, since weights without one group are nearly the same.
        on_constant = _logistic(line[:, :1], odds, run.labels, weight, on_constant)
        intercepts[row] = on_constant[0]
        # Where the classes do not overlap the likelihood rises for ever.
        if negative.max() > positive.min() and positive.max() > negative.min():
            on_line = _logistic(line, np.zeros(len(odds)), run.labels, weight, on_line)
            slopes[row] = on_line[1] / spread
    return dict(zip(_CALIBRATION, found, strict=True))


def _logistic(design: Floats, offset: Floats, label: Ints, weight: Floats, start: Floats) -> Floats:
    """Return the coefficients of label ~ sigmoid(offset + design @ coefficients) by Newton's method; NaN if none."""

    def loss(at: Floats) -> float:
        return float(weight @ np.logaddexp(0, (1 - 2 * label) * (design @ at + offset)))

    at = np.nan_to_num(start)
    least = loss(at)
    for _ in range(100):
        p = expit(design @ at + offset)
        gradient = (weight * (label - p)) @ design
        # Where only rounding is left of the gradient, the curvature may be as small, and the step large.
        gradient[np.abs(gradient) < _ROUNDING * weight.sum()] = 0.0
        curvature = (design.T * (weight * p * (1 - p))) @ design
        # Where all probabilities are 0 or 1 there is no curvature: a trace of it keeps the step finite.
        curvature += _ROUNDING * (1 + np.trace(curvature)) * np.eye(len(at))
        step = np.clip(np.linalg.solve(curvature, gradient), -10.0, 10.0)
        length = np.abs(step).max()
        while (tried := loss(at + step)) > least * (1 + _ROUNDING) and np.abs(step).max() > 1e-15:
            step = step / 2
        at, least = at + step, tried
        if length < 1e-8:
            return np.asarray(at)
    return np.full(len(at), np.nan)
