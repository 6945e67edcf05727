"""Looking after a store: what it holds, whether that is whole, and what of it nobody needs any more.

Nothing here follows a symbolic link to delete, so that nothing outside the store is ever touched.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leukemia_dl.benchmark.files import MODEL_FILE, SUMS_FILE, read_sums, sha256_of, sync, write_file
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.errors import DamagedRecordError, SettingsError, StoreError, UnknownNameError
from leukemia_dl.progress import track

__all__ = ["Entry", "Finding", "Item", "Verification", "delete", "entries", "find_trial", "items", "open_store",
           "paths_in", "remove_model", "size_of", "verify"]  # fmt: skip

# What was touched within this many seconds may be in somebody's hands.
_RECENT = 3600.0
_NEAR = 5
Kind = Literal["half-written", "checkpoints", "quarantined", "failed", "log", "model"]


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
class Finding:
    """Something about a trial's folder that is not as it was written.

    Attributes:
        name: Of the folder.
        problem: What it is.
        damaged: False for what does no harm: a net that is gone, a file that was put there.
    """

    name: str
    problem: str
    damaged: bool = True


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        records: How many folders there are.
        files: How many files were compared with their checksums.
        size: Of these, in bytes.
        findings: By folder.
    """

    records: int
    files: int
    size: int
    findings: tuple[Finding, ...]

    @property
    def damaged(self) -> int:
        """How many folders are damaged."""
        return len({finding.name for finding in self.findings if finding.damaged})


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
    size = size_of(store.trials / name)
    try:
        record = store.read_folder(name, arrays=False)
    except StoreError as error:
        return Entry(name, "damaged" if isinstance(error, DamagedRecordError) else "unreadable", size)
    # None: it is empty, or was moved away a moment ago.
    return None if record is None else Entry(name, record.status, size, record, store.has_model(record.trial))


def find_trial(store: Store, text: str) -> str:
    """Return the name of the one folder that a text names: in full, by its beginning, or by that of its digest.

    Raises:
        UnknownNameError: If there is none; the nearest are named.
        SettingsError: If there are several.
    """
    names = store.names()
    if text in names:
        return text
    found = [name for name in names if name.startswith(text) or _digest_begins(store, name, text.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        more = ", ..." if len(found) > _NEAR else ""
        raise SettingsError(
            f"{len(found)} trials begin with {text!r}: {', '.join(found[:_NEAR])}{more}. Give more of the name, or "
            "the beginning of the digest at its end."
        )
    near = difflib.get_close_matches(text, {name[: len(text)] for name in names}, n=_NEAR, cutoff=0.6)
    meant = [name for start in near for name in names if name.startswith(start)][:_NEAR]
    raise UnknownNameError(
        f"There is no trial {text!r} in {store.root}. "
        + (f"Did you mean {' or '.join(map(repr, meant))}? " if meant else "")
        + f"`leukemia-dl runs list {store.root}` lists all {len(names):,}."
    )


def _digest_begins(store: Store, name: str, text: str) -> bool:
    short = name.rpartition("-")[2]
    if len(text) <= len(short) or not text.startswith(short):
        return short.startswith(text)
    with contextlib.suppress(StoreError):  # a name has only the beginning of a digest
        record = store.read_folder(name, arrays=False)
        return record is not None and record.trial.digest.startswith(text)
    return False


def verify(store: Store) -> Verification:
    """Compare every file of every trial with its checksum, nets included, and see whether each record makes sense.

    A damaged net is seen here alone: reading a record leaves it out, since it may be large.
    """
    names = store.names()
    # One after the other: Python 3.11 parses the headers of arrays wrongly in several threads, now and then.
    checked = [_verify_twice(store, name) for name in track(names, len(names), "Checking records")]
    there = [found for found in checked if found is not None]
    files, size = sum(found[0] for found in there), sum(found[1] for found in there)
    return Verification(len(there), files, size, tuple(finding for found in there for finding in found[2]))


def _verify_twice(store: Store, name: str) -> tuple[int, int, list[Finding]] | None:
    """Look again at what seems damaged: a running benchmark replaces a whole folder by another. None if it is gone."""
    for _ in range(2):
        found = _verify_folder(store, name)
        if not any(finding.damaged for finding in found[2]):
            break
    return found if (store.trials / name).is_dir() else None


def _verify_folder(store: Store, name: str) -> tuple[int, int, list[Finding]]:
    """Return number and size of the files that were compared, and what was found."""
    folder, files, size, findings = store.trials / name, 0, 0, []
    try:
        senseless = _senseless(store, name)
        sums = read_sums(folder)
        there = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return 0, 0, [Finding(name, f"{SUMS_FILE} is missing")]
    except (OSError, ValueError) as error:  # another format, or checksums that cannot be read
        return 0, 0, [Finding(name, str(error))]
    for file, expected in sums.items():
        if file not in there:
            gone = file == MODEL_FILE
            what = "gone; the record is valid without it" if gone else "missing"
            findings.append(Finding(name, f"{file} is {what}", damaged=not gone))
            continue
        try:
            files, size = files + 1, size + (folder / file).stat().st_size
            if sha256_of(folder / file) == expected:
                continue
            problem = f"{file} has another checksum than {SUMS_FILE} says"
        except OSError as error:
            problem = f"{file} cannot be read: {error.strerror or error}"
        cure = "; delete it and run the benchmark again to train it anew" if file == MODEL_FILE else ""
        findings.append(Finding(name, problem + cure))
    extra = sorted(there - set(sums) - {SUMS_FILE})
    findings += [Finding(name, f"{file} is not listed in {SUMS_FILE}", damaged=False) for file in extra]
    if senseless and not any(finding.damaged for finding in findings):
        findings.append(Finding(name, senseless))
    return files, size, findings


def _senseless(store: Store, name: str) -> str:
    """Return why the record in a folder makes no sense, or ""."""
    try:
        record = store.read_folder(name)
    except DamagedRecordError as error:
        return f"its record makes no sense ({type(error.__cause__).__name__}: {error.__cause__})"
    return "" if record is None or record.trial.folder == name else f"it holds the record of {record.trial.folder}"


def items(store: Store, *, failed: bool = False, models: bool = False) -> list[Item]:
    """Return what can be deleted.

    That is: folders that were never written to their end, checkpoints of trials that have a result, and damaged records
    in quarantine. What was touched within the last hour is left out of the first two: somebody may be at it.

    Args:
        store: Where to look.
        failed: Failed records and their logs too. Their checkpoints stay: the next run goes on from them.
        models: The nets that were kept too. A benchmark that keeps nets trains such trials again when it is run again.
    """
    old = time.time() - _RECENT
    folders = [path for path in paths_in(store.trials) if path.is_dir()]
    hidden = [path for path in folders if path.name.startswith(".")]
    kept = {path for path, _ in store.displaced()}  # the next run puts them back
    found = [_item("half-written", path) for path in hidden if _touched(path) < old and path not in kept]
    for path in paths_in(store.root / "unfinished"):
        if path.is_file() and path.name.startswith("stop-") and _touched(path) < old:
            found.append(_item("half-written", path))
        if path.is_dir() and _touched(path) < old and _status(store, path.name) in ("ok", "not_applicable"):
            found.append(_item("checkpoints", path))
    found += [_item("quarantined", path) for path in paths_in(store.root / "quarantine")]
    records = [path for path in folders if path not in hidden]
    if failed:
        logs = {path.name: path for path in paths_in(store.root / "logs")}
        for path in records:
            if _status(store, path.name) == "failed":
                found.append(_item("failed", path))
                found += [_item("log", logs[path.name])] if path.name in logs else []
    if models:
        found += [_item("model", path / MODEL_FILE) for path in records if _has_model(path)]
    return found


def delete(store: Store, found: Iterable[Item]) -> int:
    """Delete what `items` has returned, and return how many bytes that freed.

    What has gone meanwhile, or is a failure no more since it was run again, is passed over.

    Raises:
        StoreError: If something cannot be deleted.
    """
    freed = 0
    for item in found:
        try:
            if item.kind == "model":
                freed += item.size if remove_model(item.path.parent) else 0
                continue
            if item.kind == "failed":
                if _status(store, item.path.name) != "failed":
                    continue
                # First of all under another name: a record is there as a whole, or not at all.
                aside = item.path.with_name(f".{item.path.name}-{uuid.uuid4().hex[:8]}")
                _remove(item.path.rename(aside))
            else:
                _remove(item.path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(
                f"{item.path} cannot be deleted: {error.strerror or error}. Mend its permissions and do it again."
            ) from error
        freed += item.size
        if item.path.parent != store.trials:
            with contextlib.suppress(OSError):  # it holds others
                item.path.parent.rmdir()
    return freed


def remove_model(folder: Path) -> bool:
    """Delete the net in a trial's folder, and its line in the checksums; whether it was there.

    At any moment the record is valid: a net that is not listed is no part of it.

    Raises:
        OSError: If that fails.
    """
    if not _has_model(folder):
        return False
    with contextlib.suppress(ValueError):  # checksums that are damaged are left for whoever looks into it
        if MODEL_FILE in read_sums(folder):
            lines = (folder / SUMS_FILE).read_bytes().splitlines(keepends=True)
            aside = folder / f".{SUMS_FILE}-{uuid.uuid4().hex[:8]}"
            try:
                write_file(aside, b"".join(line for line in lines if not line.endswith(f"  {MODEL_FILE}\n".encode())))
                aside.replace(folder / SUMS_FILE)
                sync(folder)
            finally:
                aside.unlink(missing_ok=True)
    (folder / MODEL_FILE).unlink()
    return True


def paths_in(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted; no links, and nothing if the folder is one or is not there."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.is_symlink())


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; of a link its own."""
    return sum(stat.st_size for stat in _stats(path))


def _touched(path: Path) -> float:
    return max((stat.st_mtime for stat in _stats(path, folders=True)), default=0.0)


def _stats(path: Path, folders: bool = False) -> Iterator[os.stat_result]:
    """Yield the state of a file, or of all that lies below a folder; what goes meanwhile is left out."""
    whole = path.is_dir() and not path.is_symlink()
    paths = [path] if folders or not whole else []
    for place, below, files in os.walk(path) if whole else ():
        paths += [Path(place) / name for name in [*files, *(below if folders else [])]]
    for each in paths:
        with contextlib.suppress(OSError):
            yield each.lstat()


def _item(kind: Kind, path: Path) -> Item:
    return Item(kind, path, size_of(path))


def _has_model(folder: Path) -> bool:
    return (folder / MODEL_FILE).is_file() and not any(path.is_symlink() for path in (folder, folder / MODEL_FILE))


def _status(store: Store, name: str) -> str | None:
    """Return the status of the record in a folder; None where there is none that can be read."""
    with contextlib.suppress(StoreError):
        record = store.read_folder(name, arrays=False)
        return None if record is None else record.status
    return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
