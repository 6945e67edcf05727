"""Lists of a data set's files: text with the header `sha256<TAB>size<TAB>path`, or as `sha256sum` writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.columns import TEXT
from leukemia_dl.errors import DataError

__all__ = ["read_manifest"]

_HEADER = "sha256\tsize\tpath"
_TABBED = re.compile(r"([0-9a-fA-F]{64})\t([0-9]{1,18})\t(.+)", re.DOTALL)
_SUMMED = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_BYTES = 2**28  # 250 bytes for each of a million files


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read a list of files and hashes.

    Args:
        path: A file with the header `sha256<TAB>size<TAB>path`, or one as `sha256sum` writes it.

    Returns:
        A row per file: `path` (str, relative, with `/`), `sha256` (str, 64 lower-case digits), `size` (Int64, in
        bytes; NA if the manifest does not say).

    Raises:
        DataError: If it cannot be read, a line is malformed, or a path is absolute, climbs (`..`), repeats, holds a
            backslash, a drive letter or control characters. The message names the line.
    """
    path = user_path(path, "manifest")
    try:
        if not path.is_file():
            raise DataError(f"There is no manifest {path}. Pass a text file with lines `hash  path`.")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path} is no manifest: it is larger than {_MAX_BYTES // 2**20} MiB.")
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"Cannot read the manifest {path}: {error}.") from error
    tabbed = lines[0].removesuffix(b"\r") == _HEADER.encode()
    rows: dict[str, tuple[str, int | None]] = {}
    for number, raw in enumerate(lines[tabbed:], start=1 + tabbed):
        line = raw.removesuffix(b"\r")
        if line:
            name, digest, size = _read_line(line, tabbed, f"{path}, line {number}")
            if name in rows:
                raise DataError(f"{path}, line {number}: {name} is listed a second time.")
            rows[name] = (digest, size)
    if not rows:
        raise DataError(f"The manifest {path} lists no files.")
    digests, sizes = zip(*rows.values(), strict=True)
    columns = {
        "path": pd.array(list(rows), TEXT),
        "sha256": pd.array(digests, TEXT),
        "size": pd.array(sizes, "Int64"),
    }
    return pd.DataFrame(columns)


def _read_line(line: bytes, tabbed: bool, where: str) -> tuple[str, str, int | None]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {error.reason}. Rename the file, or leave the line out.") from error
    match = (_TABBED if tabbed else _SUMMED).fullmatch(text)
    if match is None:
        form = (
            "64 hexadecimal digits, tab, size in bytes, tab, path" if tabbed else "64 hexadecimal digits, blanks, path"
        )
        raise DataError(
            f"{where} is malformed. Allowed: {form}; a first line `sha256<TAB>size<TAB>path` if there are sizes. "
            f"Received: {text[:100]!r}."
        )
    name = match.groups()[-1].removeprefix("./")
    hostile = (
        "\\" in name
        or _CONTROL.search(name)
        or re.match(r"[A-Za-z]:", name)
        or any(part in ("", ".", "..") for part in name.split("/"))
    )
    if hostile:
        raise DataError(
            f"{where}: the path {name[:100]!r} is not allowed. A path is relative and inside the data set, with `/` "
            "between folders: no leading `/`, no `..`, no backslash, no drive letter, no control characters."
        )
    return name, match[1].lower(), int(match[2]) if tabbed else None
