"""Plots of predictions: ranking, confusion, reliability, accuracy per patient, and errors by the size of cells.

Each takes a prediction frame of one protocol, from `Benchmark.predictions()` or elsewhere, and returns a matplotlib
Figure. Rows of kind "tta" are left out, since each has a row of its own backbone beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from leukemia_dl import evaluation
from leukemia_dl.evaluation.predictions import PREFIX, models_of, select_side, validated_predictions
from leukemia_dl.reporting import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    _Draw = Callable[[Axes, pd.DataFrame, str], None]

_MOST_WRITTEN, _MANY_DOTS = 6, 2_000
_INTERVAL = re.compile(r"\(([\d.e+-]+), ([\d.e+-]+)\]")


def plot_roc(predictions: pd.DataFrame, title: str = "", *, level: float = 0.95, side: str = "test") -> Figure:
    """Return a panel per backbone: its ROC curve with a pointwise band over groups, the others in grey behind it.

    Args:
        predictions: The prediction frame, see `leukemia_dl.evaluate`; DataError if it is none.
        title: Above the figure.
        level: Of the bands.
        side: Rows of this value in the column `side`.
    """
    return _ranking_figure(predictions, "auroc", title, level, side)


def plot_precision_recall(
    predictions: pd.DataFrame, title: str = "", *, level: float = 0.95, side: str = "test"
) -> Figure:
    """Return a panel per backbone: precision over recall, as `plot_roc`; dotted: the share of the positive class.

    `predictions`, `title`, `level` and `side` are those of `plot_roc`.
    """
    return _ranking_figure(predictions, "auprc", title, level, side)


def _ranking_figure(predictions: pd.DataFrame, metric: str, title: str, level: float, side: str) -> Figure:
    frame, names = _without_tta(predictions)
    roc, two = metric == "auroc", len(names) == 2
    curves = (evaluation.roc_curves if roc else evaluation.precision_recall_curves)(frame, level=level, side=side)
    areas = evaluation.evaluate(frame, metrics=metric, level=level, side=side).set_index("backbone")

    def draw(panel: Axes, rows: pd.DataFrame, colour: str) -> None:
        own = rows["backbone"].iloc[0]
        for _, others in curves[curves["backbone"] != own].groupby("backbone", sort=False):
            panel.plot(others["x"], others["y"], color="#C8C8C8", lw=0.7)
        panel.fill_between(rows["x"], rows["low"], rows["high"], color=colour, alpha=0.25, lw=0)
        panel.plot(rows["x"], rows["y"], color=colour, lw=1.8)
        value, low, high, share = areas.loc[own, ["value", "low", "high", "prevalence"]].to_numpy(float).tolist()
        if roc:
            panel.plot([0, 1], [0, 1], ":", color="black", lw=1)
        elif two:
            panel.axhline(share, ls=":", color="black", lw=1)
        text = "not defined" if np.isnan(value) else f"{value:.3f}"
        text += f"\n[{low:.3f}, {high:.3f}]" if low <= high else ""
        box: dict[str, Any] = {"bbox": {"fc": "white", "alpha": 0.8, "lw": 0}, "transform": panel.transAxes}
        panel.text(0.97, 0.05, text, ha="right", va="bottom", fontsize="small", **box)
        plots.label_axes(panel, xlim=(0, 1), ylim=(0, 1.02))

    positive = f"positive: {names[1]}" if two else "mean of one class against the rest"
    across, area = ("false positive rate", "AUROC") if roc else ("recall", "average precision")
    band = f"; band: {level:.0%} at each point" if plots.has_intervals(curves) else ""
    note = f"across: {across}; {positive}{band}; number: {area}"
    return _figure_per_backbone(curves, draw, "Sensitivity" if roc else "Precision", title, note, extra=1.0)


def plot_confusion(predictions: pd.DataFrame, title: str = "", *, side: str = "test") -> Figure:
    """Return a panel per backbone: of the images of each class (a row), the share predicted as each class (a column).

    Folds and seeds are taken together. `predictions`, `title` and `side` are those of `plot_roc`.
    """
    frame, names = _without_tta(predictions)
    models_of(frame, side)  # checks
    longest, many, images = max(map(len, names)), len(names) > _MOST_WRITTEN, list[Any]()

    def draw(panel: Axes, rows: pd.DataFrame, _: str) -> None:
        predicted = np.array(names)[rows[[PREFIX + name for name in names]].to_numpy().argmax(axis=1)]
        table = pd.crosstab(rows["label"].to_numpy(), predicted, normalize="index")
        shares = table.reindex(columns=names, fill_value=0).reindex(names).to_numpy()
        images.append(panel.imshow(shares, cmap="Blues", vmin=0, vmax=1))
        panel.set_xticks(range(len(names)), names, rotation=90 if longest > 4 else 0, fontsize="small")
        panel.set_yticks(range(len(names)), names, fontsize="small")
        for (row, column), share in np.ndenumerate(shares) if not many else ():
            text = f"{share:.2f}" if np.isfinite(share) else "none"
            colour = "white" if share > 0.5 else "black"
            panel.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")

    note = "columns: class as predicted; each row sums to 1; folds and seeds together"
    room = 0.05 * min(longest, 20)
    figure = _figure_per_backbone(select_side(frame, side), draw, "Class", title, note, 2.1 + room, 1.1 + room)
    if many:
        figure.colorbar(images[-1], ax=figure.axes, label="Share of the class", shrink=0.7)
    return figure


def plot_reliability(predictions: pd.DataFrame, title: str = "", *, level: float = 0.95, side: str = "test") -> Figure:
    """Return a panel per backbone: observed shares over predicted probabilities in ten bins, with intervals.

    `predictions`, `title`, `level` and `side` are those of `plot_roc`.
    """
    frame, names = _without_tta(predictions)
    curves = evaluation.reliability_curves(frame, level=level, side=side)

    def draw(panel: Axes, rows: pd.DataFrame, colour: str) -> None:
        panel.bar(rows["x"], rows["predictions"] / rows["predictions"].sum(), width=0.06, color="#D0D0D0")
        panel.plot([0, 1], [0, 1], ":", color="black", lw=1)
        panel.vlines(rows["x"], rows["low"], rows["high"], color=colour, lw=1.2)
        panel.plot(rows["x"], rows["y"], "-o", color=colour, markersize=4, lw=1.2)
        plots.label_axes(panel, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))

    of = f"class {names[1]}" if len(names) == 2 else "the predicted class being right"
    line = f"line: {level:.0%} interval; " if plots.has_intervals(curves) else ""
    note = f"across: probability of {of}; dotted: perfect calibration; {line}grey: share of images"
    return _figure_per_backbone(curves, draw, "Observed share", title, note)


def plot_net_benefit(
    predictions: pd.DataFrame, ax: Axes | None = None, title: str = "", *, side: str = "test"
) -> Figure:
    """Return decision curves: the net benefit of acting on each backbone over the threshold, beside all and none.

    `ax` are the axes to draw on, None for a new figure; `predictions`, `title` and `side` are those of `plot_roc`.
    Raises DataError for more than two classes.
    """
    frame, names = _without_tta(predictions)
    curves = evaluation.net_benefit(frame, side=side)
    figure, axes = plots.axes_for(ax, 7.4, 4.4)
    looks = plots.looks_of(curves["backbone"].unique(), curves.loc[curves["kind"] == "baseline", "backbone"])
    for name, look in looks.items():
        rows, style = curves[curves["backbone"] == name], {"all": "--", "none": ":"}.get(name, "-")
        axes.plot(rows["x"], rows["y"], style, color=look["color"], label=name, lw=1.5)
    plots.add_legend(axes, 6)
    top = max(1.05 * curves["y"].max(), 0.05)
    plots.label_axes(axes, xlabel="Threshold", ylabel="Net benefit", xlim=(0, 1), ylim=(-0.25 * top, top))
    note = f"share of images that are {names[1]} and acted on, less false alarms times the odds of the threshold"
    return plots.finished(figure, title, note, ax)


def plot_subjects(predictions: pd.DataFrame, ax: Axes | None = None, title: str = "", *, side: str = "test") -> Figure:
    """Return a row per backbone with a dot per group of patients: the share of its images that are classified right.

    A dot is as large as its group has images, and of the colour and form of its class. `ax` are the axes to draw on,
    None for a new figure; `predictions`, `title` and `side` are those of `plot_roc`. Raises DataError without patients.
    """
    frame, names = _without_tta(predictions)
    table = evaluation.group_table(frame, side)
    classes = table["label"].where(table["label"].notna(), "several")
    backbones, looks = table["backbone"].unique().tolist()[::-1], plots.looks_of([*names, "several"], ["several"])
    figure, axes = plots.axes_for(ax, 8.4, 0.75 * len(backbones) + 1.6)
    random, most = np.random.default_rng(0), table["images"].max()
    dots: dict[str, Any] = {"alpha": 0.6, "lw": 0.5, "ec": "black", "rasterized": len(table) > _MANY_DOTS}
    for name in [name for name in looks if name in set(classes)]:
        rows = table[classes == name]
        heights = rows["backbone"].map(backbones.index) + random.uniform(-0.28, 0.28, len(rows))
        axes.scatter(1 - rows["error_share"], heights, 12 + 130 * rows["images"] / most, **looks[name], **dots)
        axes.plot([], [], ls="", label=name, **looks[name])  # for the legend
    plots.add_legend(axes, 6)
    axes.set_yticks(range(len(backbones)), backbones)
    plots.label_axes(axes, "x", xlabel="Share of a group's images that are classified right", xlim=(-0.03, 1.03))
    count, least, largest = table.loc[table["backbone"] == backbones[0], "images"].agg(["size", "min", "max"])
    note = f"one dot: one group of patients ({count:,}), as large as its number of images ({least:,} to {largest:,})"
    return plots.finished(figure, title, f"{note}; seeds together", ax)


def plot_errors_by_size(
    predictions: pd.DataFrame, ax: Axes | None = None, title: str = "", *, by: str = "cell_area", level: float = 0.95,
    side: str = "test",
) -> Figure:  # fmt: skip
    """Return the share of wrong predictions in quarters of the images, from the smallest cells to the largest.

    `by` is the column of sizes, such as that of `Benchmark.predictions(cell_area=True)`; `ax` are the axes to draw on,
    None for a new figure. `predictions`, `title`, `level` and `side` are those of `plot_roc`.
    """
    frame, _ = _without_tta(predictions)
    found = evaluation.evaluate(frame, metrics="accuracy", by=by, level=level, side=side)
    figure, axes = plots.axes_for(ax, 7.4, 4.4)
    parts, backbones = found[by].unique().tolist(), found["backbone"].unique()
    looks = plots.looks_of(backbones, frame.loc[frame["kind"] == "baseline", "backbone"])
    for place, (backbone, look) in enumerate(looks.items()):
        rows = found[found["backbone"] == backbone]
        x = rows[by].map(parts.index) + 0.07 * (place - (len(backbones) - 1) / 2)
        axes.vlines(x, 1 - rows["high"], 1 - rows["low"], color=look["color"], lw=1.2)
        axes.plot(x, 1 - rows["value"], lw=1, markersize=5, label=backbone, **look)
    # An interval of pandas, "(1.5, 7.0]", is shown as "2 to 7".
    labels = [_INTERVAL.sub(lambda end: f"{float(end[1]):,.0f} to {float(end[2]):,.0f}", str(part)) for part in parts]
    axes.set_xticks(range(len(parts)), labels)
    xlabel = "Area of the cell in pixels, quarters of the images" if by == "cell_area" else by
    plots.label_axes(axes, "y", xlabel=xlabel, ylabel="Share of wrong predictions", ylim=(0, None))
    plots.add_legend(axes, 4)
    unit = f"{found['unit'].iloc[0]}s"
    note = f"line: {level:.0%} interval, where each class has five {unit}"
    note = note if plots.has_intervals(found) else f"no intervals: no part has five {unit} of each class"
    return plots.finished(figure, title, note, ax)


def _without_tta(predictions: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    frame = validated_predictions(predictions)
    return frame[frame["kind"] != "tta"], [*evaluation.class_names_of(frame)]


def _figure_per_backbone(
    table: pd.DataFrame, draw: _Draw, label: str, title: str, note: str, side: float = 2.5, extra: float = 0.9
) -> Figure:
    """Return a figure with a panel per backbone, up to five in a row, each drawn by `draw(axes, rows, colour)`."""
    parts = list(table.groupby("backbone", sort=False))
    columns = min(len(parts), 5)
    lines = -(-len(parts) // columns)
    figure = plots.new_figure(max(side * columns + 0.6, 6.4), side * lines + extra)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, (name, rows) in zip(panels, parts, strict=False):
        panel.set_title(name, fontsize="medium")
        draw(panel, rows, plots.BASELINE_COLOUR if (rows["kind"] == "baseline").all() else plots.BLUE)
    for panel in panels[len(parts) :]:
        panel.axis("off")
    for panel in panels[len(parts) - columns : len(parts)]:
        panel.tick_params(labelbottom=True)  # also where no panel is below
    figure.supylabel(label, fontsize="medium")
    return plots.finished(figure, title, note)
