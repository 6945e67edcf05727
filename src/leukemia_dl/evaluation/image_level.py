"""Tests that take images as independent: valid only where each patient has one image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from leukemia_dl.evaluation.predictions import Floats, Ints

__all__ = ["delong_test", "delong_variance", "mcnemar_test"]


def mcnemar_test(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the two-sided p of McNemar's exact test (1947), from where two predictors are right (n,)."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if not only_first + only_second:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def delong_variance(labels: Ints, first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Return the AUROCs (2,) of two scores (n,) and their covariance (2, 2), by DeLong et al. 1988."""
    positive = labels == 1
    m, n = int(positive.sum()), int((~positive).sum())
    of_positives, of_negatives = np.empty((2, m)), np.empty((2, n))
    for row, scores in enumerate((first, second)):
        ranks = stats.rankdata(scores)
        of_positives[row] = (ranks[positive] - stats.rankdata(scores[positive])) / n
        of_negatives[row] = 1 - (ranks[~positive] - stats.rankdata(scores[~positive])) / m
    return of_positives.mean(axis=1), np.cov(of_positives) / m + np.cov(of_negatives) / n


def delong_test(labels: Ints, first: Floats, second: Floats) -> float:
    """Return the two-sided p of DeLong's test that two scores have the same AUROC."""
    areas, covariance = delong_variance(labels, first, second)
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = float(areas[0] - areas[1])
    if variance <= 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.norm.sf(abs(difference) / variance**0.5))
