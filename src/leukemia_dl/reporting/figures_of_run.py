"""The figures of a run, for its report and as pictures; the report's template has their headings and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from leukemia_dl.benchmark import Benchmark
from leukemia_dl.benchmark.run_files import StoredRun
from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import StoreError
from leukemia_dl.identity import generator
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.reporting import plots, prediction_plots, render, style
from leukemia_dl.reporting.summary import ProtocolSummary, inflation_of, summaries_of
from leukemia_dl.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunFigure", "figures_of", "folder_of", "write_pictures"]

_SAMPLES, _LONGEST_TITLE = 12, 200
_OF_PREDICTIONS: dict[str, Callable[..., Figure]] = {
    "roc": prediction_plots.plot_roc,
    "precision_recall": prediction_plots.plot_precision_recall,
    "confusion": prediction_plots.plot_confusion,
    "reliability": prediction_plots.plot_reliability,
    "subjects": prediction_plots.plot_subjects,
    "errors_by_size": prediction_plots.plot_errors_by_size,
}


@dataclass(frozen=True)
class RunFigure:
    """A figure that can be drawn, and its protocol, "" for all."""

    kind: str
    draw: Callable[[], Figure]
    protocol: str = ""


def folder_of(run: StoredRun) -> Path:
    """Return the folder for reports and pictures of a run: its store, or grids/DIGEST if that has other trials."""
    if run.others and (run.folder.is_symlink() or run.folder.parent.is_symlink()):
        raise StoreError(f"{run.folder} is a link; reports are written into the store itself.")
    return run.folder if run.others else run.store.root


def write_pictures(benchmark: Benchmark) -> list[Path]:
    """Write comparison.png, learning_curves.png, samples.png and predictions.csv into the store of `benchmark`.

    If the store has trials of other benchmarks, they are written into this one's folder in grids/. A picture without
    data (no trial finished, no net trained) is left out. Where one of two protocols keeps patients apart and the other
    does not, inflation.csv and inflation.png say how much it adds to the accuracy.

    Returns:
        The paths of the pictures.

    Raises:
        StoreError: If they cannot be written.
    """
    run = benchmark.stored()
    folder, summaries = folder_of(run), summaries_of(run)
    for name, frame in (("predictions", run.predictions), ("inflation", inflation_of(summaries))):
        if len(frame):
            render.write(folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    figures = [one for one in figures_of(run, summaries, benchmark.dataset) if not one.protocol]
    return [render.write(folder / f"{one.kind}.png", style.png(one.draw())) for one in figures]


def figures_of(run: StoredRun, summaries: list[ProtocolSummary], dataset: Dataset | None) -> Iterator[RunFigure]:
    """Yield the figures that a run has data for; sample images need the data set."""
    title = _title(run, ", ".join(one.protocol for one in summaries))
    evaluated = [one for one in summaries if not one.problem]
    if dataset is not None:
        yield RunFigure("samples", partial(_samples, run, dataset, title))
    if evaluated:
        intervals = pd.concat([one.intervals for one in evaluated])
        draw = partial(plots.plot_comparison, run.results, title=f"Test side: {title}", intervals=intervals)
        yield RunFigure("comparison", draw)
    for one in evaluated:
        yield from _of_protocol(one, f"Test side: {_title(run, one.protocol)}")
    added = inflation_of(summaries)
    if len(added) and added["difference"].notna().any():
        yield RunFigure("inflation", partial(plots.plot_inflation, added, f"Test side: {title}"))
    if len(run.histories):
        yield RunFigure("learning_curves", partial(plots.plot_learning_curves, run.histories, title))


def _of_protocol(one: ProtocolSummary, title: str) -> Iterator[RunFigure]:
    """Yield the figures of the predictions under one protocol."""
    frame, board = one.predictions, one.leaderboard
    areas = frame.loc[frame["side"] == "test", "cell_area"] if "cell_area" in frame else pd.Series(dtype=float)
    known = {"subjects": frame["group"].notna().all(), "errors_by_size": areas.notna().any()}
    for kind, plot in _OF_PREDICTIONS.items():
        if known.get(kind, True):
            yield RunFigure(kind, partial(plot, frame, title=title), one.protocol)
    if (board["fit_seconds"].notna() & (board["kind"] == "backbone")).any():
        yield RunFigure("cost", partial(plots.plot_cost, board, title=title), one.protocol)


def _title(run: StoredRun, protocol: str) -> str:
    dataset = run.settings["dataset"]
    title = f"{dataset['title']}, {protocol}, recipe {run.settings['recipe']['name']}"
    title = printable(title, kept="")  # an SVG with a control character is none
    title = title if len(title) <= _LONGEST_TITLE else f"{title[:_LONGEST_TITLE]}..."
    return title + (" (synthetic cells, not real ones)" if dataset.get("synthetic") else "")


def _samples(run: StoredRun, dataset: Dataset, title: str) -> Figure:
    """Draw as many images of each class, as they are stored for the nets (before any step that is fitted per split)."""
    size = max(run.settings["pipeline"], key=int)
    pipeline = Pipeline.from_dict(run.settings["pipeline"][size])
    order = generator(0, "sample grid").permutation(len(dataset))
    per_class = max(_SAMPLES // len(dataset.class_names), 1)
    parts = [order[dataset.labels[order] == code][:per_class] for code in range(len(dataset.class_names))]
    chosen = dataset.subset(np.concatenate(parts))
    images = chosen.to_numpy(pipeline.partition()[0], show_progress=False)
    names = [dataset.class_names[code] for code in chosen.labels]
    title += "" if pipeline.is_fitted else ", before steps that are fitted per split"
    return plots.plot_samples(images, names, columns=min(_SAMPLES // 2, len(names)), title=title)
