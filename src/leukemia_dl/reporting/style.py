"""Colours, fonts, labels and the frame of every figure."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "add_legend", "add_titles", "axes_for", "by_protocol", "has_intervals", "label_of", "looks_of",
    "make_logarithmic", "new_figure", "plot", "png", "remove_frame",
]  # fmt: skip

_P = ParamSpec("_P")
# Okabe and Ito's palette, which is distinguished with any colour vision and in grey print. Baselines are grey.
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
BASELINE_COLOUR, NOTE_COLOUR = "#9A9A9A", "#555555"
_MARKERS = "osD^vPX*"
_CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, "#000000")
_LABELS = {
    "auroc": "AUROC",
    "fit_seconds": "Seconds to train (mean of trials)",
    "images_per_second": "Images per second (predicting)",
    "loss": "Loss (cross-entropy, nats)",
    "weighted_f1": "Weighted F1",
}


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of that size in inches, which belongs to no window and which notebooks show."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    # Notebooks would print its name otherwise, since pyplot is not imported.
    figure._repr_png_ = functools.partial(png, figure)  # type: ignore[attr-defined]
    return figure


def png(figure: Figure) -> bytes:
    """Return the content of a PNG file of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def plot(function: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Return a function whose figure shows names as they are: not parsed as formulas, in fonts that have them."""

    @functools.wraps(function)
    def drawn(*args: _P.args, **settings: _P.kwargs) -> Figure:
        import matplotlib
        from matplotlib.text import Text

        with matplotlib.rc_context({"text.parse_math": False}):
            figure = function(*args, **settings)
        texts: list[Any] = figure.findobj(Text)
        fonts = _fonts_for(frozenset(c for text in texts for c in text.get_text() if ord(c) > 127))
        for text in texts:
            text.set_parse_math(False)  # those of the caller's own axes too
            if fonts:
                text.set_fontfamily([*text.get_fontfamily(), *fonts])
        return figure

    return drawn


@cache
def _fonts_for(characters: frozenset[str]) -> list[str]:
    """Return installed fonts for the characters that the default font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager
    from matplotlib.ft2font import FT2Font

    default, found = FT2Font(findfont(FontProperties())), list[str]()
    missing = {c for c in characters if not default.get_char_index(ord(c))}
    for path, name in sorted({(font.fname, font.name) for font in fontManager.ttflist if font.style == "normal"}):
        if not missing or name == default.family_name or "Last Resort" in name:
            continue
        with contextlib.suppress(OSError, RuntimeError):  # deleted, or not a font
            font = FT2Font(path)
            if known := {c for c in missing if font.get_char_index(ord(c))}:
                found, missing = [*found, name], missing - known
    return found


def axes_for(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Return the figure and axes to draw on: the given axes, or new ones."""
    if ax is None:
        figure = new_figure(width, height)
        return figure, figure.subplots()
    owner: Any = ax.get_figure(root=True)
    return owner, ax


def add_titles(figure: Figure, title: str, note: str = "") -> None:
    """Write a title above a figure and a note below it, both from its left edge."""
    letters = int(15 * figure.get_figwidth())  # at these sizes a letter is about a 15th of an inch wide
    title, note = ("\n".join(textwrap.fill(line, letters) for line in text.split("\n")) for text in (title, note))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize="small", color=NOTE_COLOUR)


def add_legend(axes: Axes, columns: int, **settings: Any) -> None:
    """Put a legend above axes."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False, "fontsize": "small"}
    axes.legend(ncols=columns, **place, **settings)


def remove_frame(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Remove the upper and right edge of axes, and put a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25)
    axes.set_axisbelow(True)


def make_logarithmic(axes: Axes, name: Literal["x", "y"]) -> None:
    """Give an axis a logarithmic scale with ticks at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def label_of(column: str) -> str:
    """Return a metric or a cost as axes name it."""
    return _LABELS.get(column, column.replace("_", " ").capitalize())


def looks_of(names: Iterable[str], baselines: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each name, in their order; an eighth name gets the first colour again."""
    colours, grey = itertools.cycle(_CYCLE), set(baselines)
    return {
        name: {"color": BASELINE_COLOUR if name in grey else next(colours), "marker": marker}
        for name, marker in zip(names, itertools.cycle(_MARKERS), strict=False)
    }


def has_intervals(table: pd.DataFrame) -> bool:
    """Return whether any row of a table has an interval."""
    return bool(table["low"].notna().any())


def by_protocol(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of each protocol, with the protocol in the names of backbones if there are several."""
    if "protocol" not in frame or frame["protocol"].nunique() < 2:
        return [frame]
    parts = frame.groupby("protocol", sort=False)
    return [rows.assign(backbone=[f"{one} [{name}]" for one in rows["backbone"]]) for name, rows in parts]
