"""Pages of one file: templates with everything inside, figures and images as data of their own."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl.reporting.style import TRAIN_COLOUR, VAL_COLOUR
from leukemia_dl.text import printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

__all__ = [
    "Raw", "Sketch", "anchor", "as_text", "plain_rows", "render", "render_markdown", "settings_without_paths", "svg",
    "thumbnail", "without_paths",
]  # fmt: skip

_THUMBNAIL = 144
# From a slash, a tilde or a drive, before which no part of a name stands, up to the last slash.
_SEGMENTS = r"""(?:[^\s'":;,()<>|/\\]+[/\\])"""
_FOLDERS = re.compile(rf"(?<![\w.:/\\<])(?:(?:~[\w.-]*|[A-Za-z]:)[/\\]{_SEGMENTS}*|[/\\]{_SEGMENTS}+)(?=[^\s/])")
# So that equal figures are equal files: matplotlib would draw names of clips at random, and write the time.
_SVG: dict[str, Any] = {"format": "svg", "metadata": {"Date": None, "Creator": None}}


def render(template: str, context: dict[str, Any]) -> str:
    """Return a page: a template of `templates`, in which markup and control characters of texts are escaped.

    Style and script are inside, and the page's policy names them by their SHA-256: no other script runs in it, and
    nothing is fetched.
    """
    parts = {name: _resource(f"report.{name}") for name in ("css", "js")}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in parts.items()}
    return _environment().get_template(template).render(**context, parts=parts, hashes=hashes)


class Raw(str):
    """Text that stands in a block of code, where nothing is to be escaped."""


def render_markdown(template: str, context: dict[str, Any]) -> str:
    """Return a page in Markdown, in which markup and control characters of texts are escaped."""
    return _environment(markdown=True).get_template(template).render(**context)


def svg(figure: Figure) -> str:
    """Return a figure as a data address."""
    return _address("image/svg+xml", _drawn(figure))


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 (height, width, 3), made small, as a data address."""
    image = Image.fromarray(pixels)
    if max(image.size) < _THUMBNAIL:
        image = image.resize(
            [_THUMBNAIL * side // max(image.size) or 1 for side in image.size], Image.Resampling.NEAREST
        )
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return _address("image/png", buffer.getvalue())


class Sketch:
    """Draws learning curves as small as a stamp; the figure is made once."""

    def __init__(self) -> None:
        """Make the figure."""
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(2.0, 1.25), dpi=100)
        self._axes = self._figure.subplots()
        self._figure.subplots_adjust(left=0.2, right=0.97, top=0.95, bottom=0.22)

    def __call__(self, history: pd.DataFrame) -> str:
        """Return accuracy over epochs, train and validation, as a data address."""
        axes = self._axes
        axes.clear()
        for column, colour in (("accuracy", TRAIN_COLOUR), ("val_accuracy", VAL_COLOUR)):
            if column in history:
                style = "o-" if len(history) == 1 else "-"
                axes.plot(history["epoch"], history[column], style, color=colour, lw=1.2, markersize=3)
        last = float(history["epoch"].max())
        axes.set(ylim=(0, 1.02), xlim=(min(1.0, last - 0.5), max(last, 1.5)), yticks=[0, 0.5, 1], xticks=[1, last])
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        return _address("image/svg+xml", _drawn(self._figure))


def anchor(name: str) -> str:
    """Return a name that may stand in an address."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "part"


def as_text(value: Any, form: str = ".3f") -> str:
    """Return a number as it is shown; a dash for what is not known."""
    if value is None or value != value:
        return "–"
    return format(value, form)


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, with None for missing values."""
    rows = table.to_dict("records")
    return [{str(key): None if pd.isna(value) else value for key, value in row.items()} for row in rows]


def without_paths(text: str) -> str:
    """Return a text in which names of files are left, and the folders of this machine before them are not."""
    return _FOLDERS.sub(".../", text)


def settings_without_paths(text: str) -> str:
    """Return settings in which folders and files of the machine that they were made on are `...`: pages are sent."""
    hidden = re.sub(r'^(root|store|files) = ".*"$', r'\1 = "..."', text, flags=re.MULTILINE)
    # Up to the first slash only: with two `.*` the time would grow with the square of the number of slashes.
    weights = re.sub(r'^(\S+) = "[^/\\\n]*[/\\].*\.(h5|hdf5)"$', r'\1 = "..."', hidden, flags=re.MULTILINE)
    return without_paths(weights)


def _drawn(figure: Figure) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "leukemia_dl", "svg.fonttype": "path"}):
        figure.savefig(buffer, **_SVG)
    return buffer.getvalue()


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _escaped(value: Any) -> Any:
    if isinstance(value, Raw):
        return printable(value.replace("```", "'''"))
    text = " ".join(str(value).split()) if isinstance(value, str) and value.strip() else str(value)
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(text))


@cache
def _environment(markdown: bool = False) -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(
        loader=FunctionLoader(_resource), autoescape=not markdown, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
        finalize=_escaped if markdown else lambda value: printable(value) if isinstance(value, str) else value,
    )  # fmt: skip
    made.filters |= {"shown": as_text, "anchor": anchor}
    return made


@cache
def _resource(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")
