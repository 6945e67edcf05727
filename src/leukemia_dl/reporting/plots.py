"""Plots of a benchmark's results, and what all plots share: the check of tables, figures, colours and labels.

Each plot returns a matplotlib Figure of no window; `figure.savefig(path)` keeps it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl import checks
from leukemia_dl.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which is distinguished with any colour vision and in grey print. Baselines are grey.
BLUE, ORANGE, BASELINE_COLOUR, NOTE_COLOUR = "#0072B2", "#D55E00", "#9A9A9A", "#555555"
_COLOURS, _MARKERS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"), "osD^vPX*"
_LABELS = {
    "auroc": "AUROC", "fit_seconds": "Seconds to train (mean of trials)", "loss": "Loss (cross-entropy, nats)",
    "images_per_second": "Images per second (predicting)", "weighted_f1": "Weighted F1",
}  # fmt: skip
_UNITS = {"group": "groups", "image": "images, taken as independent"}


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

    Raises DataError if no trial was finished, or a column is missing.
    """
    nothing = "No finished trial to draw: every row has a status other than 'ok'."
    frame = drawable(results, ["backbone", "recipe", "status", *metrics], nothing, "status == 'ok'")
    parts = by_protocol(frame)[::-1]  # from below
    orders = [part.groupby("backbone")[metrics[0]].mean().sort_values(kind="stable").index.tolist() for part in parts]
    frame, order = pd.concat(parts), [name for names in orders for name in names]
    by_name, places = frame.groupby("backbone"), range(len(order))
    colours = [BLUE if nets else BASELINE_COLOUR for nets in by_name["recipe"].count()[order]]
    note = "bar: mean over trials; dot: one trial; grey: baselines without a net"
    if intervals is not None:
        intervals = pd.concat(by_protocol(intervals, several=len(parts) > 1))
        line = f"line: its interval over {_UNITS[intervals['unit'].iloc[0]]}"
        line = line if has_intervals(intervals) else "no intervals: too few to estimate them"
        note = f"bar: all folds together, mean of seeds; {line}; dot: one trial; grey: baselines"
    note += "; protocols may have other test images: compare within one" if len(parts) > 1 else ""
    figure = new_figure(3.4 * len(metrics) + 1.2, 0.42 * len(order) + 1.9)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        bars = pd.DataFrame({"value": by_name[metric].mean(), "low": np.nan, "high": np.nan}).loc[order]
        if intervals is not None:
            found = intervals[intervals["metric"] == metric].set_index("backbone")[[*bars]]
            bars.loc[bars.index.isin(found.index)] = found.reindex(order)
        axes.barh(places, bars["value"], height=0.6, color=colours, alpha=0.75)
        axes.hlines(places, bars["low"], bars["high"], color="black", lw=1.2)
        axes.plot(frame[metric], frame["backbone"].map(order.index), "o", color="black", markersize=3.5)
        ends = bars[["value", "high"]].assign(dot=by_name[metric].max(), zero=0.0).max(axis=1)
        for place, (value, end) in enumerate(zip(bars["value"], ends, strict=True)):
            text = f"{value:.3f}" if np.isfinite(value) else "not defined"
            axes.annotate(text, (end, place), (6, 0), textcoords="offset points", va="center", fontsize="small")
        for border in np.cumsum([len(names) for names in orders])[:-1]:
            axes.axhline(border - 0.5, color=NOTE_COLOUR, lw=0.8)
        is_share = metric != "loss" and ends.max() <= 1
        label_axes(axes, "x", xlabel=label_of(metric), xlim=(0, 1.18 if is_share else ends.max() * 1.25))
        if metric != "loss":
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    panels[0].set_yticks(places, order)
    return finished(figure, title, note)


def plot_learning_curves(histories: pd.DataFrame, title: str = "") -> Figure:
    """Return a column per backbone: accuracy above loss over epochs, train against validation, a line per trial.

    `histories` is `Benchmark.histories()`; each of several protocols has its own columns. Validation is measured at the
    end of an epoch with BatchNorm statistics re-estimated; training is the running mean over the epoch, on augmented
    images. `title` stands above the figure. Raises DataError if there is no history, or a column is missing.
    """
    columns = ["trial", "backbone", "epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
    rows = pd.concat(by_protocol(drawable(histories, columns, "No learning curves to draw: no net was trained.")))
    parts = {str(name): trials for name, trials in rows.groupby("backbone", sort=False)}
    phases = rows["phase"] if "phase" in rows else pd.Series("full", rows.index)
    heads = rows[(phases == "head") & rows["backbone"].isin(rows["backbone"][phases == "full"])]
    ends = heads.groupby("backbone")["epoch"].max() + 0.5
    figure = new_figure(max(2.5 * len(parts) + 1.0, 7.5), 5.4)
    panels = figure.subplots(2, len(parts), sharex="col", sharey="row", squeeze=False)
    for (upper, lower), (name, trials) in zip(panels.T, parts.items(), strict=True):
        for axes, metric in ((upper, "accuracy"), (lower, "loss")):
            _draw_curves(axes, trials, metric, "-o", BLUE, "train")
            _draw_curves(axes, trials, f"val_{metric}", "-s", ORANGE, "validation")
            if name in ends:
                axes.axvline(ends[name], ls=":", color=NOTE_COLOUR, lw=1)
            label_axes(axes, xlim=(0.5, trials["epoch"].max() + 0.5))
            axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        last = trials.groupby("trial").tail(1)[["val_accuracy", "val_loss"]].mean()
        upper.set(ylim=(0, 1.03), title=f"{name}\nval {last['val_accuracy']:.3f} / {last['val_loss']:.3f}")
        lower.set_xlabel("Epoch")
        make_logarithmic(lower, "y")  # one bad epoch of one net would flatten all other curves on a linear axis
    panels[0, 0].set_ylabel("Accuracy")
    panels[1, 0].set_ylabel("Loss (nats, log scale)")
    panels[0, 0].legend(loc="lower right", frameon=False, fontsize="small")
    note = "above each column: validation accuracy / loss after the last epoch"
    note += "; dotted: the head alone before, every layer after" if len(heads) else ""
    return finished(figure, title, note)


def _draw_curves(axes: Axes, trials: pd.DataFrame, column: str, marker: str, colour: str, label: str) -> None:
    by_trial = trials.drop_duplicates(["trial", "epoch"]).pivot(index="epoch", columns="trial", values=column)
    lines = axes.plot(by_trial.index, by_trial, marker, color=colour, markersize=3.5, lw=1.5)
    lines[0].set_label(label)


def plot_inflation(table: pd.DataFrame, title: str = "") -> Figure:
    """Return the effect of a leaky protocol: each backbone's two values, and beside them their difference.

    Rows of `table`, `leukemia_dl.inflation(...)`, without a difference are left out; `title` stands above the figure.
    Raises DataError if no row has a difference, or a column is missing.
    """
    nothing = "No difference to draw: no backbone was tested on the same images under both protocols."
    columns = ["backbone", "kind", "value_honest", "value_leaky", "difference", "low", "high", "images"]
    facts = ["metric", "honest", "leaky", "unit", "reason"]
    rows = drawable(table, [*columns, *facts], nothing, "difference == difference")[::-1]  # the first one on top
    metric, honest, leaky, unit, reason = rows[facts].iloc[0]
    label, places = label_of(metric), range(len(rows))
    figure = new_figure(9.2, 0.42 * len(rows) + 2.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
    left.hlines(places, rows["value_honest"], rows["value_leaky"], color="#C8C8C8", lw=1, zorder=1)
    # The first is larger, so that equal values are seen to be two.
    left.plot(rows["value_honest"], places, "o", color=BLUE, label=honest, markersize=9)
    left.plot(rows["value_leaky"], places, "D", color=ORANGE, label=leaky, markersize=5)
    left.set_yticks(places, rows["backbone"])
    add_legend(left, 2)
    colours = ["black" if kind == "backbone" else BASELINE_COLOUR for kind in rows["kind"]]
    right.axvline(0, color="black", lw=1)
    right.hlines(places, rows["low"], rows["high"], colors=colours, lw=1.5)
    for place, difference, colour in zip(places, rows["difference"], colours, strict=True):
        right.plot(difference, place, "o", color=colour, markersize=6)
        right.annotate(f"{difference:+.3f}", (1.02, place), xycoords=("axes fraction", "data"), va="center")
    right.locator_params(axis="x", nbins=5, steps=[1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10])
    for axes, xlabel in ((left, label), (right, f"Difference: {leaky} minus {honest}")):
        label_axes(axes, "x", xlabel=xlabel, xmargin=0.08, ylim=(-0.6, len(rows) - 0.3))
    heading = f"{label} under {leaky}, beside {honest} on the same images"
    images = " to ".join(f"{count:,}" for count in sorted({rows["images"].min(), rows["images"].max()}))
    line = f"line: interval over {_UNITS[unit]}" if has_intervals(rows) else f"no interval: {reason}"
    note = f"On the {images} images that both have predicted. Right: {line}; grey: baselines; descriptive"
    return finished(figure, f"{title}\n{heading}" if title else heading, note)


def plot_samples(
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], labels: Sequence[str], columns: int = 6, title: str = ""
) -> Figure:
    """Return a grid of `images` with their `labels` above them, so many `columns` wide, with a `title` above it.

    Images are uint8 (n, height, width, 3), or a sequence of images of any size. Raises DataError if there are no
    images, or not a label for each, and SettingsError if columns is no whole number of at least 1.
    """
    columns, count = checks.whole_number("columns", columns, 1), len(images)
    if not count or len(labels) != count:
        raise DataError(f"This draws images, each with a label. Received: {count} images and {len(labels)} labels.")
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(1.5 * columns, 1.7 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, label in zip(panels, images, labels, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(label, fontsize="small")
    return finished(figure, title)


def plot_cost(leaderboard: pd.DataFrame, cost: str = "fit_seconds", ax: Axes | None = None, title: str = "") -> Figure:
    """Return accuracy against cost: a dot with an interval per backbone, over seconds, parameters or speed.

    `leaderboard` is `leukemia_dl.leaderboard(...)`, with results and timings; `cost` is its column "fit_seconds",
    "parameters", "images_per_second", or one that you added; a backbone whose cost is no number above 0 is left out.
    `ax` are the axes to draw on, None for a new figure, above which `title` stands. Raises DataError if no backbone is
    left, or a column is missing.
    """
    metric = str(next(iter(leaderboard.columns[4:]), "accuracy"))
    nothing = f"No cost to draw: of no backbone {metric} and a {cost} above 0 are known. Pass results and timings."
    known = drawable(leaderboard, ["backbone", "kind", "low", "high", metric, cost], nothing)
    known = known[known[metric].notna()]
    costs = pd.to_numeric(known[cost], errors="coerce").replace(np.inf, np.nan)
    nets = drawable(known.assign(_cost=costs), [], nothing, "kind == 'backbone' and _cost > 0")
    figure, axes = axes_for(ax, 7.4, 4.4)
    looks = looks_of(nets["backbone"])
    small: dict[str, Any] = {"textcoords": "offset points", "fontsize": "small"}
    for name, x, value, low, high in nets[["backbone", "_cost", metric, "low", "high"]].itertuples(index=False):
        axes.vlines(x, low, high, color=looks[name]["color"], lw=1.5)
        axes.plot(x, value, markersize=8, **looks[name])
        axes.annotate(name, (x, value), (8, -3), **small)
    corner: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "color": NOTE_COLOUR}
    for name, value in known.loc[known["kind"] == "baseline", ["backbone", metric]].itertuples(index=False):
        axes.axhline(value, color=BASELINE_COLOUR, ls="--", lw=1)
        axes.annotate(name, (1, value), (0, 3), **corner, **small)
    make_logarithmic(axes, "x")
    label_axes(axes, xlabel=f"{label_of(cost)}, log scale", ylabel=label_of(metric), xmargin=0.2)
    line = "line: interval; " if has_intervals(nets) else ""
    return finished(figure, title, f"{line}dashed: baselines without a net", ax)


def drawable(table: pd.DataFrame, columns: Iterable[str], nothing: str, kept: str = "") -> pd.DataFrame:
    """Return the rows of a table that a query keeps; DataError if a column is missing, or `nothing` if none is kept."""
    missing = ", ".join(repr(name) for name in columns if name not in table)
    if missing and len(table):
        raise DataError(f"The table to draw has no column {missing}. Its columns: {', '.join(map(str, table))}.")
    rows = table.query(kept) if kept and len(table) else table
    if rows.empty:
        raise DataError(nothing)
    return rows


def by_protocol(frame: pd.DataFrame, several: bool = False) -> list[pd.DataFrame]:
    """Return the rows of each protocol, with the protocol in the names of backbones if there are several."""
    if "protocol" not in frame or not (several or frame["protocol"].nunique() > 1):
        return [frame]
    parts = frame.groupby("protocol", sort=False)
    return [rows.assign(backbone=[f"{one} [{name}]" for one in rows["backbone"]]) for name, rows in parts]


def has_intervals(table: pd.DataFrame) -> bool:
    """Return whether any row of a table has an interval."""
    return bool(table["low"].notna().any())


def label_of(column: str) -> str:
    """Return a metric or a cost as axes name it."""
    return _LABELS.get(column, column.replace("_", " ").capitalize())


def looks_of(names: Iterable[str], baselines: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each name, in their order; an eighth name gets the first colour again."""
    colours, markers, grey = itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), set(baselines)
    looks = zip(names, markers, strict=False)
    return {name: {"color": BASELINE_COLOUR if name in grey else next(colours), "marker": one} for name, one in looks}


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of that size in inches, which belongs to no window and which notebooks show."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    # Notebooks would print its name otherwise, since pyplot is not imported.
    figure._repr_png_ = functools.partial(image_of, figure)  # type: ignore[attr-defined]
    return figure


def axes_for(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Return the figure and axes to draw on: the given axes, or new ones."""
    figure: Any = new_figure(width, height) if ax is None else ax.get_figure(root=True)
    return figure, figure.subplots() if ax is None else ax


def label_axes(axes: Axes, grid: Literal["both", "x", "y"] = "both", **settings: Any) -> None:
    """Set labels and limits of axes, remove their upper and right edge, and put a faint grid behind the data."""
    axes.set(**settings)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25)
    axes.set_axisbelow(True)


def make_logarithmic(axes: Axes, name: Literal["x", "y"]) -> None:
    """Give an axis a logarithmic scale with ticks at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator

    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter("")


def add_legend(axes: Axes, columns: int) -> None:
    """Put a legend above axes."""
    axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize="small")


def finished(figure: Figure, title: str, note: str = "", ax: Axes | None = None) -> Figure:
    """Return a figure with a title above and a note below it, unless `ax` were given; names are no formulas."""
    from matplotlib.text import Text

    wide = figure.get_figwidth()  # in inches, in which there are about 12 letters of a title, 15 of a note
    both = ((int(12 * wide), title), (int(15 * wide), note))
    title, note = ("\n".join(textwrap.fill(line, most) for line in text.split("\n")) for most, text in both)
    if title and ax is None:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    if note and ax is None:
        figure.supxlabel(note, x=0.01, ha="left", fontsize="small", color=NOTE_COLOUR)
    texts: list[Any] = figure.findobj(Text)
    fonts = _fonts_for(frozenset(ord(c) for text in texts for c in text.get_text() if ord(c) > 127))
    for text in texts:
        text.set_parse_math(False)  # such as "$x_$"
        text.set_fontfamily([*text.get_fontfamily(), *fonts])
    return figure


@functools.cache
def _fonts_for(characters: frozenset[int]) -> list[str]:
    from matplotlib.font_manager import FontProperties, findfont, fontManager
    from matplotlib.ft2font import FT2Font

    found, missing = list[str](), characters - FT2Font(findfont(FontProperties())).get_charmap().keys()
    for path, name in sorted({(font.fname, font.name) for font in fontManager.ttflist if font.style == "normal"}):
        with contextlib.suppress(OSError, RuntimeError):  # deleted, or not a font
            if missing and "Last Resort" not in name and (known := missing & FT2Font(path).get_charmap().keys()):
                found, missing = [*found, name], missing - known
    return found


def image_of(figure: Figure, form: Literal["png", "svg"] = "png") -> bytes:
    """Return the content of an image file of a figure, equal for equal figures."""
    import matplotlib

    buffer = io.BytesIO()
    # matplotlib would draw names of clips in an SVG at random, and write the time.
    with matplotlib.rc_context({"svg.hashsalt": "leukemia_dl", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=form, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
