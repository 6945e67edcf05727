"""AUROC and average precision of weighted predictions, from one sorting. Pairs are counted within a fold only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from leukemia_dl.evaluation.predictions import Floats, Run

__all__ = ["ranked_folds", "ranking_values"]

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


def ranked_folds(run: Run, weights: Floats, positive: int) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield which weightings, and their cumulative weights of positive and of negative images along a fold's ranking.

    Images with equal scores are one step.
    """
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


def _one_against_rest(run: Run, weights: Floats, positive: int) -> tuple[Floats, Floats]:
    """Return AUROC and average precision of one class under each row of weights."""
    wins, pairs, precision, count = np.zeros((4, len(weights)))
    for part, above, below in ranked_folds(run, weights, positive):
        positives, negatives = (np.diff(steps, axis=1, prepend=0.0) for steps in (above, below))
        # A negative loses to the positives above it, and to half of those with its own score.
        wins[part] += (negatives * (above - 0.5 * positives)).sum(axis=1)
        pairs[part] += above[:, -1] * below[:, -1]
        so_far = above + below
        found = np.divide(positives * above, so_far, out=np.zeros_like(above), where=so_far > 0)
        precision[part] += found.sum(axis=1)
        count[part] += above[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / pairs, np.where(pairs > 0, precision / count, np.nan)
