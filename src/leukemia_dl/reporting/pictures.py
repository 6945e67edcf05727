"""What `leukemia-dl benchmark` leaves beside the numbers: pictures, and the predictions as one CSV."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from leukemia_dl.benchmark import Benchmark
from leukemia_dl.datasets.splits import GROUP_DISJOINT
from leukemia_dl.errors import DataError, StoreError, UnknownNameError
from leukemia_dl.evaluation import inflation
from leukemia_dl.identity import generator
from leukemia_dl.reporting.plots import plot_comparison, plot_inflation, plot_learning_curves, plot_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inflation_of", "write_pictures"]

_SAMPLES = 12


def write_pictures(benchmark: Benchmark) -> list[Path]:
    """Write comparison.png, learning_curves.png, samples.png and predictions.csv into the benchmark's store.

    A picture that has nothing to show (no trial finished, no net trained) is left out. Where one of two protocols keeps
    patients apart and the other does not, inflation.csv and inflation.png say what that one adds to the accuracy.

    Returns:
        The paths of the pictures.

    Raises:
        StoreError: If they cannot be written.
    """
    results, histories, predictions = benchmark.results(), benchmark.histories(), benchmark.predictions()
    info = benchmark.dataset.info
    title = f"{info.title}, {benchmark.protocol}, recipe {benchmark.recipe.name}"
    title += " (synthetic cells, not real ones)" if info.synthetic else ""
    drawn: dict[str, Callable[[], Figure]] = {"samples.png": lambda: _sample_grid(benchmark, title)}
    if len(histories):
        drawn["learning_curves.png"] = lambda: plot_learning_curves(histories, title)
    if (results["status"] == "ok").any():
        drawn["comparison.png"] = lambda: plot_comparison(results, title=f"Test side: {title}")
    if len(predictions):
        benchmark.store.write_text("predictions.csv", predictions.to_csv(index=False, lineterminator="\n"))
    added = inflation_of(benchmark, predictions)
    if len(added):
        benchmark.store.write_text("inflation.csv", added.to_csv(index=False, lineterminator="\n"))
        if added["difference"].notna().any():
            drawn["inflation.png"] = lambda: plot_inflation(added, f"Test side: {title}")
    paths = []
    for name, draw in drawn.items():
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png")
        path = benchmark.store.root / name
        try:
            path.write_bytes(buffer.getvalue())
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror or error}.") from error
        paths.append(path)
    return paths


def inflation_of(benchmark: Benchmark, predictions: pd.DataFrame) -> pd.DataFrame:
    """Return what the one protocol that leaks adds to the one that does not; no rows where they are not such two."""
    apart = {
        name: all(GROUP_DISJOINT in split.guarantees for split in benchmark.splits if split.protocol == name)
        for name in benchmark.protocols
    }
    if sorted(apart.values()) != [False, True] or predictions.empty:
        return pd.DataFrame()
    try:
        return inflation(predictions, *sorted(apart, key=lambda name: not apart[name]))
    except (DataError, UnknownNameError):  # trials of one of them only were finished
        return pd.DataFrame()


def _sample_grid(benchmark: Benchmark, title: str) -> Figure:
    """Draw images as they are stored for the nets (before any step that is fitted per split), as many of each class."""
    dataset = benchmark.dataset
    split = benchmark.splits[0]
    rows = split.train[generator(0, "sample grid").permutation(len(split.train))]
    labels = dataset.labels[rows]
    per_class = max(_SAMPLES // len(dataset.class_names), 1)
    chosen = np.concatenate([rows[labels == code][:per_class] for code in range(len(dataset.class_names))])
    pipeline = benchmark.pipelines[max(benchmark.pipelines)]
    images = dataset.subset(chosen).to_numpy(pipeline.partition()[0], show_progress=False)
    names = [dataset.class_names[code] for code in dataset.labels[chosen]]
    title += "" if pipeline.is_fitted else ", before steps that are fitted per split"
    return plot_samples(images, names, columns=min(_SAMPLES // 2, len(chosen)), title=title)
