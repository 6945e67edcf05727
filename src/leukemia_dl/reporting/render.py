"""Pages of one file: HTML and Markdown from templates, with figures and images as data addresses inside."""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl.atomic import write_file
from leukemia_dl.errors import StoreError
from leukemia_dl.text import counted, listed, printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

__all__ = [
    "Code", "render_html", "render_markdown", "rows_of", "settings_without_folders", "svg", "thumbnail",
    "without_folders", "write",
]  # fmt: skip

_THUMBNAIL = 144
# From a slash, a tilde or a drive, before which no part of a name stands, up to the last slash.
_SEGMENTS = r"""(?:[^\s'":;,()<>|/\\]+[/\\])"""
_FOLDERS = re.compile(rf"(?<![\w.:/\\<])(?:(?:~[\w.-]*|[A-Za-z]:)[/\\]{_SEGMENTS}*|[/\\]{_SEGMENTS}+)(?=[^\s/])")


class Code(str):
    """Text for a block of code, where Markdown is not escaped."""


def render_html(template: str, context: dict[str, Any]) -> str:
    """Return a page in which markup and control characters of texts are escaped, with its style and script inside."""
    parts = {name: _resource(f"report.{name}") for name in ("css", "js")}
    return _environment().get_template(template).render(**context, parts=parts)


def render_markdown(template: str, context: dict[str, Any]) -> str:
    """Return a page in Markdown, in which markup and control characters of texts are escaped."""
    return _environment(markdown=True).get_template(template).render(**context)


def write(path: Path, content: str | bytes) -> Path:
    """Write a file of a report, and return its path; StoreError if that fails."""
    try:
        write_file(path, content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def svg(figure: Figure) -> str:
    """Return a figure as a data address, equal for equal figures."""
    import matplotlib

    buffer = io.BytesIO()
    # matplotlib would draw names of clips at random, and write the time.
    with matplotlib.rc_context({"svg.hashsalt": "leukemia_dl", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _address("image/svg+xml", buffer.getvalue())


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 (height, width, 3), with its longer side scaled to 144 pixels, as a data address."""
    image = Image.fromarray(pixels)
    size = [max(_THUMBNAIL * side // max(image.size), 1) for side in image.size]
    small = max(image.size) < _THUMBNAIL
    image = image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return _address("image/png", buffer.getvalue())


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, with None for missing values."""
    rows = table.to_dict("records")
    return [{str(key): None if pd.isna(value) else value for key, value in row.items()} for row in rows]


def without_folders(text: str) -> str:
    """Return a text in which the folders before names of files are "..."."""
    return _FOLDERS.sub(".../", text)


def settings_without_folders(text: str) -> str:
    """Return settings in which folders and files of the machine that they were made on are "..."."""
    hidden = re.sub(r'^(root|store|images_root) = ".*"$', r'\1 = "..."', text, flags=re.MULTILINE)
    # Up to the first slash only: with two `.*` the time would grow with the square of the number of slashes.
    weights = re.sub(r'^(\S+) = "[^/\\\n]*[/\\].*\.(h5|hdf5)"$', r'\1 = "..."', hidden, flags=re.MULTILINE)
    return without_folders(weights)


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _shown(value: Any, form: str = ".3f") -> str:
    return "–" if value is None or value != value else format(value, form)


def _escaped(value: Any) -> Any:
    if isinstance(value, Code):
        return printable(value.replace("```", "'''"))
    text = " ".join(str(value).split()) if isinstance(value, str) and value.strip() else str(value)
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(text))


@cache
def _environment(markdown: bool = False) -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(
        loader=FunctionLoader(_resource),
        autoescape=not markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_escaped if markdown else lambda value: printable(value) if isinstance(value, str) else value,
    )
    made.filters |= {"counted": counted, "listed": listed, "shown": _shown}
    return made


@cache
def _resource(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")
