"""Plots of a benchmark. Each returns a matplotlib Figure that belongs to no window; `figure.savefig(path)` keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.checks import whole_number
from leukemia_dl.errors import DataError
from leukemia_dl.reporting.style import (
    FLOOR_COLOUR,
    HONEST_COLOUR,
    LABELS,
    LEAKY_COLOUR,
    NET_COLOUR,
    TRAIN_COLOUR,
    VAL_COLOUR,
    bare,
    by_protocol,
    ends_of,
    has_intervals,
    head,
    legend_above,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_comparison", "plot_inflation", "plot_learning_curves", "plot_samples"]


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
    _needs(results, ("backbone", "status", "recipe", *metrics), "Benchmark.results()")
    frame = results[results["status"] == "ok"]
    if frame.empty:
        raise DataError("No finished trial to draw: every row has a status other than 'ok'.")
    parts = by_protocol(frame)[::-1]  # from below
    orders = [part.groupby("backbone")[metrics[0]].mean().sort_values(kind="stable").index.tolist() for part in parts]
    frame, order = pd.concat(parts), [name for names in orders for name in names]
    figure = new_figure(3.4 * len(metrics) + 1.2, 0.42 * len(order) + 1.9)
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    spans = None if intervals is None else pd.concat(by_protocol(intervals))
    for axes, metric in zip(panels, metrics, strict=True):
        _comparison_panel(axes, frame, order, metric, spans)
        for border in np.cumsum([len(names) for names in orders])[:-1]:
            axes.axhline(border - 0.5, color="#555555", lw=0.8)
    panels[0].set_yticks(range(len(order)), order, parse_math=False)
    note = "bar: mean over trials; dot: one trial; grey: floors that no net was needed for"
    if spans is not None:
        unit = "groups" if "low" in spans else "images, taken as independent"
        line = f"line: its interval over {unit}" if has_intervals(spans) else "no intervals: too few to estimate them"
        note = f"bar: all folds together, mean of seeds; {line}; dot: one trial; grey: floors"
    if len(parts) > 1:
        note += "; protocols may have other test images: compare within one"
    head(figure, title, note)
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
    if len(histories):
        _needs(histories, ("trial", "backbone", "epoch", "accuracy", "loss"), "Benchmark.histories()")
    if histories.empty:
        raise DataError("No learning curves to draw: no net was trained.")
    histories = pd.concat(by_protocol(histories))
    names = list(dict.fromkeys(histories["backbone"]))
    figure = new_figure(max(2.5 * len(names) + 1.0, 7.5), 5.4)
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
    if _phases(histories) > 1:
        note += "; dotted: the head alone before, every layer after"
    head(figure, title, note)
    return figure


def plot_inflation(table: pd.DataFrame, title: str = "") -> Figure:
    """Return what a protocol that leaks adds: each backbone's two values, and beside them their difference.

    Args:
        table: `leukemia_dl.inflation(...)`; rows without a difference are left out.
        title: Above the figure, before what is compared.

    Raises:
        DataError: If no row has a difference.
    """
    from matplotlib.ticker import MaxNLocator

    rows = table[table["difference"].notna()][::-1] if len(table) else table  # the first one on top
    if rows.empty:
        raise DataError("No difference to draw: no backbone was tested on the same images under both protocols.")
    metric, honest, leaky = (str(rows[name].iloc[0]) for name in ("metric", "honest", "leaky"))
    label = LABELS.get(metric, metric.replace("_", " "))
    figure = new_figure(9.2, 0.42 * len(rows) + 2.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
    places = np.arange(len(rows))
    values, differences = rows[["value_honest", "value_leaky"]].to_numpy(float), rows["difference"].to_numpy(float)
    left.hlines(places, *np.sort(values, axis=1).T, color="#C8C8C8", lw=1, zorder=1)
    for column, (name, colour, marker) in enumerate(((honest, HONEST_COLOUR, "o"), (leaky, LEAKY_COLOUR, "D"))):
        # The first is larger, so that equal values are seen to be two.
        left.plot(values[:, column], places, marker, color=colour, label=name, markersize=9 - 4 * column)
    left.set_xlabel(label)
    legend_above(left, 2)
    floors = (rows["kind"] == "baseline").to_numpy(bool)
    ends = rows[[*ends_of(rows)]].to_numpy(float)
    right.axvline(0, color="black", lw=1)
    right.hlines(places, ends[:, 0], ends[:, 1], colors=np.where(floors, FLOOR_COLOUR, "black").tolist(), lw=1.5)
    for place, difference, floor in zip(places, differences, floors, strict=True):
        right.plot(difference, place, "o", color=FLOOR_COLOUR if floor else "black", markersize=6)
        right.annotate(f"{difference:+.3f}", (1.02, place), xycoords=("axes fraction", "data"), va="center")
    right.set_xlabel(f"Difference: {leaky} minus {honest}", parse_math=False)
    right.xaxis.set_major_locator(MaxNLocator(5))
    left.set_yticks(places, rows["backbone"].tolist(), parse_math=False)
    left.set_ylim(-0.6, len(rows) - 0.3)
    for axes in (left, right):
        bare(axes, "x")
        axes.margins(x=0.08)
    what = f"{label} under {leaky}, beside {honest} on the same images"
    units = "groups" if "low" in rows else "images, taken as independent"
    counts = sorted({int(count) for count in rows["images"]})
    on = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    line = f"line: interval over {units}"
    if not has_intervals(rows):
        line = f"no interval: {rows['reason'].iloc[0]}"
    note = f"On the {on} images that both have predicted. Right: {line}; grey: floors; descriptive"
    head(figure, f"{title}\n{what}" if title else what, note)
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
    columns = whole_number("columns", columns, 1)
    if not len(images) or len(labels) != len(images):
        raise DataError(
            f"This draws images, each with a label. Received: {len(images)} images and {len(labels)} labels."
        )
    columns = min(int(columns), len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(1.5 * columns, 1.7 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, label in zip(panels, images, labels, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(label, fontsize="small", parse_math=False)
    head(figure, title, "")
    return figure


def _comparison_panel(
    axes: Axes, frame: pd.DataFrame, order: Sequence[str], metric: str, spans: pd.DataFrame | None
) -> None:
    highest = 0.0
    for position, name in enumerate(order):
        rows = frame[frame["backbone"] == name]
        values = rows[metric].to_numpy(dtype=float)
        values = values[np.isfinite(values)]
        value, low, high = (float(values.mean()) if len(values) else np.nan), np.nan, np.nan
        if spans is not None:
            found = spans.loc[(spans["metric"] == metric) & (spans["backbone"] == name), ["value", *ends_of(spans)]]
            value, low, high = found.to_numpy(float)[0].tolist() if len(found) else (value, low, high)
        floor = bool(rows["recipe"].isna().all())
        axes.barh(position, value, height=0.6, color=FLOOR_COLOUR if floor else NET_COLOUR, alpha=0.75)
        axes.plot(values, np.full(len(values), position), "o", color="black", markersize=3.5)
        axes.hlines(position, low, high, color="black", lw=1.2)
        reach = np.array([value, *values, high])
        if not np.isfinite(reach).any():
            axes.annotate("not defined", (0, position), xytext=(6, 0), textcoords="offset points", va="center")
            continue
        end = float(np.nanmax(reach))
        highest = max(highest, end)
        axes.annotate(
            f"{value:.3f}", (end, position), xytext=(6, 0), textcoords="offset points", va="center", fontsize="small"
        )
    axes.set_xlabel(LABELS.get(metric, metric))
    axes.set_xlim(0, 1.18 if metric != "loss" and highest <= 1 else highest * 1.25)
    if metric != "loss":
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    bare(axes, "x")


def _curves_panel(axes: Axes, trials: pd.DataFrame, metric: str) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

    first = True
    for _, rows in trials.groupby("trial", sort=False):
        for column, colour, name in ((metric, TRAIN_COLOUR, "train"), (f"val_{metric}", VAL_COLOUR, "validation")):
            if column in rows:
                style = "-o" if column == metric else "-s"
                label = name if first else None
                axes.plot(rows["epoch"], rows[column], style, color=colour, markersize=3.5, lw=1.5, label=label)
        first = False
    if _phases(trials) > 1:
        axes.axvline(float(trials.loc[trials["phase"] == "head", "epoch"].max()) + 0.5, ls=":", color="#555555", lw=1)
    bare(axes)
    axes.set_xlim(0.5, float(trials["epoch"].max()) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if metric == "accuracy":
        axes.set_ylim(0, 1.03)
    else:
        # One bad epoch of one net would flatten all other curves on a linear axis.
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _needs(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        raise DataError(f"This takes {what}, with a column {missing[0]}. Received: {', '.join(map(str, frame))}.")


def _phases(histories: pd.DataFrame) -> int:
    return int(histories.groupby("backbone")["phase"].nunique().max()) if "phase" in histories else 1
