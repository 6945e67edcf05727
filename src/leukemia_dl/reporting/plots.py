"""Plots of a benchmark. Each returns a matplotlib Figure that belongs to no window; `figure.savefig(path)` keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl import checks
from leukemia_dl.errors import DataError
from leukemia_dl.reporting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_comparison", "plot_inflation", "plot_learning_curves", "plot_samples"]

_UNITS = {"group": "groups", "image": "images, taken as independent"}


def plot_comparison(
    results: pd.DataFrame,
    metrics: Sequence[str] = ("accuracy", "balanced_accuracy", "loss"),
    title: str = "",
    intervals: pd.DataFrame | None = None,
) -> Figure:
    """Return one panel per metric: a row per backbone or baseline, a dot per trial, a bar at their mean.

    Trials of several protocols have rows of their own, one protocol below the other.

    Args:
        results: The result frame of a benchmark; only rows with status "ok" are drawn.
        metrics: Columns to draw.
        title: Above the figure.
        intervals: `leukemia_dl.evaluate(...)`, with a column `protocol` if there are several: bars are then its values,
            which take the folds together, and lines its intervals.

    Raises:
        DataError: If no trial was finished.
    """
    _check_columns(results, ("backbone", "status", "recipe", *metrics), "Benchmark.results()")
    frame = results[results["status"] == "ok"]
    if frame.empty:
        raise DataError("No finished trial to draw: every row has a status other than 'ok'.")
    parts = style.by_protocol(frame)[::-1]  # from below
    orders = [part.groupby("backbone")[metrics[0]].mean().sort_values(kind="stable").index.tolist() for part in parts]
    frame, order = pd.concat(parts), [name for names in orders for name in names]
    figure = style.new_figure(3.4 * len(metrics) + 1.2, 0.42 * len(order) + 1.9)
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    known = None if intervals is None else pd.concat(style.by_protocol(intervals))
    for axes, metric in zip(panels, metrics, strict=True):
        _comparison_panel(axes, frame, order, metric, known)
        for border in np.cumsum([len(names) for names in orders])[:-1]:
            axes.axhline(border - 0.5, color="#555555", lw=0.8)
    panels[0].set_yticks(range(len(order)), order, parse_math=False)
    note = "bar: mean over trials; dot: one trial; grey: baselines without a net"
    if known is not None:
        line = f"line: its interval over {_UNITS[known['unit'].iloc[0]]}"
        line = line if style.has_intervals(known) else "no intervals: too few to estimate them"
        note = f"bar: all folds together, mean of seeds; {line}; dot: one trial; grey: baselines"
    if len(parts) > 1:
        note += "; protocols may have other test images: compare within one"
    style.add_titles(figure, title, note)
    return figure


def plot_learning_curves(histories: pd.DataFrame, title: str = "") -> Figure:
    """Return a column per backbone: accuracy above loss over epochs, train against validation, a line per trial.

    Each of several protocols has columns of its own. Validation is measured at the end of an epoch with BatchNorm
    statistics re-estimated; training is the running mean over the epoch, on augmented images.

    Args:
        histories: `Benchmark.histories()`.
        title: Above the figure.

    Raises:
        DataError: If there is no history.
    """
    if histories.empty:
        raise DataError("No learning curves to draw: no net was trained.")
    _check_columns(histories, ("trial", "backbone", "epoch", "accuracy", "loss"), "Benchmark.histories()")
    histories = pd.concat(style.by_protocol(histories))
    names = list(dict.fromkeys(histories["backbone"]))
    figure = style.new_figure(max(2.5 * len(names) + 1.0, 7.5), 5.4)
    panels = figure.subplots(2, len(names), sharex="col", sharey="row", squeeze=False)
    for column, name in enumerate(names):
        trials = histories[histories["backbone"] == name]
        for row, metric in enumerate(("accuracy", "loss")):
            _curves_panel(panels[row, column], trials, metric)
        last = trials.groupby("trial").tail(1)
        reached = f"{last['val_accuracy'].mean():.3f} / {last['val_loss'].mean():.3f}"
        panels[0, column].set_title(f"{name}\nval {reached}", parse_math=False)
        panels[1, column].set_xlabel("Epoch")
    panels[0, 0].set_ylabel("Accuracy")
    panels[1, 0].set_ylabel("Loss (nats, log scale)")
    panels[0, 0].legend(loc="lower right", frameon=False, fontsize="small")
    note = "above each column: validation accuracy / loss after the last epoch"
    if _has_head_phase(histories):
        note += "; dotted: the head alone before, every layer after"
    style.add_titles(figure, title, note)
    return figure


def plot_inflation(table: pd.DataFrame, title: str = "") -> Figure:
    """Return the effect of a leaky protocol: each backbone's two values, and beside them their difference.

    Args:
        table: `leukemia_dl.inflation(...)`; rows without a difference are left out.
        title: Above the figure, before the metric and protocols.

    Raises:
        DataError: If no row has a difference.
    """
    from matplotlib.ticker import MaxNLocator

    rows = table[table["difference"].notna()][::-1] if len(table) else table  # the first one on top
    if rows.empty:
        raise DataError("No difference to draw: no backbone was tested on the same images under both protocols.")
    metric, honest, leaky = (str(rows[name].iloc[0]) for name in ("metric", "honest", "leaky"))
    label = style.label_of(metric)
    figure = style.new_figure(9.2, 0.42 * len(rows) + 2.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
    values = rows[["value_honest", "value_leaky"]].to_numpy(float)
    left.hlines(range(len(rows)), *np.sort(values, axis=1).T, color="#C8C8C8", lw=1, zorder=1)
    # The first is larger, so that equal values are seen to be two.
    left.plot(values[:, 0], range(len(rows)), "o", color=style.HONEST_COLOUR, label=honest, markersize=9)
    left.plot(values[:, 1], range(len(rows)), "D", color=style.LEAKY_COLOUR, label=leaky, markersize=5)
    left.set_xlabel(label)
    style.add_legend(left, 2)
    colours = ["black" if kind == "backbone" else style.BASELINE_COLOUR for kind in rows["kind"]]
    right.axvline(0, color="black", lw=1)
    right.hlines(range(len(rows)), rows["low"], rows["high"], colors=colours, lw=1.5)
    for place, (difference, colour) in enumerate(zip(rows["difference"], colours, strict=True)):
        right.plot(difference, place, "o", color=colour, markersize=6)
        right.annotate(f"{difference:+.3f}", (1.02, place), xycoords=("axes fraction", "data"), va="center")
    right.set_xlabel(f"Difference: {leaky} minus {honest}", parse_math=False)
    right.xaxis.set_major_locator(MaxNLocator(5))
    left.set_yticks(range(len(rows)), rows["backbone"].tolist(), parse_math=False)
    left.set_ylim(-0.6, len(rows) - 0.3)
    for axes in (left, right):
        style.remove_frame(axes, "x")
        axes.margins(x=0.08)
    heading = f"{label} under {leaky}, beside {honest} on the same images"
    least, most = int(rows["images"].min()), int(rows["images"].max())
    images = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    line = f"line: interval over {_UNITS[rows['unit'].iloc[0]]}"
    line = line if style.has_intervals(rows) else f"no interval: {rows['reason'].iloc[0]}"
    note = f"On the {images} images that both have predicted. Right: {line}; grey: baselines; descriptive"
    style.add_titles(figure, f"{title}\n{heading}" if title else heading, note)
    return figure


def plot_samples(
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], labels: Sequence[str], columns: int = 6, title: str = ""
) -> Figure:
    """Return a grid of images with their labels above them.

    Args:
        images: uint8 (n, height, width, 3), or a sequence of images of any size.
        labels: One per image.
        columns: Images per row.
        title: Above the figure.

    Raises:
        DataError: If there are no images, or not a label for each.
        SettingsError: If columns is no whole number of at least 1.
    """
    columns = checks.whole_number("columns", columns, 1)
    if not len(images) or len(labels) != len(images):
        raise DataError(
            f"This draws images, each with a label. Received: {len(images)} images and {len(labels)} labels."
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = style.new_figure(1.5 * columns, 1.7 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, label in zip(panels, images, labels, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(label, fontsize="small", parse_math=False)
    style.add_titles(figure, title)
    return figure


def _comparison_panel(
    axes: Axes, frame: pd.DataFrame, order: Sequence[str], metric: str, intervals: pd.DataFrame | None
) -> None:
    highest = 0.0
    for position, name in enumerate(order):
        rows = frame[frame["backbone"] == name]
        values = rows[metric].to_numpy(float)
        values = values[np.isfinite(values)]
        value, low, high = (float(values.mean()) if len(values) else np.nan), np.nan, np.nan
        if intervals is not None:
            found = intervals[(intervals["metric"] == metric) & (intervals["backbone"] == name)]
            value, low, high = (*found[["value", "low", "high"]].to_numpy(float).tolist(), (value, low, high))[0]
        colour = style.BASELINE_COLOUR if rows["recipe"].isna().all() else style.NET_COLOUR
        axes.barh(position, value, height=0.6, color=colour, alpha=0.75)
        axes.plot(values, np.full(len(values), position), "o", color="black", markersize=3.5)
        axes.hlines(position, low, high, color="black", lw=1.2)
        end = float(np.nanmax([0, value, *values, high]))
        text = f"{value:.3f}" if np.isfinite(value) else "not defined"
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (end, position), fontsize="small", **place)  # type: ignore[arg-type]
        highest = max(highest, end)
    axes.set_xlabel(style.label_of(metric))
    axes.set_xlim(0, 1.18 if metric != "loss" and highest <= 1 else highest * 1.25)
    if metric != "loss":
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    style.remove_frame(axes, "x")


def _curves_panel(axes: Axes, trials: pd.DataFrame, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    curves = ((metric, "-o", style.TRAIN_COLOUR, "train"), (f"val_{metric}", "-s", style.VAL_COLOUR, "validation"))
    for column, marker, colour, label in curves:
        for number, (_, rows) in enumerate(trials.groupby("trial", sort=False)):
            if column in rows:
                look = {"color": colour, "markersize": 3.5, "lw": 1.5, "label": label if number == 0 else None}
                axes.plot(rows["epoch"], rows[column], marker, **look)  # type: ignore[arg-type]
    if _has_head_phase(trials):
        axes.axvline(float(trials.loc[trials["phase"] == "head", "epoch"].max()) + 0.5, ls=":", color="#555555", lw=1)
    style.remove_frame(axes)
    axes.set_xlim(0.5, float(trials["epoch"].max()) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if metric == "accuracy":
        axes.set_ylim(0, 1.03)
        return
    style.make_logarithmic(axes, "y")  # one bad epoch of one net would flatten all other curves on a linear axis


def _check_columns(frame: pd.DataFrame, columns: Sequence[str], source: str) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        raise DataError(f"This takes {source}, with a column {missing[0]}. Received: {', '.join(map(str, frame))}.")


def _has_head_phase(histories: pd.DataFrame) -> bool:
    """Return whether any net was trained in two phases."""
    return "phase" in histories and bool(histories.groupby("backbone")["phase"].nunique().max() > 1)
