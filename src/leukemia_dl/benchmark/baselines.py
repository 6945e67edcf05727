"""The baselines of every comparison: predictions from class shares, cell size and cell colour, without a net.

On C-NMC 2019 logistic regression on the size of the cell alone reaches an accuracy of 0.75 to 0.83.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.benchmark import records
from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.records import Record
from leukemia_dl.datasets import Dataset, Split
from leukemia_dl.preprocess import foreground_mask, is_single_cell, mask_colour, silhouette
from leukemia_dl.progress import parallel_map

BASELINES = ("majority", "cell_size", "cell_colour")
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
    table = np.zeros((len(dataset), 11))
    table[rows] = parallel_map(
        lambda row: _measures(dataset.decode(row)), rows.tolist(), "Measuring cells", show=show_progress
    )
    return CellMeasures(table[:, 0] > 0, table[:, 1:5].copy(), table[:, 5:].copy())


def _measures(image: NDArray[np.uint8]) -> list[float]:
    """Return 1 and the measures of the only cell in an image; zeros if there is none."""
    if not is_single_cell(image):
        return [0.0] * 11
    mask = foreground_mask(image, "black")
    outline = silhouette(mask)
    size = [float(np.log(max(outline[name], 1.0))) for name in ("area", "width", "height", "perimeter")]
    mean, spread = mask_colour(image, mask)
    return [1.0, *size, *map(float, mean), *map(float, spread)]


def run_baseline(planned: PlannedTrial, samples: records.Samples, measures: Callable[[], CellMeasures]) -> Record:
    """Run the trial of a baseline and return its record; one that raises has status "failed"."""
    name, split, started = planned.trial.backbone, planned.split, time.perf_counter()
    record = records.blank_record(planned, samples)
    try:
        found, reason = predict_baseline(name, samples.labels, split, len(samples.class_names), measures)
        if reason:
            record = replace(record, status="not_applicable", probabilities=found, message=reason)
        else:
            fitted = records.temperature_of_val(split, samples, found)
            record = records.scored_record(record, found, None, fitted)
    except Exception as error:
        return records.failed_record(record, error, started)
    return replace(record, timings=records.environment(started))


def predict_baseline(
    name: str, labels: NDArray[np.int64], split: Split, classes: int, measures: Callable[[], CellMeasures]
) -> tuple[NDArray[np.float64], str]:
    """Fit a baseline on the train side; return probabilities of val and test sides, and why there are none, or ""."""
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
