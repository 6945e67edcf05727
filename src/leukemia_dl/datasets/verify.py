"""Whether the files of a data set are the published ones: lists of SHA-256, and the comparison with one."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.columns import TEXT
from leukemia_dl.datasets.hashes import tried_hashes
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
    """Read a list of files and hashes.

    Args:
        path: A text file of lines `hash  path` as `sha256sum` writes them, or of a header `sha256<TAB>size<TAB>path`
            and such lines.

    Returns:
        A row per file: `path` (relative, with `/`), `sha256` (64 lower-case digits), `size` (Int64, bytes or NA).

    Raises:
        DataError: If it cannot be read, or a line is malformed, repeats a path or could lead out of a folder.
    """
    path = user_path(path, "manifest")
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The manifest {path} cannot be read as a text file in UTF-8: {error}.") from error
    files: dict[str, tuple[str, int | None]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line == _HEADER):
            continue
        match = _LINE.fullmatch(line)
        name = match[3] if match else ""
        if match is None or _FORBIDDEN.search(name) or name in files:
            raise DataError(
                f"{path}, line {number} is not allowed: {line[:200]!r}. Wanted: `hash  path` or "
                "`hash<TAB>size<TAB>path`; each path once, relative, with `/`, no `..`, backslash, "
                "drive letter or control characters."
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
        files: A row per file of the manifest, in its order, then per extra file: `path` (str, as in the manifest),
            `status` ("ok", "missing", "extra", "changed" or "unreadable") and `detail` (str, may be empty).
        partial: Whether missing files are allowed.
    """

    root: Path
    files: pd.DataFrame
    partial: bool = False

    @property
    def ok(self) -> bool:
        """Whether at least one file was compared, and nothing is wrong; if `partial`, a missing file is not wrong."""
        counts = self.counts
        return counts["ok"] > 0 and len(self.files) == counts["ok"] + self.partial * counts["missing"]

    @property
    def counts(self) -> dict[str, int]:
        """The number of files of each status."""
        found = Counter(self.files["status"])
        return {status: found[status] for status in STATUSES}

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {status}" for status, count in self.counts.items() if count or status == "ok")
        lines = [f"{'OK' if self.ok else 'NOT OK'}: {counts} in {self.root}"]
        wrong = self.files[~self.files["status"].isin(["ok", "missing"] if self.partial else ["ok"])]
        for path, status, detail in wrong.head(_SHOWN).itertuples(index=False):
            lines.append(f"  {status:<10} {path}{f' ({detail})' if detail else ''}")
        if len(wrong) > _SHOWN:
            lines.append(f"  and {len(wrong) - _SHOWN:,} more")
        return "\n".join(printable(line, kept="") for line in lines)


def verify(root: str | Path, manifest: str | Path, show_progress: bool = True, partial: bool = False) -> VerifyReport:
    """Compare the files of a data set with a manifest: sizes first, then SHA-256 where these are equal.

    Args:
        root: The folder that the manifest's paths start from, or the one folder that all of them start with. Nothing
            outside it is read, also not through links.
        manifest: See `read_manifest`.
        show_progress: Whether to show progress.
        partial: Whether files may be missing.

    Returns:
        The report, also with extra files in the folders that the manifest names, except hidden and system files.

    Raises:
        DataError: If the manifest is malformed, the root holds none of its folders, or a folder cannot be listed.
    """
    root = Path(os.path.normpath(user_path(root, "root")))  # resolve() would follow a link and lose its name
    listed = read_manifest(manifest).set_index("path")
    tops = sorted({name.split("/")[0] if "/" in name else "." for name in listed.index})
    inside = os.path.join(os.path.realpath(root), "")  # noqa: PTH118
    base = root.parent if tops == [root.name] and not (root / root.name).is_dir() else root
    if not any(os.path.exists(base / top) for top in tops):  # noqa: PTH110 - a closed folder is no error
        raise DataError(f"{root} holds none of {', '.join(tops[:3])}. Pass the folder that the manifest begins with.")
    files = {str(name): _look(base / str(name), size, inside) for name, size in listed["size"].items()}
    to_hash = [name for name, (status, _) in files.items() if status == "ok"]
    for name, content in zip(to_hash, tried_hashes([str(base / n) for n in to_hash], show_progress), strict=True):
        if isinstance(content, DataError):
            files[name] = ("unreadable", str(content))
        elif content != listed.at[name, "sha256"]:
            files[name] = ("changed", "same size, other content")
    files |= {name: ("extra", "") for name in _files_in(base, ["."] if "." in tops else tops) if name not in files}
    rows = [(name, *found) for name, found in files.items()]
    return VerifyReport(base, pd.DataFrame(rows, columns=["path", "status", "detail"], dtype=TEXT), partial)


def _files_in(base: Path, tops: list[str]) -> Iterator[str]:
    """Yield the files in folders of `base`, except system files, as paths below it."""

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot list {error.filename}: {error.strerror}. Check its permissions.")

    there = [base / top for top in tops if (base / top).is_dir()]
    for folder, inner, names in chain.from_iterable(os.walk(top, onerror=refuse) for top in there):
        inner[:] = sorted(name for name in inner if not is_system_file(name))
        kept = [name for name in sorted(names) if not is_system_file(name)]
        yield from (Path(folder, name).relative_to(base).as_posix() for name in kept)


def _look(path: Path, size: object, inside: str) -> tuple[str, str]:
    """Return status and detail of a file as far as known without reading it; "ok" means that it may be read."""
    try:
        if not os.path.realpath(path).startswith(inside):
            return "unreadable", "a link leads out of the root; it was not followed"
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "missing", ""
    except (OSError, ValueError) as error:
        return "unreadable", str(getattr(error, "strerror", None) or error)
    if not stat.S_ISREG(status.st_mode):
        return "unreadable", "no regular file"
    if size is not pd.NA and status.st_size != size:
        return "changed", f"{status.st_size:,} bytes instead of {size:,}"
    return "ok", ""
