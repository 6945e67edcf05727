"""Maintain a store: list its trials, verify them, and delete files that are not needed.

Nothing here follows a symbolic link to delete, so that nothing outside the store is ever touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leukemia_dl.benchmark.files import MODEL_FILE
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.errors import DamagedRecordError, SettingsError, StoreError, UnknownNameError
from leukemia_dl.progress import track

__all__ = ["Entry", "Item", "delete", "entries", "find_trial", "items", "open_store", "paths_in",
           "remove_leftovers", "temporary_prefix", "verify"]  # fmt: skip

# In seconds: a file that was touched more recently may be in use.
_DAY = 86_400.0
Kind = Literal["unfinished", "quarantined", "failed", "model"]


@dataclass(frozen=True)
class Entry:
    """A folder of `trials`.

    Attributes:
        name: Of the folder.
        status: Of its record; "damaged"; or "unreadable", which other versions wrote.
        size: In bytes, with its net.
        record: Without arrays; None if it cannot be read.
        model: Whether its net was kept and is there.
    """

    name: str
    status: str
    size: int
    record: Record | None = None
    model: bool = False


@dataclass(frozen=True)
class Item:
    """Something that can be deleted.

    Attributes:
        kind: What it is.
        path: The file or folder.
        size: In bytes.
    """

    kind: Kind
    path: Path
    size: int


def open_store(path: str | Path) -> Store:
    """Return the store at a path.

    Raises:
        StoreError: If there is none.
    """
    store = Store(path)
    if not store.trials.is_dir():
        found = "it has no folder trials/" if store.root.is_dir() else "there is no such folder"
        raise StoreError(
            f"{store.root} is no store: {found}. A store is the folder that a benchmark writes to (--store, by default "
            "runs/DATASET-RECIPE), with a folder per trial in trials/."
        )
    return store


def entries(store: Store) -> list[Entry]:
    """Return what the folders of trials hold: first what is well, then failures, then what cannot be read."""
    order = {"failed": 1, "damaged": 2, "unreadable": 2}
    names = store.names()
    found = [_entry(store, name) for name in track(names, len(names), "Reading records")]
    return sorted((entry for entry in found if entry), key=lambda entry: (order.get(entry.status, 0), entry.name))


def _entry(store: Store, name: str) -> Entry | None:
    size = _size_of(store.trials / name)
    try:
        record = store.read_folder(name, arrays=False)
    except StoreError as error:
        return Entry(name, "damaged" if isinstance(error, DamagedRecordError) else "unreadable", size)
    # None: it is empty, or was moved away a moment ago.
    return None if record is None else Entry(name, record.status, size, record, store.has_model(name))


def find_trial(store: Store, text: str) -> str:
    """Return the name of the one folder that a text names: in full, by its beginning, or by that of its digest.

    Raises:
        UnknownNameError: If there is none.
        SettingsError: If there are several.
    """
    names = store.names()
    if text in names:
        return text
    # A name ends in the beginning of its trial's digest.
    found = [name for name in names if name.startswith(text) or name.rpartition("-")[2].startswith(text.lower()[:12])]
    if len(found) == 1:
        return found[0]
    if found:
        more = ", ..." if len(found) > 5 else ""
        raise SettingsError(
            f"{len(found)} trials begin with {text!r}: {', '.join(found[:5])}{more}. Give more of the name, or "
            "the beginning of the digest at its end."
        )
    raise UnknownNameError(
        f"There is no trial {text!r} in {store.root}. `leukemia-dl runs list {store.root}` lists all {len(names):,}."
    )


def verify(store: Store) -> dict[str, str]:
    """Compare every file with its checksum, nets included, and return the problem of each damaged folder."""
    names = store.names()
    # One after the other: Python 3.11 parses the headers of arrays wrongly in several threads, now and then.
    found = {name: _problem(store, name) for name in track(names, len(names), "Checking records")}
    # A running benchmark replaces a whole folder by another: check a folder that seems damaged again.
    return {name: problem for name in found if found[name] and (problem := _problem(store, name))}


def _problem(store: Store, name: str) -> str:
    """Return the problem of a trial's folder, or ""."""
    try:
        record = store.read_folder(name)
    except DamagedRecordError as error:
        return f"{type(error.__cause__).__name__}: {error.__cause__}"
    except StoreError as error:  # of another format
        return str(error)
    if record is None:
        return "it holds no record" if (store.trials / name).is_dir() else ""
    if record.trial.folder != name:
        return f"it holds the record of {record.trial.folder}"
    return store.model_problem(name) if store.has_model(name) else ""


def items(store: Store, failed: bool = False, models: bool = False) -> list[Item]:
    """Return items to delete: unfinished records and fits that were not touched within a day, and the quarantine.

    Args:
        store: The store.
        failed: Whether to add failed records and their logs.
        models: Whether to add saved nets. A benchmark that keeps nets trains these trials again when it is run again.
    """
    kept = {path for path, _ in store.displaced()}  # the next run puts them back
    begun = [path for path in paths_in(store.trials) if path.name.startswith(".") and path not in kept]
    begun += paths_in(store.root / "unfinished")
    found = [_item("unfinished", path) for path in begun if _touched(path) < time.time() - _DAY]
    found += [_item("quarantined", path) for path in paths_in(store.root / "quarantine")]
    if failed:
        names = {entry.name for entry in entries(store) if entry.status == "failed"}
        folders = (*paths_in(store.trials), *paths_in(store.root / "logs"))
        found += [_item("failed", path) for path in folders if path.name in names]
    if models:
        files = (file for folder in paths_in(store.trials) for file in paths_in(folder))
        found += [_item("model", file) for file in files if file.name == MODEL_FILE]
    return found


def delete(store: Store, found: Iterable[Item]) -> int:
    """Delete what `items` has returned, and return how many bytes that freed.

    Raises:
        StoreError: If something cannot be deleted.
    """
    freed = 0
    for item in found:
        if item.kind == "failed" and (entry := _entry(store, item.path.name)) and entry.status != "failed":
            continue  # it has succeeded since
        try:
            if item.path.is_dir():
                # In one step out of sight: if this process is killed, no half of a record is left.
                aside = item.path.rename(item.path.with_name(f".{item.path.name}.{uuid.uuid4().hex[:8]}"))
                shutil.rmtree(aside)
            else:
                item.path.unlink()  # a record is valid without its net
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(
                f"{item.path} cannot be deleted: {error.strerror or error}. Change its permissions and try again."
            ) from error
        freed += item.size
        if item.path.parent != store.trials:
            with contextlib.suppress(OSError):  # it holds others
                item.path.parent.rmdir()
    return freed


def paths_in(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted; no links, and nothing if the folder is one or is not there."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.is_symlink())


def temporary_prefix() -> str:
    """Return the prefix of this process's temporary folders, which holds its number for `remove_leftovers`."""
    return f"leukemia-dl-{os.getpid()}-"


def remove_leftovers() -> None:
    """Remove temporary folders that are older than a day and whose process no longer exists."""
    if os.name == "nt":  # where signal 0 ends a process
        return
    for path in Path(tempfile.gettempdir()).glob("leukemia-dl-*-*"):
        with contextlib.suppress(OSError, ValueError):
            try:
                os.kill(int(path.name.split("-")[2]), 0)
            except ProcessLookupError:
                if path.lstat().st_uid == os.getuid() and _touched(path) < time.time() - _DAY:
                    shutil.rmtree(path)


def _size_of(path: Path) -> int:
    return sum(found.st_size for found in _stats(path) if not stat.S_ISDIR(found.st_mode))


def _touched(path: Path) -> float:
    return max((found.st_mtime for found in _stats(path)), default=0.0)


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of a path and of every path below it, except those that are deleted meanwhile."""
    below = (Path(place) / name for place, folders, files in os.walk(path) for name in (*folders, *files))
    for each in (path, *below):
        with contextlib.suppress(OSError):
            yield each.lstat()


def _item(kind: Kind, path: Path) -> Item:
    return Item(kind, path, _size_of(path))
