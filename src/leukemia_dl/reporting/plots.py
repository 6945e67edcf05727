"""Plots of a benchmark's results. Each returns a matplotlib Figure of no window; `figure.savefig(path)` keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl import checks
from leukemia_dl.errors import DataError
from leukemia_dl.reporting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_comparison", "plot_cost", "plot_inflation", "plot_learning_curves", "plot_samples"]

_UNITS = {"group": "groups", "image": "images, taken as independent"}


@style.plot
def plot_comparison(
    results: pd.DataFrame,
    metrics: Sequence[str] = ("accuracy", "balanced_accuracy", "loss"),
    title: str = "",
    intervals: pd.DataFrame | None = None,
) -> Figure:
    """Return one panel per metric: a row per backbone or baseline, a dot per trial, a bar at their mean.

    `results` is `Benchmark.results()`; its rows with status "ok" are drawn, one protocol below the other. `metrics` are
    its columns to draw, `title` stands above the figure. With `intervals`, `leukemia_dl.evaluate(...)` (and a column
    `protocol` if there are several), bars are its values, which take the folds together, and lines its intervals.

    Raises:
        DataError: If no trial was finished.
    """
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
            axes.axhline(border - 0.5, color=style.NOTE_COLOUR, lw=0.8)
    panels[0].set_yticks(range(len(order)), order)
    note = "bar: mean over trials; dot: one trial; grey: baselines without a net"
    if known is not None:
        line = f"line: its interval over {_UNITS[known['unit'].iloc[0]]}"
        line = line if style.has_intervals(known) else "no intervals: too few to estimate them"
        note = f"bar: all folds together, mean of seeds; {line}; dot: one trial; grey: baselines"
    if len(parts) > 1:
        note += "; protocols may have other test images: compare within one"
    style.add_titles(figure, title, note)
    return figure


def _comparison_panel(
    axes: Axes, frame: pd.DataFrame, order: list[str], metric: str, intervals: pd.DataFrame | None
) -> None:
    by_name, places = frame.groupby("backbone"), range(len(order))
    bars = pd.DataFrame({"value": by_name[metric].mean(), "low": np.nan, "high": np.nan}).loc[order]
    if intervals is not None:
        found = intervals[intervals["metric"] == metric].set_index("backbone")[[*bars]]
        bars.loc[bars.index.isin(found.index)] = found.reindex(order)
    nets = by_name["recipe"].count()[order] > 0
    colours = [style.BLUE if net else style.BASELINE_COLOUR for net in nets]
    axes.barh(places, bars["value"], height=0.6, color=colours, alpha=0.75)
    axes.hlines(places, bars["low"], bars["high"], color="black", lw=1.2)
    highest = 0.0
    for place, (name, value, high) in zip(places, bars[["value", "high"]].itertuples(), strict=True):
        dots = frame.loc[frame["backbone"] == name, metric].dropna()
        axes.plot(dots, [place] * len(dots), "o", color="black", markersize=3.5)
        end = float(np.nanmax([0, value, *dots, high]))
        text = f"{value:.3f}" if np.isfinite(value) else "not defined"
        axes.annotate(text, (end, place), (6, 0), textcoords="offset points", va="center", fontsize="small")
        highest = max(highest, end)
    axes.set_xlabel(style.label_of(metric))
    axes.set_xlim(0, 1.18 if metric != "loss" and highest <= 1 else highest * 1.25)
    if metric != "loss":
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    style.remove_frame(axes, "x")


@style.plot
def plot_learning_curves(histories: pd.DataFrame, title: str = "") -> Figure:
    """Return a column per backbone: accuracy above loss over epochs, train against validation, a line per trial.

    `histories` is `Benchmark.histories()`; each of several protocols has its own columns. Validation is measured at the
    end of an epoch with BatchNorm statistics re-estimated; training is the running mean over the epoch, on augmented
    images. `title` stands above the figure.

    Raises:
        DataError: If there is no history.
    """
    if histories.empty:
        raise DataError("No learning curves to draw: no net was trained.")
    histories = pd.concat(style.by_protocol(histories))
    parts = {str(name): trials for name, trials in histories.groupby("backbone", sort=False)}
    figure = style.new_figure(max(2.5 * len(parts) + 1.0, 7.5), 5.4)
    panels = figure.subplots(2, len(parts), sharex="col", sharey="row", squeeze=False)
    for (upper, lower), (name, trials) in zip(panels.T, parts.items(), strict=True):
        _curves_panel(upper, trials, "accuracy")
        _curves_panel(lower, trials, "loss")
        upper.set_ylim(0, 1.03)
        style.make_logarithmic(lower, "y")  # one bad epoch of one net would flatten all other curves on a linear axis
        last = trials.groupby("trial").tail(1)
        upper.set_title(f"{name}\nval {last['val_accuracy'].mean():.3f} / {last['val_loss'].mean():.3f}")
        lower.set_xlabel("Epoch")
    panels[0, 0].set_ylabel("Accuracy")
    panels[1, 0].set_ylabel("Loss (nats, log scale)")
    panels[0, 0].legend(loc="lower right", frameon=False, fontsize="small")
    note = "above each column: validation accuracy / loss after the last epoch"
    if any(_has_head_phase(trials) for trials in parts.values()):
        note += "; dotted: the head alone before, every layer after"
    style.add_titles(figure, title, note)
    return figure


def _curves_panel(axes: Axes, trials: pd.DataFrame, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    curves = ((metric, "-o", style.BLUE, "train"), (f"val_{metric}", "-s", style.ORANGE, "validation"))
    for column, marker, colour, label in curves:
        for number, (_, rows) in enumerate(trials.groupby("trial", sort=False)):
            named = label if number == 0 else None
            axes.plot(rows["epoch"], rows[column], marker, color=colour, markersize=3.5, lw=1.5, label=named)
    if _has_head_phase(trials):
        end = float(trials.loc[trials["phase"] == "head", "epoch"].max()) + 0.5
        axes.axvline(end, ls=":", color=style.NOTE_COLOUR, lw=1)
    style.remove_frame(axes)
    axes.set_xlim(0.5, float(trials["epoch"].max()) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _has_head_phase(trials: pd.DataFrame) -> bool:
    """Return whether a net was trained in two phases."""
    return "phase" in trials and trials["phase"].nunique() > 1


@style.plot
def plot_inflation(table: pd.DataFrame, title: str = "") -> Figure:
    """Return the effect of a leaky protocol: each backbone's two values, and beside them their difference.

    Rows of `table`, `leukemia_dl.inflation(...)`, without a difference are left out; `title` stands above the figure.

    Raises:
        DataError: If no row has a difference.
    """
    from matplotlib.ticker import MaxNLocator

    rows = table[table["difference"].notna()][::-1] if len(table) else table  # the first one on top
    if rows.empty:
        raise DataError("No difference to draw: no backbone was tested on the same images under both protocols.")
    metric, honest, leaky = (str(rows[name].iloc[0]) for name in ("metric", "honest", "leaky"))
    label, places = style.label_of(metric), np.arange(len(rows))
    figure = style.new_figure(9.2, 0.42 * len(rows) + 2.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
    left.hlines(places, rows["value_honest"], rows["value_leaky"], color="#C8C8C8", lw=1, zorder=1)
    # The first is larger, so that equal values are seen to be two.
    left.plot(rows["value_honest"], places, "o", color=style.BLUE, label=honest, markersize=9)
    left.plot(rows["value_leaky"], places, "D", color=style.ORANGE, label=leaky, markersize=5)
    left.set_xlabel(label)
    style.add_legend(left, 2)
    colours = ["black" if kind == "backbone" else style.BASELINE_COLOUR for kind in rows["kind"]]
    right.axvline(0, color="black", lw=1)
    right.hlines(places, rows["low"], rows["high"], colors=colours, lw=1.5)
    for place, difference, colour in zip(places, rows["difference"], colours, strict=True):
        right.plot(difference, place, "o", color=colour, markersize=6)
        right.annotate(f"{difference:+.3f}", (1.02, place), xycoords=("axes fraction", "data"), va="center")
    right.set_xlabel(f"Difference: {leaky} minus {honest}")
    right.xaxis.set_major_locator(MaxNLocator(5))
    left.set_yticks(places, rows["backbone"].tolist())
    left.set_ylim(-0.6, len(rows) - 0.3)
    for axes in (left, right):
        style.remove_frame(axes, "x")
        axes.margins(x=0.08)
    heading = f"{label} under {leaky}, beside {honest} on the same images"
    images = " to ".join(f"{count:,}" for count in sorted({rows["images"].min(), rows["images"].max()}))
    line = f"line: interval over {_UNITS[rows['unit'].iloc[0]]}"
    line = line if style.has_intervals(rows) else f"no interval: {rows['reason'].iloc[0]}"
    note = f"On the {images} images that both have predicted. Right: {line}; grey: baselines; descriptive"
    style.add_titles(figure, f"{title}\n{heading}" if title else heading, note)
    return figure


@style.plot
def plot_samples(
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], labels: Sequence[str], columns: int = 6, title: str = ""
) -> Figure:
    """Return a grid of `images` with their `labels` above them, so many `columns` wide.

    Images are uint8 (n, height, width, 3), or a sequence of images of any size; `title` stands above the figure.

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
        axes.set_title(label, fontsize="small")
    style.add_titles(figure, title)
    return figure


@style.plot
def plot_cost(leaderboard: pd.DataFrame, cost: str = "fit_seconds", ax: Axes | None = None, title: str = "") -> Figure:
    """Return accuracy against cost: a dot with an interval per backbone, over seconds, parameters or speed.

    `leaderboard` is `leukemia_dl.leaderboard(...)`, with results and timings; `cost` is its column "fit_seconds",
    "parameters", "images_per_second", or one that you added. `ax` are the axes to draw on, None for a new figure, above
    which `title` stands.

    Raises:
        DataError: If the cost of no backbone is known, or one is no number above 0.
    """
    metric = str(leaderboard.columns[3])
    known = leaderboard[leaderboard[metric].notna()]
    nets, baselines = known[(known["kind"] == "backbone") & known[cost].notna()], known[known["kind"] == "baseline"]
    if nets.empty:
        raise DataError(f"No cost to draw: of no backbone {metric} and {cost} are known. Pass results and timings.")
    costs = pd.to_numeric(nets[cost], errors="coerce").to_numpy(float)
    if not (np.isfinite(costs) & (costs > 0)).all():
        raise DataError(f"On a log scale costs are numbers above 0. Received: {cost} of {nets[cost].tolist()!r}.")
    figure, axes = style.axes_for(ax, 7.4, 4.4)
    looks = style.looks_of(nets["backbone"])
    small: dict[str, Any] = {"textcoords": "offset points", "fontsize": "small"}
    values = nets[["backbone", metric, "low", "high"]].itertuples(index=False)
    for x, (name, value, low, high) in zip(costs, values, strict=True):
        axes.vlines(x, low, high, color=looks[name]["color"], lw=1.5)
        axes.plot(x, value, markersize=8, **looks[name])
        axes.annotate(name, (x, value), (8, -3), **small)
    corner: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "color": style.NOTE_COLOUR}
    for name, value in zip(baselines["backbone"], baselines[metric], strict=True):
        axes.axhline(value, color=style.BASELINE_COLOUR, ls="--", lw=1)
        axes.annotate(name, (1, value), (0, 3), **corner, **small)
    style.make_logarithmic(axes, "x")
    axes.margins(x=0.2)
    axes.set_xlabel(f"{style.label_of(cost)}, log scale")
    axes.set_ylabel(style.label_of(metric))
    style.remove_frame(axes)
    if ax is None:
        line = "line: interval; " if style.has_intervals(nets) else ""
        style.add_titles(figure, title, f"{line}dashed: baselines without a net")
    return figure
