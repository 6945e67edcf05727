"""Which figures a run has, with what a caption says of each and what a screen reader does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from leukemia_dl.benchmark.stored import StoredRun
from leukemia_dl.datasets import Dataset
from leukemia_dl.evaluation import class_names_of
from leukemia_dl.identity import generator
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.reporting import diagnostics, plots
from leukemia_dl.reporting.answers import METRIC, Answers, inflation_of
from leukemia_dl.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawing", "drawings"]

_SAMPLES, _LONGEST = 12, 200


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn.

    Attributes:
        name: Of its file, without suffix.
        heading: What it shows.
        caption: How to read it.
        alt: What it shows, for who does not see it.
        draw: Returns the Figure.
        protocol: Of which protocol; "" for all.
    """

    name: str
    heading: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    protocol: str = ""


def drawings(run: StoredRun, answers: list[Answers], dataset: Dataset | None) -> Iterator[Drawing]:
    """Yield the figures that a run has something to show for; the images need the data set."""
    title = _title(run, ", ".join(one.protocol for one in answers))
    if dataset is not None:
        yield Drawing(
            "samples", "Samples", "Labelled images, drawn at random, as the nets see them.",
            f"A grid of images of the classes {', '.join(run.class_names)}.", partial(_samples, run, dataset, title),
        )  # fmt: skip
    known = [one.intervals for one in answers if len(one.intervals)]
    if (run.results["status"] == "ok").any() and known:
        intervals = pd.concat(known)
        yield Drawing(
            "comparison", "Comparison",
            "Every backbone and every floor. A net that is not better than a floor has not shown that it is of use.",
            _values("Accuracy", intervals, METRIC),
            partial(plots.plot_comparison, run.results, title=f"Test side: {title}", intervals=intervals),
        )  # fmt: skip
    for one in answers:
        if not one.problem:
            yield from _of_protocol(one, _title(run, one.protocol))
    added = inflation_of(answers)
    if len(added) and added["difference"].notna().any():
        yield Drawing(
            "inflation", "What the leak adds",
            "The same backbones, tested on the same images, with patients on both sides of the split and without.",
            " ".join(added["sentence"]), partial(plots.plot_inflation, added, f"Test side: {title}"),
        )  # fmt: skip
    if len(run.histories):
        last = run.histories.groupby("trial").tail(1).groupby("backbone", sort=False)["val_accuracy"].mean()
        yield Drawing(
            "learning_curves", "Learning curves",
            "Accuracy above loss, training against validation, a line per trial. A gap between them is over-fitting.",
            "Validation accuracy after the last epoch: " + _listed(last) + ".",
            partial(plots.plot_learning_curves, run.histories, title),
        )  # fmt: skip


def _title(run: StoredRun, protocol: str) -> str:
    said = run.settings["dataset"]
    title = f"{said['title']}, {protocol}, recipe {run.settings['recipe']['name']}"
    title = printable(title, kept="")  # an SVG with a control character is none
    title = title if len(title) <= _LONGEST else f"{title[:_LONGEST]}..."
    return title + (" (synthetic cells, not real ones)" if said.get("synthetic") else "")


def _of_protocol(one: Answers, title: str) -> Iterator[Drawing]:
    frame, name = one.predictions, one.protocol
    two = len(class_names_of(frame)) == 2
    found = "the positive class" if two else "a class, each against the rest and averaged,"

    def drawing(
        key: str, heading: str, caption: str, alt: str, draw: Callable[..., Figure], data: pd.DataFrame
    ) -> Drawing:
        return Drawing(f"{key}-{name}", heading, caption, alt, partial(draw, data, title=f"Test side: {title}"), name)

    yield drawing(
        "roc", "ROC curves",
        f"How many images of {found} are found at each rate of false alarms; the dotted line is chance.",
        _values("AUROC", one.intervals, "auroc"), diagnostics.plot_roc, frame,
    )  # fmt: skip
    yield drawing(
        "precision_recall", "Precision and recall",
        f"How many alarms are right when so many images of {found} are found{'; dotted: alarms at random' * two}.",
        _values("Average precision", one.intervals, "auprc"), diagnostics.plot_precision_recall, frame,
    )  # fmt: skip
    yield drawing(
        "confusion", "Confusion", "Share of each class (row) that is predicted as each class. The diagonal is recall.",
        _values("Balanced accuracy", one.intervals, "balanced_accuracy"), diagnostics.plot_confusion, frame,
    )  # fmt: skip
    yield drawing(
        "reliability", "Reliability",
        "Whether a probability means what it says. Points below the diagonal promise too much.",
        _values("Expected calibration error", one.intervals, "ece"), diagnostics.plot_reliability, frame,
    )  # fmt: skip
    if len(frame) and frame["group"].notna().all():
        yield drawing(
            "subjects", "Patients",
            "A mean over images hides the patients on whom a net fails altogether: they are the dots on the left.",
            "Share of right images per group of subjects, one dot each.", diagnostics.plot_subjects, frame,
        )  # fmt: skip
    board = one.leaderboard
    if (board["fit_seconds"].notna() & (board["kind"] == "backbone")).any():
        yield Drawing(
            f"cost-{name}", "Cost", "Accuracy over the time that one training took, on the machine that ran it.",
            f"Seconds to train: {_listed(board.set_index('backbone')['fit_seconds'].dropna(), '.0f')}.",
            partial(diagnostics.plot_cost, board, title=f"Test side: {title}"), name,
        )  # fmt: skip
    if "cell_area" in frame and frame.loc[frame["side"] == "test", "cell_area"].notna().any():
        yield drawing(
            "errors_by_size", "Errors and the size of cells",
            "A net whose errors gather among small or large cells may have learned the size of a cell alone.",
            "Share of wrong predictions in four parts of the images, from small cells to large ones.",
            diagnostics.plot_errors_by_size, frame,
        )  # fmt: skip


def _values(what: str, intervals: pd.DataFrame, metric: str) -> str:
    rows = intervals[intervals["metric"] == metric]
    names = rows["backbone"] if rows["protocol"].nunique() < 2 else rows["backbone"] + " (" + rows["protocol"] + ")"
    return f"{what}: {_listed(pd.Series(rows['value'].to_numpy(), index=names))}."


def _listed(values: pd.Series, form: str = ".3f") -> str:
    parts = [f"{name} {'not defined' if pd.isna(value) else format(value, form)}" for name, value in values.items()]
    return ", ".join(parts)


def _samples(run: StoredRun, dataset: Dataset, title: str) -> Figure:
    """Draw images as they are stored for the nets (before any step that is fitted per split), as many of each class."""
    pipelines = {int(size): Pipeline.from_dict(steps) for size, steps in run.settings["pipeline"].items()}
    pipeline = pipelines[max(pipelines)]
    rows = generator(0, "sample grid").permutation(np.flatnonzero(dataset.labels >= 0))
    labels = dataset.labels[rows]
    per_class = max(_SAMPLES // len(dataset.class_names), 1)
    chosen = np.concatenate([rows[labels == code][:per_class] for code in range(len(dataset.class_names))])
    images = dataset.subset(chosen).to_numpy(pipeline.partition()[0], show_progress=False)
    names = [dataset.class_names[code] for code in dataset.labels[chosen]]
    title += "" if pipeline.is_fitted else ", before steps that are fitted per split"
    return plots.plot_samples(images, names, columns=min(_SAMPLES // 2, len(chosen)), title=title)
