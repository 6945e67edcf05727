"""The baselines of every comparison: predictions from class shares, cell size and cell colour, without a net.

A backbone that does not beat `cell_size` has shown nothing about the appearance of cells: on C-NMC 2019 logistic
regression on the size of the cell alone reaches an accuracy of 0.75 to 0.83.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.datasets import Dataset, Split
from leukemia_dl.preprocess import foreground_mask, is_single_cell, mask_colour, silhouette
from leukemia_dl.progress import parallel_map

__all__ = ["BASELINES", "FITTED_BY", "CellMeasures", "measure_cells", "predict_baseline"]

BASELINES = ("majority", "cell_size", "cell_colour")
# Distributions whose version changes what a baseline predicts.
FITTED_BY = {"cell_size": ("scikit-learn",), "cell_colour": ("scikit-learn",)}
_SINGLE_CELL_SHARE = 0.98


@dataclass(frozen=True)
class CellMeasures:
    """Measures of the cell in each image, as it is in its file and so at absolute scale."""

    single_cell: NDArray[np.bool_]  # whether the image shows one cell on black (n,)
    size: NDArray[np.float64]  # logarithms of area, width, height and perimeter in pixels (n, 4)
    colour: NDArray[np.float64]  # mean and standard deviation of red, green and blue inside the cell (n, 6)


def measure_cells(dataset: Dataset, rows: NDArray[np.int64] | None = None, show_progress: bool = True) -> CellMeasures:
    """Measure the cell in each image of `rows`, by default of all; the others count as showing no cell."""
    rows = np.arange(len(dataset)) if rows is None else rows
    found = parallel_map(
        lambda row: _measure(dataset.decode(int(row))), rows.tolist(), "Measuring cells", show=show_progress
    )
    single, size, colour = np.zeros(len(dataset), bool), np.zeros((len(dataset), 4)), np.zeros((len(dataset), 6))
    for row, measures in zip(rows, found, strict=True):
        single[row], size[row], colour[row] = measures
    return CellMeasures(single, size, colour)


def _measure(image: NDArray[np.uint8]) -> tuple[bool, list[float], list[float]]:
    if not is_single_cell(image):
        return False, [0.0] * 4, [0.0] * 6
    mask = foreground_mask(image, "black")
    outline = silhouette(mask)
    size = [float(np.log(max(outline[name], 1.0))) for name in ("area", "width", "height", "perimeter")]
    mean, spread = mask_colour(image, mask)
    return True, size, [*map(float, mean), *map(float, spread)]


def predict_baseline(
    name: str, labels: NDArray[np.int64], split: Split, classes: int, measures: Callable[[], CellMeasures]
) -> tuple[NDArray[np.float64], str]:
    """Fit one of `BASELINES` on the train side, and return probabilities of the val side, then the test side.

    `measures` returns the cells' measures and is called only if they are needed. The text that is returned says why the
    baseline is not applicable; "" if it is.
    """
    train, predict = split.train, np.concatenate([split.val, split.test])
    counts = np.bincount(labels[train], minlength=classes)
    if name == "majority":
        return np.tile(counts / counts.sum(), (len(predict), 1)), ""
    cells = measures()
    # Side by side: a few images without cells among many with them would pass.
    for side, rows in (("train", train), ("val", split.val), ("test", split.test)):
        if len(rows) and (share := float(cells.single_cell[rows].mean())) < _SINGLE_CELL_SHARE:
            shown = f"{share:.0%} of the {side} images show a single cell on a black background"
            return np.empty((0, classes)), f"{shown}; {name} needs nearly all to."
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = cells.size if name == "cell_size" else cells.colour
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features[train], labels[train])
    probabilities = np.zeros((len(predict), classes))
    probabilities[:, model.classes_] = model.predict_proba(features[predict])
    return probabilities, ""
