"""AUROC and average precision of weighted predictions, from one sorting. Pairs are counted within a fold only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.evaluation.predictions import Floats, Ints, Run

__all__ = ["ranking_values"]

# Weighted predictions that are held at once: 16 MB for each of a few arrays.
_AT_ONCE = 2_000_000


def ranking_values(run: Run, weights: Floats) -> dict[str, Floats]:
    """Return `auroc` and `auprc` under each row of weights.

    Each fold has its own model, whose scores need not be comparable with those of another: a positive image is compared
    with the negative ones of its fold. The folds' AUROCs are thus weighted by their numbers of pairs, the average
    precisions by their numbers of positives. With more than two classes: means over one-against-the-rest. NaN where
    there is no pair of some class.
    """
    classes = run.probabilities.shape[1]
    per_class = [_one_against_rest(run, weights, code) for code in ([1] if classes == 2 else range(classes))]
    auroc, auprc = np.mean(per_class, axis=0)
    return {"auroc": auroc, "auprc": auprc}


def _one_against_rest(run: Run, weights: Floats, positive: int) -> tuple[Floats, Floats]:
    """Return AUROC and average precision of one class under each row of weights."""
    wins, pairs, precision, count = (np.zeros(len(weights)) for _ in range(4))
    for fold in np.unique(run.fold):
        rows = np.flatnonzero(run.fold == fold)
        scores = run.probabilities[rows, positive]
        order = np.argsort(-scores, kind="stable")
        rows, scores = rows[order], scores[order]
        # Equal scores are one step of the curve.
        starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
        step = max(_AT_ONCE // len(rows), 1)
        for first in range(0, len(weights), step):
            part = slice(first, first + step)
            found = _curve(weights[part][:, run.unit[rows]], run.labels[rows] == positive, starts)
            for total, value in zip((wins, pairs, precision, count), found, strict=True):
                total[part] += value
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / pairs, np.where(pairs > 0, precision / count, np.nan)


def _curve(weights: Floats, is_positive: NDArray[np.bool_], starts: Ints) -> tuple[Floats, ...]:
    """Return pairs won, pairs, the sum of precisions over positives, and positives, per row of weights (r, n)."""
    positive, negative = np.where(is_positive, weights, 0.0), np.where(is_positive, 0.0, weights)
    if len(starts) < len(is_positive):
        positive, negative = (np.add.reduceat(part, starts, axis=1) for part in (positive, negative))
    above = np.cumsum(positive, axis=1)
    so_far = above + np.cumsum(negative, axis=1)
    # A negative loses to the positives above it, and to half of those with its own score.
    wins = (negative * (above - 0.5 * positive)).sum(axis=1)
    precision = np.divide(positive * above, so_far, out=np.zeros_like(above), where=so_far > 0).sum(axis=1)
    positives, negatives = above[:, -1], negative.sum(axis=1)
    return wins, positives * negatives, precision, positives
