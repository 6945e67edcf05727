"""Inner folds: parts of a training side with disjoint groups, for choices that must not use the val and test sides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.identity import named_seed

__all__ = ["inner_folds"]

_FOLDS = 5


def inner_folds(
    labels: NDArray[np.int64], groups: NDArray[np.int64] | None, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return (train, held out) row numbers of up to five folds, stratified by class.

    There are as many folds as the class with the fewest groups has groups, five at most, and none if that is one.
    `groups` has a number (n,) for each group of images that must stay together; None means no groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = np.arange(len(labels)) if groups is None else groups
    folds = min([_FOLDS, *(len(np.unique(units[labels == label])) for label in np.unique(labels))])
    if folds < 2:
        return []
    # With a group for every image, the splitter for groups takes longer than the heads that it is for.
    alone = len(np.unique(units)) == len(units)
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(
        folds, shuffle=True, random_state=named_seed(seed, "inner folds")
    )
    parts = splitter.split(np.zeros(len(labels)), labels, None if alone else units)
    return [(train, held) for train, held in parts]
