"""Whether the files of a data set are the published ones: a list of SHA-256, and the comparison with it."""

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

__all__ = ["VerifyReport", "read_manifest", "verify"]

_STATUSES = ["ok", "missing", "extra", "changed", "unreadable"]
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
_FORBIDDEN = re.compile(r"(^|/)(\.{0,2}(/|$))|^[A-Za-z]:|[\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHOWN = 10


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Return a row per file of a list: `path` (relative, with `/`) and `sha256` (lower case).

    The file `path` has lines `hash  path`, as of `sha256sum`. DataError if a line is malformed, repeats a path or
    could lead out of a folder.
    """
    files: dict[str, str] = {}
    lines = user_path(path, "manifest").read_text("utf-8-sig", "surrogateescape").split("\n")
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match and not _FORBIDDEN.search(match[2]) and match[2] not in files:
            files[match[2]] = match[1].lower()
        elif line:
            raise DataError(
                f"{path}, line {number} is not allowed: {line[:200]!r}. Wanted: `hash  path`, as sha256sum writes it; "
                "each path once, relative, with `/`, no `..`, backslash, drive letter or control characters."
            )
    if not files:
        raise DataError(f"{path} names no file.")
    return pd.DataFrame(files.items(), columns=["path", "sha256"], dtype=TEXT)


@dataclass(frozen=True, eq=False, repr=False)
class VerifyReport:
    """The result of `verify`.

    Attributes:
        root: The folder that the manifest's paths start from.
        files: A row per file of the manifest, then per extra file: `path`, `detail`, and `status` ("ok", "missing",
            "extra", "changed" or "unreadable").
        partial: Whether missing files are allowed.
    """

    root: Path
    files: pd.DataFrame
    partial: bool = False

    @property
    def ok(self) -> bool:
        """Whether at least one file was compared, and nothing is wrong; if `partial`, a missing file is not wrong."""
        counts = self.counts
        return counts["ok"] > 0 and not any(counts[status] for status in _STATUSES[1 + self.partial :])

    @property
    def counts(self) -> dict[str, int]:
        """The number of files of each status."""
        return {status: int((self.files["status"] == status).sum()) for status in _STATUSES}

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {status}" for status, count in self.counts.items() if count or status == "ok")
        wrong = self.files[~self.files["status"].isin(_STATUSES[: 1 + self.partial])]
        lines = [f"{'OK' if self.ok else 'NOT OK'}: {counts} in {self.root}"]
        for path, status, detail in wrong.head(_SHOWN).itertuples(index=False):
            lines.append(f"  {status:<10} {path}{f' ({detail})' if detail else ''}")
        lines += [f"  and {len(wrong) - _SHOWN:,} more"] * (len(wrong) > _SHOWN)
        return "\n".join(printable(line, kept="") for line in lines)


def verify(root: str | Path, manifest: str | Path, show_progress: bool = True, partial: bool = False) -> VerifyReport:
    """Return how the files of a data set compare with a `manifest`, see `read_manifest`.

    Its paths start from `root`, or from the folder above it; nothing outside is read, also not through links. Hidden
    and system files are never extra. If `partial`, files may be missing. `show_progress` shows a bar. DataError: there
    is no such folder, or the list names no file.
    """
    root = Path(os.path.normpath(user_path(root, "root")))  # resolve() would follow a link and lose its name
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    expected: dict[Any, str] = read_manifest(manifest).set_index("path")["sha256"].to_dict()
    tops = sorted({name.split("/")[0] if "/" in name else "." for name in expected})
    base = root.parent if tops == [root.name] and not (root / root.name).is_dir() else root
    inside = os.path.join(os.path.realpath(root), "")  # noqa: PTH118
    files = dict.fromkeys(expected, ("unreadable", "a link leads out of the root; it was not followed"))
    to_read = [name for name in files if os.path.realpath(base / name).startswith(inside)]
    found = tried_hashes([str(base / name) for name in to_read], show_progress)
    for name, content in zip(to_read, found, strict=True):
        if isinstance(content, DataError):
            gone = isinstance(content.__cause__, (FileNotFoundError, NotADirectoryError))
            files[name] = ("missing", "") if gone else ("unreadable", str(content))
        else:
            files[name] = ("ok" if content == expected[name] else "changed", "")
    for folder, inner, names in (step for top in tops for step in os.walk(base / top)):
        inner[:] = sorted(name for name in inner if not is_system_file(name))
        for name in sorted(name for name in names if not is_system_file(name)):
            files.setdefault(Path(folder, name).relative_to(base).as_posix(), ("extra", ""))
    rows = [(name, *status) for name, status in files.items()]
    return VerifyReport(base, pd.DataFrame(rows, columns=["path", "status", "detail"], dtype=TEXT), partial)
