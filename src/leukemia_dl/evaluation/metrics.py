"""Metrics of one set of predictions, one float each, by scikit-learn. Undefined cases are NaN, never 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.errors import DataError

__all__ = ["LOSS_CLIP", "METRICS", "score"]

# accuracy and loss come first, everywhere.
METRICS = ("accuracy", "loss", "balanced_accuracy", "weighted_f1", "macro_f1", "auroc", "sensitivity", "specificity")
# Probabilities are clipped to [LOSS_CLIP, 1] in the loss, so that one confident error costs at most 34.5 nats.
LOSS_CLIP = 1e-15


def score(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, float]:
    """Return every metric of `METRICS`.

    - `loss`: mean cross-entropy in nats, unweighted, uncalibrated.
    - `balanced_accuracy`: mean of the recalls of the classes that occur.
    - `weighted_f1`: mean F1 weighted by class size, the metric of the C-NMC challenge.
    - `auroc`: area under the ROC curve; with more than two classes the mean over one-against-the-rest. NaN when a
      class does not occur.
    - `sensitivity`, `specificity`: recall of class 1 and of class 0; NaN with more than two classes, or when that
      class does not occur.

    Args:
        labels: True class indices (n,).
        probabilities: (n, classes), rows that sum to 1.

    Raises:
        DataError: If shapes, labels or probabilities are not as said.
    """
    from sklearn import metrics

    _check(labels, probabilities)
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    names = np.arange(classes)
    recalls = np.asarray(metrics.recall_score(labels, predicted, labels=names, average=None, zero_division=np.nan))
    chosen = np.clip(probabilities[np.arange(len(labels)), labels], LOSS_CLIP, 1.0)
    f1 = {
        average: float(metrics.f1_score(labels, predicted, labels=names, average=average, zero_division=0.0))
        for average in ("weighted", "macro")
    }
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "loss": float(-np.log(chosen).mean()),
        "balanced_accuracy": float(np.nanmean(recalls)),
        "weighted_f1": f1["weighted"],
        "macro_f1": f1["macro"],
        "auroc": _auroc(labels, probabilities),
        "sensitivity": float(recalls[1]) if classes == 2 else float("nan"),
        "specificity": float(recalls[0]) if classes == 2 else float("nan"),
    }


def _auroc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    if len(np.unique(labels)) < classes:
        return float("nan")
    if classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in range(classes)]))


def _check(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or labels.shape != probabilities.shape[:1]:
        raise DataError(
            "Expected labels (n,) and probabilities (n, classes) with at least two classes. "
            f"Received: {labels.shape} and {probabilities.shape}."
        )
    if not len(labels):
        raise DataError("There are no predictions to score: the test side is empty.")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise DataError(
            f"Labels must be class indices from 0 to {probabilities.shape[1] - 1}. Received: from {labels.min()} to "
            f"{labels.max()}. Samples without a label, such as the final test set of C-NMC 2019, cannot be scored."
        )
    finite = np.isfinite(probabilities).all() and (probabilities >= 0).all()
    if not finite or not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-6):
        raise DataError("Probabilities must be finite, not negative, and sum to 1 in each row.")
