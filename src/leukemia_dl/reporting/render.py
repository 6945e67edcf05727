"""Pages of one file: HTML and Markdown from templates, with images as data addresses and without folders' names."""

from __future__ import annotations

import base64
import io
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl.atomic import write_file
from leukemia_dl.errors import StoreError
from leukemia_dl.models import Explanation
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.text import counted, listed, printable

if TYPE_CHECKING:
    from jinja2 import Environment

# From a slash, a tilde or a drive, before which no part of a name stands, up to the last slash.
_SEGMENTS = r"""(?:[^\s'":;,()<>|/\\]+[/\\])"""
_FOLDERS = re.compile(rf"(?<![\w.:/\\<])(?:(?:~[\w.-]*|[A-Za-z]:)[/\\]{_SEGMENTS}*|[/\\]{_SEGMENTS}+)(?=[^\s/])")


def page(template: str, context: dict[str, Any]) -> str:
    """Return a page, HTML or Markdown (.md), in which markup and control characters of texts are escaped."""
    made = _environment(template.endswith(".md")).get_template(template)
    return made.render(context, version=installed_version(DISTRIBUTION))


def write(path: Path, content: str | bytes) -> Path:
    """Write a file of a report, and return its path; StoreError if that fails."""
    try:
        write_file(path, content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def data_address(kind: str, content: bytes) -> str:
    """Return the address of an image inside a page; the kind is such as "svg+xml"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def thumbnail(pixels: NDArray[np.uint8], most: int = 144) -> str:
    """Return an image, uint8 (height, width, 3), with sides of at most so many pixels, as a data address."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((most, most))
    image.save(buffer, format="PNG", optimize=True)
    return data_address("png", buffer.getvalue())


def overlays(explanation: Explanation) -> NDArray[np.uint8]:
    """Return images (n, size, size, 3) under their maps: bright colours where a pixel counts most."""
    from matplotlib import colormaps

    colours = 255 * colormaps["inferno"](explanation.maps)[..., :3]
    return np.asarray(0.45 * explanation.images + 0.55 * colours, np.uint8)


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, with None for missing values."""
    rows = table.to_dict("records")
    return [{str(key): None if pd.isna(value) else value for key, value in row.items()} for row in rows]


def one_line(text: Any) -> str:
    """Return a text in one line, in which the folders before names of files are "..."."""
    return _FOLDERS.sub(".../", " ".join(str(text).split()))


def settings_without_folders(text: str) -> str:
    """Return settings in which folders and files of the machine that they were made on are "..."."""
    hidden = re.sub(r'^(root|store|images_root) = ".*"$', r'\1 = "..."', text, flags=re.MULTILINE)
    # Up to the first slash only: with two `.*` the time would grow with the square of the number of slashes.
    weights = re.sub(r'^(\S+) = "[^/\\\n]*[/\\].*\.(h5|hdf5)"$', r'\1 = "..."', hidden, flags=re.MULTILINE)
    return _FOLDERS.sub(".../", weights)


def _shown(value: Any, form: str = ".3f") -> str:
    return "–" if value is None or value != value else format(value, form)


def _escaped(value: Any) -> str:
    text = " ".join(str(value).split()) or str(value)
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(text))


@cache
def _environment(markdown: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader(__package__), autoescape=not markdown, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
        finalize=_escaped if markdown else lambda value: printable(value) if isinstance(value, str) else value,
    )  # fmt: skip
    made.filters |= {"counted": counted, "listed": listed, "one_line": one_line, "rows": rows_of, "shown": _shown}
    return made
