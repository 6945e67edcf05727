"""Plots of predictions: how well a backbone ranks, what it mixes up, how far its probabilities hold, where it errs.

Each takes a prediction frame, `Benchmark.predictions()` or anybody's, of one protocol, and returns a matplotlib Figure.
Averaged predictions are left out: they have the backbone's own beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import (
    class_names_of,
    evaluate,
    group_table,
    precision_recall_curves,
    reliability_curves,
    roc_curves,
)
from leukemia_dl.evaluation.predictions import PREFIX, models_of, select_side, tidy
from leukemia_dl.reporting.style import (
    FLOOR_COLOUR,
    LABELS,
    NET_COLOUR,
    bare,
    colours_of,
    ends_of,
    figure_of,
    grid_of,
    has_intervals,
    head,
    legend_above,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_confusion", "plot_cost", "plot_errors_by_size", "plot_precision_recall", "plot_reliability", "plot_roc",
    "plot_subjects",
]  # fmt: skip

_MOST_WRITTEN, _MANY_DOTS = 6, 2_000
_MARKERS = "osD^vPX*"


def plot_roc(predictions: pd.DataFrame, title: str = "", *, level: float = 0.95, side: str = "test") -> Figure:
    """Return a panel per backbone: its ROC curve with a pointwise band over groups, the others in grey behind it.

    Args:
        predictions: The prediction frame, see `leukemia_dl.evaluate`.
        title: Above the figure.
        level: Of the bands.
        side: Which rows of the column `side`.

    Raises:
        DataError: If the frame is not one of predictions.
    """
    frame = _shown(predictions)
    return _ranked(frame, roc_curves(frame, level=level, side=side), "auroc", title, level, side)


def plot_precision_recall(
    predictions: pd.DataFrame, title: str = "", *, level: float = 0.95, side: str = "test"
) -> Figure:
    """Return a panel per backbone: precision over recall, as `plot_roc`; dotted: the share of the positive class.

    Args:
        predictions: The prediction frame, see `leukemia_dl.evaluate`.
        title: Above the figure.
        level: Of the bands.
        side: Which rows of the column `side`.

    Raises:
        DataError: If the frame is not one of predictions.
    """
    frame = _shown(predictions)
    return _ranked(frame, precision_recall_curves(frame, level=level, side=side), "auprc", title, level, side)


def plot_confusion(predictions: pd.DataFrame, title: str = "", *, side: str = "test") -> Figure:
    """Return a panel per backbone: of the images of each class (a row), the share that is called each (a column).

    Args:
        predictions: The prediction frame, see `leukemia_dl.evaluate`. Folds and seeds are taken together.
        title: Above the figure.
        side: Which rows of the column `side`.

    Raises:
        DataError: If the frame is not one of predictions.
    """
    frame = _shown(predictions)
    names, chosen = class_names_of(frame), select_side(frame, side)
    models_of(frame, side)  # checks
    backbones = list(dict.fromkeys(chosen["backbone"]))
    longest = max(map(len, names))
    figure, panels = grid_of(backbones, 2.1 + 0.05 * min(longest, 20), 1.1 + 0.05 * min(longest, 20))
    k, image = len(names), None
    for panel, backbone in zip(panels, backbones, strict=True):
        rows = chosen[chosen["backbone"] == backbone]
        counts = np.zeros((k, k))
        true = pd.Index(names).get_indexer(pd.Index(rows["label"]))
        called = rows[[PREFIX + name for name in names]].to_numpy(float).argmax(axis=1)
        np.add.at(counts, (true, called), 1)
        with np.errstate(invalid="ignore"):
            shares = counts / counts.sum(axis=1, keepdims=True)
        image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        panel.set_xticks(range(k), names, rotation=90 if longest > 4 else 0, fontsize="small", parse_math=False)
        panel.set_yticks(range(k), names, fontsize="small", parse_math=False)
        for (row, column), share in np.ndenumerate(shares) if k <= _MOST_WRITTEN else ():
            text = f"{share:.2f}" if np.isfinite(share) else "none"
            colour = "white" if share > 0.5 else "black"
            panel.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
    if image is not None and k > _MOST_WRITTEN:
        figure.colorbar(image, ax=panels, label="Share of the class", shrink=0.7)
    figure.supylabel("Class", fontsize="medium")
    head(figure, title, "columns: class as predicted; each row sums to 1; folds and seeds together")
    return figure


def plot_reliability(predictions: pd.DataFrame, title: str = "", *, level: float = 0.95, side: str = "test") -> Figure:
    """Return a panel per backbone: how often it happens where a probability is said, in ten bins, with intervals.

    Args:
        predictions: The prediction frame, see `leukemia_dl.evaluate`.
        title: Above the figure.
        level: Of the intervals.
        side: Which rows of the column `side`.

    Raises:
        DataError: If the frame is not one of predictions.
    """
    frame = _shown(predictions)
    found, names = reliability_curves(frame, level=level, side=side), class_names_of(frame)
    backbones = list(dict.fromkeys(found["backbone"]))
    figure, panels = grid_of(backbones)
    for panel, backbone in zip(panels, backbones, strict=True):
        rows = found[found["backbone"] == backbone]
        shares = rows["predictions"] / rows["predictions"].sum()
        panel.bar(rows["x"], shares, width=0.06, color="#D0D0D0")
        panel.plot([0, 1], [0, 1], ":", color="black", lw=1)
        colour = FLOOR_COLOUR if (rows["kind"] == "baseline").all() else NET_COLOUR
        panel.vlines(rows["x"], rows["low"], rows["high"], color=colour, lw=1.2)
        panel.plot(rows["x"], rows["y"], "-o", color=colour, markersize=4, lw=1.2)
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        bare(panel)
    what = f"class {names[1]}" if len(names) == 2 else "the predicted class being right"
    figure.supylabel("Share in which it was so", fontsize="medium")
    line = f"line: {level:.0%} interval; " if has_intervals(found) else ""
    note = f"across: probability of {what}; dotted: as it should be; {line}grey: share of images"
    head(figure, title, note)
    return figure


def plot_subjects(predictions: pd.DataFrame, ax: Axes | None = None, title: str = "", *, side: str = "test") -> Figure:
    """Return a row per backbone with a dot per group of subjects: the share of its images that are classified right.

    Dots are as large as groups have images, and of their class's colour and form.

    Args:
        predictions: The prediction frame, see `leukemia_dl.evaluate`.
        ax: Axes to draw on; None for a figure of its own.
        title: Above the figure.
        side: Which rows of the column `side`.

    Raises:
        DataError: If nothing is known of subjects.
    """
    from matplotlib.lines import Line2D

    frame = _shown(predictions)
    table, names = group_table(frame, side), [*class_names_of(frame)]
    backbones = list(dict.fromkeys(table["backbone"]))[::-1]
    figure, axes = figure_of(ax, 8.4, 0.75 * len(backbones) + 1.6)
    looks = colours_of(names)
    random = np.random.default_rng(0)
    table["class"] = table["label"].where(table["label"].notna(), "several")
    largest = float(table["images"].max())
    handles = []
    for place, name in enumerate([*names, "several"]):
        rows = table[table["class"] == name]
        if rows.empty:
            continue
        down = rows["backbone"].map(backbones.index).to_numpy(float) + random.uniform(-0.28, 0.28, len(rows))
        look: dict[str, Any] = {"color": looks.get(name, FLOOR_COLOUR), "marker": _MARKERS[place % len(_MARKERS)]}
        dots: dict[str, Any] = {"alpha": 0.6, "lw": 0.5, "ec": "black", "rasterized": len(table) > _MANY_DOTS}
        axes.scatter(1 - rows["error_share"], down, 12 + 130 * rows["images"] / largest, **look, **dots)
        handles.append(Line2D([], [], ls="", label=name, **look))
    legend_above(axes, 6, handles=handles)
    axes.set_yticks(range(len(backbones)), backbones, parse_math=False)
    axes.set_xlabel("Share of a group's images that are classified right")
    axes.set_xlim(-0.03, 1.03)
    bare(axes, "x")
    counts = table.groupby("backbone")["images"].agg(["size", "min", "max"]).iloc[0]
    note = f"one dot: one group of subjects ({counts['size']:,}), as large as its number of images "
    if ax is None:
        head(figure, title, f"{note}({counts['min']:,} to {counts['max']:,}); seeds together")
    return figure


def plot_cost(leaderboard: pd.DataFrame, cost: str = "fit_seconds", ax: Axes | None = None, title: str = "") -> Figure:
    """Return what accuracy costs: a dot per backbone, with its interval, over seconds, parameters or speed.

    Args:
        leaderboard: `leukemia_dl.leaderboard(...)`, with results and timings.
        cost: "fit_seconds", "parameters", "images_per_second", or a column that you added.
        ax: Axes to draw on; None for a figure of its own.
        title: Above the figure.

    Raises:
        DataError: If the cost of no backbone is known, or one is no number above 0.
        SettingsError: If the leaderboard has no such column.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if cost not in leaderboard:
        raise SettingsError(
            f"cost is fit_seconds, parameters, images_per_second or a column that you added. Received: cost={cost!r}."
        )
    metric = str(leaderboard.columns[3])
    rows = leaderboard[(leaderboard["kind"] == "backbone") & leaderboard[cost].notna() & leaderboard[metric].notna()]
    if rows.empty:
        raise DataError(f"No cost to draw: of no backbone {metric} and {cost} are known. Pass results and timings.")
    costs = pd.to_numeric(rows[cost], errors="coerce").to_numpy(float)
    if not (np.isfinite(costs) & (costs > 0)).all():
        raise DataError(f"On a log scale costs are numbers above 0. Received: {cost} of {rows[cost].tolist()!r}.")
    figure, axes = figure_of(ax, 7.4, 4.4)
    colours = colours_of(rows["backbone"])
    low, high = (rows[end].to_numpy(float) for end in ends_of(rows))
    for place, (name, value) in enumerate(zip(rows["backbone"], rows[metric], strict=True)):
        axes.vlines(costs[place], low[place], high[place], color=colours[name], lw=1.5)
        axes.plot(costs[place], value, _MARKERS[place % len(_MARKERS)], color=colours[name], markersize=8)
        axes.annotate(
            name, (costs[place], value), xytext=(8, -3), textcoords="offset points", fontsize="small", parse_math=False
        )
    floors = leaderboard[(leaderboard["kind"] == "baseline") & leaderboard[metric].notna()]
    for name, value in zip(floors["backbone"], floors[metric], strict=True):
        axes.axhline(value, color=FLOOR_COLOUR, ls="--", lw=1)
        axes.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            ha="right", fontsize="small", color="#555555", parse_math=False,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.2)
    axes.set_xlabel(f"{LABELS.get(cost, cost)}, log scale")
    axes.set_ylabel(LABELS.get(metric, metric))
    bare(axes)
    if ax is None:
        line = "line: interval; " if has_intervals(rows) else ""
        head(figure, title, f"{line}dashed: floors that no net was needed for")
    return figure


def plot_errors_by_size(
    predictions: pd.DataFrame,
    ax: Axes | None = None,
    title: str = "",
    *,
    by: str = "cell_area",
    level: float = 0.95,
    side: str = "test",
) -> Figure:
    """Return the share of wrong predictions in quarters of the images, from the smallest cells to the largest.

    Args:
        predictions: The prediction frame with a column of sizes, `Benchmark.predictions(cell_area=True)`.
        ax: Axes to draw on; None for a figure of its own.
        title: Above the figure.
        by: The column.
        level: Of the intervals.
        side: Which rows of the column `side`.

    Raises:
        DataError: If the column is empty.
        SettingsError: If there is no such column.
    """
    frame = _shown(predictions)
    if by == "cell_area" and by not in frame:
        raise SettingsError("There is no column 'cell_area'. Benchmark.predictions(cell_area=True) has it.")
    found = evaluate(frame, metrics="accuracy", by=by, level=level, side=side)
    figure, axes = figure_of(ax, 7.4, 4.4)
    parts, backbones = list(dict.fromkeys(found[by])), list(dict.fromkeys(found["backbone"]))
    floors = set(frame.loc[frame["kind"] == "baseline", "backbone"])
    colours = colours_of(name for name in backbones if name not in floors) | dict.fromkeys(floors, FLOOR_COLOUR)
    for place, backbone in enumerate(backbones):
        rows = found[found["backbone"] == backbone]
        x = np.array([parts.index(part) for part in rows[by]]) + 0.07 * (place - (len(backbones) - 1) / 2)
        low, high = (rows[end].to_numpy(float) for end in ends_of(rows))
        axes.vlines(x, 1 - high, 1 - low, color=colours[backbone], lw=1.2)
        style = f"-{_MARKERS[place % len(_MARKERS)]}"
        axes.plot(x, 1 - rows["value"], style, color=colours[backbone], lw=1, markersize=5, label=backbone)
    axes.set_xticks(range(len(parts)), [_span(part) for part in parts])
    axes.set_xlabel("Area of the cell in pixels, quarters of the images" if by == "cell_area" else by, parse_math=False)
    axes.set_ylabel("Share of wrong predictions")
    axes.set_ylim(0, None)
    bare(axes, "y")
    legend_above(axes, 4)
    if ax is None:
        unit = "groups" if "low" in found else "images"
        line = f"line: {level:.0%} interval, where each class has five {unit}"
        head(figure, title, line if has_intervals(found) else f"no intervals: no part has five {unit} of each class")
    return figure


def _shown(predictions: pd.DataFrame) -> pd.DataFrame:
    frame = tidy(predictions)
    return frame[frame["kind"] != "tta"]


def _ranked(frame: pd.DataFrame, curves: pd.DataFrame, metric: str, title: str, level: float, side: str) -> Figure:
    names, kinds = class_names_of(frame), curves.drop_duplicates("backbone").set_index("backbone")["kind"]
    chosen = select_side(frame, side)
    areas = evaluate(frame, metrics=metric, level=level, side=side)
    figure, panels = grid_of(list(kinds.index), 2.5, 1.0)
    for panel, (backbone, kind) in zip(panels, kinds.items(), strict=True):
        for name, rows in curves.groupby("backbone", sort=False):
            if name != backbone:
                panel.plot(rows["x"], rows["y"], color="#D0D0D0", lw=0.7)
        rows = curves[curves["backbone"] == backbone]
        colour = FLOOR_COLOUR if kind == "baseline" else NET_COLOUR
        panel.fill_between(rows["x"], rows["low"], rows["high"], color=colour, alpha=0.25, lw=0)
        panel.plot(rows["x"], rows["y"], color=colour, lw=1.8)
        if metric == "auroc":
            panel.plot([0, 1], [0, 1], ":", color="black", lw=1)
        elif len(names) == 2:
            share = (chosen.loc[chosen["backbone"] == backbone, "label"] == names[1]).mean()
            panel.axhline(share, ls=":", color="black", lw=1)
        text = _with_interval(areas[areas["backbone"] == backbone])
        place: dict[str, Any] = {"transform": panel.transAxes, "fontsize": "small"}
        panel.text(0.97, 0.05, text, ha="right", va="bottom", bbox={"fc": "white", "alpha": 0.8, "lw": 0}, **place)
        panel.set(xlim=(0, 1), ylim=(0, 1.02))
        bare(panel)
    roc = metric == "auroc"
    positive = f"positive: {names[1]}" if len(names) == 2 else "mean of one class against the rest"
    figure.supylabel("Sensitivity" if roc else "Precision", fontsize="medium")
    across, area = ("false positive rate", "AUROC") if roc else ("recall", "average precision")
    band = f"; band: {level:.0%} at each point" if has_intervals(curves) else ""
    note = f"across: {across}; {positive}{band}; number: {area}"
    head(figure, title, note)
    return figure


def _with_interval(rows: pd.DataFrame) -> str:
    value, low, high = rows[["value", *ends_of(rows)]].to_numpy(float)[0].tolist()
    if np.isnan(value):
        return "not defined"
    return f"{value:.3f}" + (f"\n[{low:.3f}, {high:.3f}]" if np.isfinite([low, high]).all() else "")


def _span(part: object) -> str:
    """Return an interval of numbers as people write it."""
    try:
        low, high = (float(end) for end in str(part).strip("(]").split(","))
    except ValueError:
        return str(part)
    return f"{low:,.0f} to {high:,.0f}"
