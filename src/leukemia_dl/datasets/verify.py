"""Whether the files of a data set are the published ones: `verify` compares them with a manifest."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.columns import TEXT
from leukemia_dl.datasets.hashes import tried_hashes
from leukemia_dl.datasets.manifest import read_manifest
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import is_system_file
from leukemia_dl.text import printable

__all__ = ["STATUSES", "VerifyReport", "verify"]

STATUSES = ("ok", "missing", "extra", "changed", "unreadable")
_SHOWN = 10


class _File(NamedTuple):
    status: str
    detail: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class VerifyReport:
    """What `verify` found.

    Attributes:
        root: The folder that the manifest's paths start from; it may be one above or below the one that was given.
        files: A row per file of the manifest, in its order, then per extra file: `path` (str, as in the manifest),
            `status` ("ok", "missing", "extra", "changed" or "unreadable"), `detail` (such as "renamed to b.bmp"; "" if
            there is none).
        partial: Whether missing files are allowed.
    """

    root: Path
    files: pd.DataFrame
    partial: bool = False

    @property
    def ok(self) -> bool:
        """Whether at least one file was compared, and nothing is wrong: in a partial check, a missing file is not."""
        counts = self.counts
        wrong = len(self.files) - counts["ok"] - (counts["missing"] if self.partial else 0)
        return counts["ok"] > 0 and wrong == 0

    @property
    def counts(self) -> dict[str, int]:
        """The number of files of each status."""
        found = Counter(self.files["status"])
        return {status: found[status] for status in STATUSES}

    def __str__(self) -> str:
        said = ", ".join(f"{count:,} {status}" for status, count in self.counts.items() if count or status == "ok")
        lines = [f"{'OK' if self.ok else 'NOT OK'}: {said} in {printable(str(self.root), kept='')}"]
        told = self.files["status"] != "ok"
        if self.partial:  # thousands may be missing, and may be so; those that were renamed are still of interest
            told &= (self.files["status"] != "missing") | (self.files["detail"] != "")
        for path, status, detail in self.files[told].head(_SHOWN).astype(object).to_numpy():
            lines.append(f"  {status:<10} {printable(path, kept='')}{f' ({detail})' if detail else ''}")
        if told.sum() > _SHOWN:
            lines.append(f"  and {told.sum() - _SHOWN:,} more")
        return "\n".join(lines)


def verify(root: str | Path, manifest: str | Path, show_progress: bool = True, partial: bool = False) -> VerifyReport:
    """Compare the files of a data set with a manifest: sizes first, then SHA-256 where these are equal.

    Hashes are remembered until a file changes, so that an interrupted check goes on where it was.

    Args:
        root: The folder that the manifest's paths start from, or one above or below it. Nothing outside it is read,
            also not through links.
        manifest: See `read_manifest`.
        show_progress: Whether to tell how far it is.
        partial: Whether only some of the files need to be there.

    Returns:
        The report. Extra files are looked for in the folders that the manifest names; hidden and system files are
        skipped. A renamed file is missing under one name and extra under the other; both say so.

    Raises:
        DataError: If the manifest is malformed, the root is no folder, holds none of the manifest's folders, or one of
            its folders cannot be listed.
    """
    given = Path(os.path.normpath(user_path(root, "root")))  # resolve() would follow a link and lose its name
    listed = read_manifest(manifest)
    names: list[str] = list(listed["path"])
    base = _base(given, names)
    # Above the given folder lies what is not ours to look at, save for this folder itself.
    ours = f"{given.name}/" if base == given.parent != given else ""
    extras = _extras(base, names, ours)
    look = _looker(base, os.path.realpath(given))
    sizes = [None if size is pd.NA else int(size) for size in listed["size"]]
    files = {
        name: look(name, size) if name.startswith(ours) else _File("missing", "outside of the root")
        for name, size in zip(names, sizes, strict=True)
    }
    wanted = dict(zip(names, listed["sha256"], strict=True))
    gone = {name for name, file in files.items() if file.status == "missing"}
    # An extra file can only be a renamed one if a file of its size is missing.
    gone_sizes = {size for name, size in zip(names, sizes, strict=True) if name in gone}
    candidates = [n for n in extras if gone and (None in gone_sizes or _size(base / n) in gone_sizes)]
    candidates = [name for name in candidates if look(name, None).status == "ok"]
    to_hash = [name for name, file in files.items() if file.status == "ok"]
    read = [*to_hash, *candidates]
    found = dict(zip(read, tried_hashes([str(base / name) for name in read], show_progress), strict=True))
    for name in to_hash:
        if isinstance(found[name], DataError):
            files[name] = _File("unreadable", str(found[name]))
        elif found[name] != wanted[name]:
            files[name] = _File("changed", "same size, other content")
    files |= {name: _File("extra", "a link" if os.path.islink(base / name) else "") for name in extras}  # noqa: PTH114
    waiting: dict[str, list[str]] = {}
    for name in sorted(gone, reverse=True):
        waiting.setdefault(wanted[name], []).append(name)
    for name in candidates:
        if olds := waiting.get(str(found[name])):
            old = olds.pop()
            files[old] = _File("missing", f"renamed to {printable(name, kept='')}")
            files[name] = _File("extra", f"renamed from {printable(old, kept='')}")
    columns = {"path": list(files), "status": [f.status for f in files.values()]}
    return VerifyReport(
        base, pd.DataFrame(columns | {"detail": [f.detail for f in files.values()]}, dtype=TEXT), partial
    )


def _base(root: Path, names: Iterable[str]) -> Path:
    """Return `root`, the folder above it or one in it: where most of the manifest's folders (or loose files) are."""
    entries = {str(PurePosixPath(name).parent) if "/" in name else name for name in names}
    try:
        inner = sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir())
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot list {root}: {_reason(error)}. Pass the folder of the data set.") from error
    # os.path, where a folder beside it that may not be entered is no error.
    found = {b: sum(os.path.exists(b / entry) for entry in entries) for b in (root, root.parent, *inner)}  # noqa: PTH110
    best = max(found, key=lambda base: found[base])  # the first of equals
    if not found[best]:
        shown = ", ".join(sorted(entries)[:3])
        raise DataError(
            f"{root} holds none of the manifest's folders ({shown}, ...), nor does the folder above it or one in it. "
            "Pass the folder that the manifest's paths start from."
        )
    return best


def _extras(base: Path, names: list[str], ours: str) -> list[str]:
    """Return the files below the manifest's first folders that it does not list, and links to folders."""
    known, tops = set(names), sorted({name.split("/")[0] for name in names if "/" in name and name.startswith(ours)})
    if not ours and any("/" not in name for name in names):
        tops = ["."]
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}

    def refuse(error: OSError) -> None:
        raise DataError(
            f"Cannot list {error.filename}: {error.strerror}, so nobody can say what is missing. Check its permissions."
        )

    found: list[str] = []
    for top in tops:
        if not (base / top).is_dir():
            continue
        for folder, inner, files in os.walk(base / top, onerror=refuse):
            inner[:] = sorted(name for name in inner if not is_system_file(name))
            links = [name for name in inner if os.path.islink(Path(folder, name))]  # noqa: PTH114
            here = [Path(folder, name).relative_to(base).as_posix() for name in sorted([*files, *links])]
            found += [name for name in here if name not in known and name not in folders and not is_system_file(name)]
    return found


def _looker(base: Path, inside: str) -> Callable[[str, int | None], _File]:
    """Return `look(name, size)`, which says what can be said without reading: "ok" means that it may be hashed."""
    real_folder = cache(os.path.realpath)

    def look(name: str, size: int | None) -> _File:
        path = base / name
        try:
            link = stat.S_ISLNK(path.lstat().st_mode)
            real = os.path.realpath(path) if link else str(Path(real_folder(path.parent), path.name))
            if not real.startswith(inside.rstrip(os.sep) + os.sep):
                return _File("unreadable", "a link leads out of the root; it was not followed")
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return _File("unreadable", "a link that leads nowhere") if path.is_symlink() else _File("missing")
        except (OSError, ValueError) as error:
            return _File("unreadable", _reason(error))
        if not stat.S_ISREG(status.st_mode):
            return _File("unreadable", "no regular file")
        if size is not None and status.st_size != size:
            return _File("changed", f"{status.st_size:,} bytes instead of {size:,}")
        return _File("ok")

    return look


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
