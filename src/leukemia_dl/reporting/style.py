"""What all plots share: colours that are told apart with any colour vision and in grey print, and a figure's frame."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from leukemia_dl.notebook import for_notebooks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure

__all__ = [
    "LABELS", "bare", "by_protocol", "colours_of", "ends_of", "figure_of", "grid_of", "has_intervals", "head",
    "legend_above", "new_figure",
]  # fmt: skip

_log = logging.getLogger(__name__)
_warned: set[str] = set()
# Okabe and Ito's palette. Floors are grey, so that they recede.
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
NET_COLOUR, FLOOR_COLOUR, TRAIN_COLOUR, VAL_COLOUR = BLUE, "#9A9A9A", BLUE, ORANGE
HONEST_COLOUR, LEAKY_COLOUR = BLUE, ORANGE
_CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, "#000000")
LABELS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "loss": "Loss (cross-entropy, nats)",
    "weighted_f1": "Weighted F1",
    "auroc": "AUROC",
    "parameters": "Parameters",
    "fit_seconds": "Seconds to train (mean of trials)",
    "images_per_second": "Images per second (predicting)",
}


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of that size in inches that belongs to no window."""
    from matplotlib.figure import Figure

    figure = for_notebooks(Figure(figsize=(width, height), layout="constrained", dpi=130))
    figure.draw = functools.partial(_draw, figure)  # type: ignore[method-assign]
    return figure


def _draw(figure: Figure, renderer: RendererBase) -> None:
    """Draw a figure with fonts that have the characters of its texts, and without a warning for each of them."""
    from matplotlib.text import Text

    texts: list[Any] = figure.findobj(Text)
    found = _fonts_for("".join(sorted({c for text in texts for c in text.get_text() if ord(c) > 127})))
    for text in texts if found else ():
        text.set_fontfamily([name for name in text.get_fontfamily() if name not in found] + found)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        type(figure).draw(figure, renderer)


@cache
def _fonts_for(characters: str) -> list[str]:
    """Return installed fonts for the characters that the usual font lacks; log those that no font has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager
    from matplotlib.ft2font import FT2Font

    usual, missing, found = FT2Font(findfont(FontProperties())), set(characters), list[str]()
    missing -= {c for c in missing if usual.get_char_index(ord(c))}
    for path, name, style in sorted({(font.fname, font.name, font.style) for font in fontManager.ttflist}):
        if not missing or style != "normal" or name == usual.family_name or "Last Resort" in name:
            continue
        with contextlib.suppress(OSError, RuntimeError):  # deleted, or not a font
            font = FT2Font(path)
            if known := {c for c in missing if font.get_char_index(ord(c))}:
                found, missing = [*found, name], missing - known
    if missing:
        script = unicodedata.name(min(missing), "unnamed").split()[0]
        if script not in _warned:
            _log.warning("No installed font has %s characters: figures show boxes in their place. Install one.", script)
        _warned.add(script)
    if found:  # a missing font weight needs no warning
        logging.getLogger("matplotlib.font_manager").addFilter(lambda record: "font weight" not in record.getMessage())
    return found


def figure_of(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Return the figure and axes to draw on: those given, or new ones."""
    from matplotlib.figure import Figure

    if ax is None:
        figure = new_figure(width, height)
        return figure, figure.subplots()
    owner = ax.get_figure(root=True)
    assert isinstance(owner, Figure)
    return owner, ax


def grid_of(names: Sequence[str], side: float = 2.5, extra: float = 0.9) -> tuple[Figure, list[Axes]]:
    """Return a figure with a titled panel for each name, up to five in a row, which share their axes."""
    columns = min(len(names), 5)
    rows = -(-len(names) // columns)
    figure = new_figure(max(side * columns + 0.6, 6.4), side * rows + extra)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for panel in panels[len(names) :]:
        panel.axis("off")
    for panel in panels[max(len(names) - columns, 0) : len(names)]:
        panel.tick_params(labelbottom=True)  # also where no panel is below
    for panel, name in zip(panels, names, strict=False):
        panel.set_title(name, fontsize="medium", parse_math=False)
    return figure, panels[: len(names)]


def head(figure: Figure, title: str, note: str = "") -> None:
    """Write a title above a figure and a note below it, both from its left edge."""
    # At these sizes a letter is about a 15th of an inch wide.
    title, note = ("\n".join(textwrap.fill(line, int(15 * figure.get_figwidth())) for line in text.split("\n"))
                   for text in (title, note))  # fmt: skip
    keywords: dict[str, Any] = {"x": 0.01, "ha": "left", "parse_math": False}
    if title:
        figure.suptitle(title, fontsize="medium", fontweight="bold", **keywords)
    if note:
        figure.supxlabel(note, fontsize="small", color="#555555", **keywords)


def legend_above(axes: Axes, columns: int, **settings: Any) -> None:
    """Put a legend above axes; names in it are never parsed as formulas."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False, "fontsize": "small"}
    for text in axes.legend(ncols=columns, **place, **settings).get_texts():
        text.set_parse_math(False)


def bare(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Take away what carries no information, and put a faint grid behind the rest."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25)
    axes.set_axisbelow(True)


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name, in their order; an eighth one gets the first colour again."""
    return dict(zip(names, itertools.cycle(_CYCLE), strict=False))


def ends_of(table: pd.DataFrame) -> tuple[str, str]:
    """Return the columns of an interval: of groups, or of images where nothing is known of subjects."""
    return ("low", "high") if "low" in table else ("low_image_level", "high_image_level")


def has_intervals(table: pd.DataFrame) -> bool:
    """Return whether any row of a table has an interval."""
    return bool(table[ends_of(table)[0]].notna().any())


def by_protocol(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of each protocol, which backbones are then named with: nothing is to be averaged over them."""
    if "protocol" not in frame or frame["protocol"].nunique() < 2:
        return [frame]
    parts = frame.groupby("protocol", sort=False)
    return [rows.assign(backbone=[f"{one} [{name}]" for one in rows["backbone"]]) for name, rows in parts]
