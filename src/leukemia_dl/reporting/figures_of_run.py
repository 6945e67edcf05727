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
from leukemia_dl.reporting.summary import METRIC, ProtocolSummary, inflation_of, summaries_of
from leukemia_dl.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunFigure", "figures_of", "folder_of", "write_pictures"]

_SAMPLES, _LONGEST_TITLE = 12, 200
# Kind of a figure of predictions -> how it is drawn, and the metric that its text for screen readers lists.
_OF_PREDICTIONS = {
    "roc": (prediction_plots.plot_roc, "AUROC", "auroc"),
    "precision_recall": (prediction_plots.plot_precision_recall, "Average precision", "auprc"),
    "confusion": (prediction_plots.plot_confusion, "Balanced accuracy", "balanced_accuracy"),
    "reliability": (prediction_plots.plot_reliability, "Expected calibration error", "ece"),
}


@dataclass(frozen=True)
class RunFigure:
    """A figure that can be drawn, its text for screen readers, and its protocol, "" for all."""

    kind: str
    alt: str
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
    known = [one.intervals for one in summaries if not one.problem]
    if dataset is not None:
        alt = f"A grid of images of the classes {', '.join(run.class_names)}."
        yield RunFigure("samples", alt, partial(_samples, run, dataset, title))
    if known:
        intervals = pd.concat(known)
        draw = partial(plots.plot_comparison, run.results, title=f"Test side: {title}", intervals=intervals)
        yield RunFigure("comparison", _values("Accuracy", intervals, METRIC), draw)
    for one in summaries:
        if not one.problem:
            yield from _of_protocol(one, f"Test side: {_title(run, one.protocol)}")
    added = inflation_of(summaries)
    if len(added) and added["difference"].notna().any():
        draw = partial(plots.plot_inflation, added, f"Test side: {title}")
        yield RunFigure("inflation", " ".join(added["sentence"]), draw)
    if len(run.histories):
        last = run.histories.groupby("trial").tail(1).groupby("backbone", sort=False)["val_accuracy"].mean()
        alt = f"Validation accuracy after the last epoch: {_listed(last)}."
        yield RunFigure("learning_curves", alt, partial(plots.plot_learning_curves, run.histories, title))


def _of_protocol(one: ProtocolSummary, title: str) -> Iterator[RunFigure]:
    """Yield the figures of the predictions under one protocol."""
    frame, board = one.predictions, one.leaderboard
    for kind, (plot, label, metric) in _OF_PREDICTIONS.items():
        alt = _values(label, one.intervals, metric)
        yield RunFigure(kind, alt, partial(plot, frame, title=title), one.protocol)
    if frame["group"].notna().all():
        alt = "Share of right images per group of patients, one dot each."
        yield RunFigure("subjects", alt, partial(prediction_plots.plot_subjects, frame, title=title), one.protocol)
    if (board["fit_seconds"].notna() & (board["kind"] == "backbone")).any():
        alt = f"Seconds to train: {_listed(board.set_index('backbone')['fit_seconds'].dropna(), '.0f')}."
        yield RunFigure("cost", alt, partial(prediction_plots.plot_cost, board, title=title), one.protocol)
    if "cell_area" in frame and frame.loc[frame["side"] == "test", "cell_area"].notna().any():
        alt = "Share of wrong predictions in four parts of the images, from small cells to large ones."
        draw = partial(prediction_plots.plot_errors_by_size, frame, title=title)
        yield RunFigure("errors_by_size", alt, draw, one.protocol)


def _title(run: StoredRun, protocol: str) -> str:
    dataset = run.settings["dataset"]
    title = f"{dataset['title']}, {protocol}, recipe {run.settings['recipe']['name']}"
    title = printable(title, kept="")  # an SVG with a control character is none
    title = title if len(title) <= _LONGEST_TITLE else f"{title[:_LONGEST_TITLE]}..."
    return title + (" (synthetic cells, not real ones)" if dataset.get("synthetic") else "")


def _values(label: str, intervals: pd.DataFrame, metric: str) -> str:
    rows = intervals[intervals["metric"] == metric]
    names = rows["backbone"] if rows["protocol"].nunique() < 2 else rows["backbone"] + " (" + rows["protocol"] + ")"
    return f"{label}: {_listed(pd.Series(rows['value'].to_numpy(), index=names))}."


def _listed(values: pd.Series, form: str = ".3f") -> str:
    return ", ".join(
        f"{name} {format(value, form) if value == value else 'not defined'}" for name, value in values.items()
    )


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
