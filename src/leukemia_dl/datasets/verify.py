"""Whether the files of a data set are the published ones: lists of SHA-256, and the comparison with one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.datasets.cache import tried_hashes, user_path
from leukemia_dl.datasets.table import TEXT
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import is_system_file
from leukemia_dl.text import printable

__all__ = ["STATUSES", "VerifyReport", "read_manifest", "verify"]

STATUSES = ("ok", "missing", "extra", "changed", "unreadable")
_HEADER = "sha256\tsize\tpath"
_LINE = re.compile(r"([0-9a-fA-F]{64})(?:\t([0-9]{1,18})\t| [ *])(?:\./)?(.+)", re.DOTALL)
_FORBIDDEN = re.compile(r"(^|/)(\.{0,2}(/|$))|^[A-Za-z]:|[\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHOWN = 10


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Return a row per file of a list: `path` (relative, with `/`), `sha256` (lower case), `size` (bytes or NA).

    Args:
        path: A text file of lines `hash  path` as `sha256sum` writes them, or of a header `sha256<TAB>size<TAB>path`
            and such lines.

    Raises:
        DataError: If it cannot be read, or a line is malformed, repeats a path or could lead out of a folder.
    """
    path = user_path(path, "manifest")
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The manifest {path} cannot be read as a text file in UTF-8: {error}.") from error
    files: dict[str, tuple[str, int | None]] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line or (number == 1 and line == _HEADER):
            continue
        match = _LINE.fullmatch(line)
        name = match[3] if match else ""
        if match is None or _FORBIDDEN.search(name) or name in files:
            raise DataError(
                f"{path}, line {number} is not allowed: {line[:200]!r}. Wanted: `hash  path` or `hash<TAB>size<TAB>"
                "path`; each path once, relative, with `/`, no `..`, backslash, drive letter or control characters."
            )
        files[name] = (match[1].lower(), int(match[2]) if match[2] else None)
    if not files:
        raise DataError(f"There is no manifest {path}, or it lists no files. Pass a text file with lines `hash  path`.")
    frame = pd.DataFrame([(name, *known) for name, known in files.items()], columns=["path", "sha256", "size"])
    return frame.astype({"path": TEXT, "sha256": TEXT, "size": "Int64"})


@dataclass(frozen=True, eq=False, repr=False)
class VerifyReport:
    """The result of `verify`.

    Attributes:
        root: The folder that the manifest's paths start from.
        files: A row per file of the manifest, then per extra file: `path`, `status` (one of `STATUSES`), `detail`.
        partial: Whether missing files are allowed.
    """

    root: Path
    files: pd.DataFrame
    partial: bool = False

    @property
    def ok(self) -> bool:
        """Whether at least one file was compared, and nothing is wrong; if `partial`, a missing file is not wrong."""
        return self.counts["ok"] > 0 and self._wrong.empty

    @property
    def counts(self) -> dict[str, int]:
        """The number of files of each status."""
        return {status: int((self.files["status"] == status).sum()) for status in STATUSES}

    @property
    def _wrong(self) -> pd.DataFrame:
        return self.files[~self.files["status"].isin(["ok", "missing"] if self.partial else ["ok"])]

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {status}" for status, count in self.counts.items() if count or status == "ok")
        lines = [f"{'OK' if self.ok else 'NOT OK'}: {counts} in {self.root}"]
        for path, status, detail in self._wrong.head(_SHOWN).itertuples(index=False):
            lines.append(f"  {status:<10} {path}{f' ({detail})' if detail else ''}")
        lines += [f"  and {len(self._wrong) - _SHOWN:,} more"] * (len(self._wrong) > _SHOWN)
        return "\n".join(printable(line, kept="") for line in lines)


def verify(root: str | Path, manifest: str | Path, show_progress: bool = True, partial: bool = False) -> VerifyReport:
    """Return how the files of a data set compare with a manifest: sizes first, then SHA-256 where these are equal.

    Args:
        root: The folder that the manifest's paths start from, or the one folder that all of them start with. Nothing
            outside it is read, also not through links. Hidden and system files in it are never extra.
        manifest: See `read_manifest`.
        show_progress: Whether to show progress.
        partial: Whether files may be missing.

    Raises:
        DataError: If the manifest is malformed, or the root holds none of its folders.
    """
    root = Path(os.path.normpath(user_path(root, "root")))  # resolve() would follow a link and lose its name
    expected = read_manifest(manifest).set_index("path")
    tops = sorted({name.split("/")[0] if "/" in name else "." for name in expected.index})
    inside = os.path.join(os.path.realpath(root), "")  # noqa: PTH118
    base = root.parent if tops == [root.name] and not (root / root.name).is_dir() else root
    if not any(os.path.exists(base / top) for top in tops):  # noqa: PTH110 - a closed folder is no error
        raise DataError(f"{root} holds none of {', '.join(tops[:3])}. Pass the folder that the manifest begins with.")
    files = {str(name): _look(base / str(name), size, inside) for name, size in expected["size"].items()}
    to_hash = [name for name, (status, _) in files.items() if status == "ok"]
    for name, content in zip(to_hash, tried_hashes([str(base / n) for n in to_hash], show_progress), strict=True):
        if isinstance(content, DataError):
            files[name] = ("unreadable", str(content))
        elif content != expected.at[name, "sha256"]:
            files[name] = ("changed", "same size, other content")
    for folder, inner, names in (step for top in tops for step in os.walk(base / top)):
        inner[:] = sorted(name for name in inner if not is_system_file(name))
        for name in sorted(names):
            if not is_system_file(name):
                files.setdefault(Path(folder, name).relative_to(base).as_posix(), ("extra", ""))
    rows = [(name, *found) for name, found in files.items()]
    return VerifyReport(base, pd.DataFrame(rows, columns=["path", "status", "detail"], dtype=TEXT), partial)


def _look(path: Path, size: Any, inside: str) -> tuple[str, str]:
    """Return status and detail of a file as far as known without reading it; "ok" means that it may be read."""
    if not os.path.realpath(path).startswith(inside):
        return "unreadable", "a link leads out of the root; it was not followed"
    try:
        found = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return "missing", ""
    except OSError:
        return "ok", ""  # reading it will say why not
    return ("ok", "") if size is pd.NA or found == size else ("changed", f"{found:,} bytes instead of {size:,}")
