"""The store: one folder per trial, written aside and moved in place, so that a record is complete or absent.

STORE/grids/DIGEST/              settings, grid and samples of a benchmark, see `run_files`
STORE/settings.toml, *.csv       exports for the user, never read back
STORE/unfinished/NAME-DIGEST/    checkpoints of a fit that has not ended
STORE/logs/NAME-DIGEST/          log.txt, and what callbacks write
STORE/trials/NAME-DIGEST/        the record of a trial:
    record.json                  the trial, its status, row, metrics and timings
    history.csv                  learning curves, where there are any
    probabilities.npz            predictions of the val and test sides
    traceback.txt                of a failure
    model.keras                  the trained net, where it is kept
    SHA256SUMS                   checksums of all of these; `sha256sum --check SHA256SUMS` reads it too
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from leukemia_dl.atomic import moved_aside, new_folder, sha256_of_file, write_file
from leukemia_dl.benchmark.trial import WHOLE_NUMBERS, Record, Status, Trial
from leukemia_dl.errors import DamagedRecordError, StoreError
from leukemia_dl.progress import track

__all__ = ["MOST_BYTES", "Store", "paths_in", "read_file"]

FORMAT = 4
# Limits in bytes: of a text file, of predictions, of a net that is hashed even if its end shows that it is damaged.
MOST_BYTES, _MOST_ARRAY_BYTES, _LARGE_MODEL_BYTES = 2**24, 2**29, 2**31
_ATTEMPTS, _DAY = 3, 86_400.0
_RECORD, _MODEL, _SUMS = "record.json", "model.keras", "SHA256SUMS"
_HISTORY, _PREDICTIONS, _TRACEBACK = "history.csv", "probabilities.npz", "traceback.txt"
_JSON = ("status", "exception", "message", "row", "timings")
_ARRAYS = ("sides", "samples", "labels", "probabilities", "tta")
# Errors that the reading of a damaged or hostile file ends in.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
           OverflowError, zlib.error, zipfile.BadZipFile)  # fmt: skip
_log = logging.getLogger(__name__)


class Store:
    """A folder of records. Any number of writers may share it: they never write the same file in place.

    In its methods `trial` is a `Trial` or the name of its folder, and `arrays` says whether to read history,
    predictions and traceback too, which are left empty otherwise. A file that cannot be written raises `StoreError`
    and leaves everything as it was.

    Args:
        root: The folder; nothing is written before `create`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.trials = self.root / "trials"
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @classmethod
    def open(cls, root: str | Path) -> Store:
        """Return the store at a path; StoreError if there is none."""
        store = cls(root)
        if not store.trials.is_dir():
            found = "it has no folder trials/" if store.root.is_dir() else "there is no such folder"
            raise StoreError(
                f"{store.root} is no store: {found}. A store is the folder that a benchmark writes to (--store, by "
                "default runs/DATASET-RECIPE), with a folder per trial in trials/."
            )
        return store

    def create(self) -> None:
        """Make the folder, and put back records whose writer was killed; StoreError for records of another format."""
        with _writing(self.root):
            self.trials.mkdir(parents=True, exist_ok=True)
        for old, place in moved_aside(self.trials):
            with contextlib.suppress(OSError):
                old.rename(place)
        list(self.records(arrays=False))  # another format is refused now, and not after hours of training

    def folder(self, trial: Trial | str) -> Path:
        """Return the folder for the record of a trial."""
        return self.trials / (trial if isinstance(trial, str) else trial.folder)

    def checkpoints(self, trial: Trial) -> Path:
        """Return the folder for the state of a trial's unfinished fit."""
        return self.root / "unfinished" / trial.folder

    def remove_checkpoints(self, trial: Trial) -> None:
        """Remove the state of a fit that has ended, and the folder of such states if it was the last."""
        shutil.rmtree(self.checkpoints(trial), ignore_errors=True)
        with contextlib.suppress(OSError):
            self.checkpoints(trial).parent.rmdir()

    def logs(self, trial: Trial) -> Path:
        """Return the folder of a trial's log, where its callbacks may write too."""
        return self.root / "logs" / trial.folder

    def names(self) -> list[str]:
        """Return the names of the folders of all trials, sorted."""
        return sorted(path.name for path in self.trials.glob("[!.]*") if path.is_dir())

    def state(self) -> list[tuple[str, int]]:
        """Return names and numbers that change whenever a record comes, goes or is replaced."""
        with os.scandir(self.trials) as found:
            return sorted((entry.name, entry.inode()) for entry in found)

    def read(self, trial: Trial | str, arrays: bool = True) -> Record | None:
        """Return the record of a trial, or None; DamagedRecordError, or StoreError if it is of another format."""
        folder = self.folder(trial)
        for attempt in range(_ATTEMPTS):
            try:
                return _read_record(folder, arrays) if folder.is_dir() else None
            except StoreError:
                raise
            except _DAMAGE as caught:
                error = caught
                time.sleep(0.02 * (attempt + 1 < _ATTEMPTS))  # another run may be replacing it at this moment
        raise DamagedRecordError(
            f"{folder} is damaged ({type(error).__name__}: {error}). The same benchmark runs the trial again."
        ) from error

    def take(self, trial: Trial | str) -> Record | None:
        """Return the record of a trial without its arrays; None, with one warning, if it is damaged."""
        return next(self.records([self.folder(trial).name], arrays=False), None)

    def records(self, names: Iterable[str] | None = None, arrays: bool = True) -> Iterator[Record]:
        """Yield the records in the folders `names`, or in all; a damaged one is left out, with one warning."""
        for name in self.names() if names is None else names:
            try:
                record = self.read(name, arrays)
            except DamagedRecordError as error:
                if name not in self._warned:
                    _log.warning("%s", error)
                self._warned.add(name)
            else:
                if record is not None:
                    yield record

    def has_model(self, trial: Trial | str) -> bool:
        """Return whether the trained net of a trial was kept and is there."""
        return not self.model_problem(trial, compare=False)

    def has_result(self, record: Record | None, wants_model: bool, compare: bool = True) -> bool:
        """Return whether the trial of `record` is done: with its net, if `wants_model`, and undamaged, if `compare`."""
        if record is None or record.status == "failed":
            return False
        if not wants_model or record.trial.kind == "baseline":
            return True
        problem = self.model_problem(record.trial, compare)
        if problem and self.has_model(record.trial):
            _log.warning("%s: %s. The trial runs again.", self.folder(record.trial), problem)
        return not problem

    def model_problem(self, trial: Trial | str, compare: bool = True) -> str:
        """Return why the trained net of a trial cannot be used, or ""; `compare` checks its checksum."""
        path = self.folder(trial) / _MODEL
        try:
            expected = _read_sums(path.parent).get(_MODEL)
            if expected is None or not path.is_file():
                return f"{_MODEL} is not there"
            size = path.stat().st_size
            if compare and size > _LARGE_MODEL_BYTES and not zipfile.is_zipfile(path):
                return f"{_MODEL} of {size:,} bytes is no saved net"
            if compare and sha256_of_file(path) != expected:
                return f"{_MODEL} has another checksum than {_SUMS} says"
        except (OSError, ValueError) as error:
            return f"{_MODEL} cannot be read: {error}"
        return ""

    def verify(self) -> dict[str, str]:
        """Compare every file with its checksum, nets included, and return the problem of each damaged folder."""
        problems, names = {}, self.names()
        for name in track(names, len(names), "Checking records"):
            try:
                self.read(name)
                problem = self.model_problem(name) if self.has_model(name) else ""
            except StoreError as error:
                cause = error.__cause__ or error
                problem = f"{type(cause).__name__}: {cause}"
            if problem:
                problems[name] = problem
        return problems

    def unfinished(self) -> list[Path]:
        """Return records and fits that were begun and not touched for a day; no links."""
        kept = {old for old, _ in moved_aside(self.trials)}  # `create` puts them back
        begun = [path for path in paths_in(self.trials) if path.name.startswith(".") and path not in kept]
        limit = time.time() - _DAY
        return [path for path in (*begun, *paths_in(self.root / "unfinished")) if path.lstat().st_mtime < limit]

    def write(self, record: Record, model: bytes | None = None) -> Path:
        """Keep `record`, and `model`, the file of its net, in place of an earlier one, and return its folder."""
        target = self.folder(record.trial)
        with _writing(target), new_folder(target) as folder:
            for name, content in _files_of(record, model).items():
                write_file(folder / name, content)
        return target

    def write_file(self, name: str, content: str | bytes) -> Path:
        """Write `content` to the file `name` of the store, aside, then in place; return its path."""
        path = self.root / name
        with _writing(path):
            write_file(path, content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        return path

    def export(self, results: pd.DataFrame, timings: pd.DataFrame) -> None:
        """Write `results` and `timings` to their CSV files, floats so that they read back to the same value."""
        self.write_file("results.csv", results.to_csv(index=False, lineterminator="\n"))
        self.write_file("timings.csv", timings.to_csv(index=False, lineterminator="\n"))


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes; ValueError for another one, or OSError."""
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if found.st_size > most:
            raise ValueError(f"{path.name} has more than {most:,} bytes")
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; without O_NONBLOCK the opening of a pipe waits for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def paths_in(folder: Path) -> list[Path]:
    """Return the paths in a folder, sorted; no links, and none if the folder is a link or is not there."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.is_symlink())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}. Free space, change its permissions or choose "
            "another folder (store=..., command line: --store). Finished trials are kept."
        ) from error


def _files_of(record: Record, model: bytes | None) -> dict[str, bytes]:
    """Return the files of a record by name; the checksums come last."""
    saved = {name: getattr(record, name) for name in _JSON}
    saved |= {"format": FORMAT, "digest": record.trial.digest, "trial": record.trial.to_dict()}
    for name in ("metrics", "metrics_tta"):  # JSON knows no NaN
        values = getattr(record, name)
        saved[name] = {key: None if np.isnan(value) else float(value) for key, value in values.items()}
    files = {_RECORD: json.dumps(saved, indent=1, allow_nan=False).encode()}
    if len(record.history):
        files[_HISTORY] = record.history.to_csv(index=False, lineterminator="\n").encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: getattr(record, name) for name in _ARRAYS})
    files[_PREDICTIONS] = buffer.getvalue()
    if record.traceback:
        files[_TRACEBACK] = record.traceback.encode("utf-8", "backslashreplace")
    if model is not None:
        files[_MODEL] = model
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return files | {_SUMS: sums.encode()}


def _read_record(folder: Path, arrays: bool) -> Record:
    """Return the record in a folder, every file but the net compared with its checksum.

    Raises StoreError if it is of another format, and one of `_DAMAGE` for files that cannot be read or make no sense.
    """
    files = {_RECORD: read_file(folder / _RECORD)}
    saved = json.loads(files[_RECORD])
    if saved["format"] != FORMAT:
        raise StoreError(
            f"{folder} has format {saved['format']!r}; this version reads {FORMAT}. "
            "Use another store, or the version of leukemia-dl that wrote it."
        )
    for name, expected in _read_sums(folder).items():
        if name not in (_RECORD, _MODEL):
            files[name] = read_file(folder / name, _MOST_ARRAY_BYTES if name == _PREDICTIONS else MOST_BYTES)
        if name != _MODEL and hashlib.sha256(files[name]).hexdigest() != expected:
            raise ValueError(f"{name} has another checksum than {_SUMS} says")
    fields = {name: saved[name] for name in _JSON}
    for which in ("metrics", "metrics_tta"):
        fields[which] = {name: float("nan") if value is None else value for name, value in saved[which].items()}
    record = Record(Trial(**saved["trial"]), **fields, **(_arrays_of(files) if arrays else {}))
    if record.trial.folder != folder.name:
        raise ValueError(f"it holds the record of {record.trial.folder}")
    _check(record, arrays)
    return record


def _read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a folder by name; ValueError if the file is not complete, or OSError."""
    text = read_file(folder / _SUMS).decode("ascii")
    lines = [re.fullmatch(r"([0-9a-f]{64})  ([A-Za-z0-9_.-]+)", line) for line in text.splitlines()]
    found = {match[2]: match[1] for match in lines if match is not None}
    if None in lines or not text.endswith("\n") or not {_RECORD, _PREDICTIONS} <= found.keys():
        raise ValueError(f"{_SUMS} is damaged")
    return found


def _arrays_of(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return predictions, history and traceback; ValueError if predictions unpack to too many bytes."""
    packed = io.BytesIO(files[_PREDICTIONS])
    with zipfile.ZipFile(packed) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _MOST_ARRAY_BYTES:
        raise ValueError(f"{_PREDICTIONS} unpacks to {size:,} bytes")
    with np.load(packed, allow_pickle=False) as found:
        more: dict[str, Any] = {name: found[name] for name in _ARRAYS}
    if _HISTORY in files:
        more["history"] = pd.read_csv(io.BytesIO(files[_HISTORY]))
    return more | {"traceback": files.get(_TRACEBACK, b"").decode("utf-8", "replace")}


def _check(record: Record, arrays: bool) -> None:
    """Raise ValueError if a record that could be read makes no sense, so that no table could hold it."""
    trial, row = record.trial, record.row
    if record.status not in get_args(Status):
        raise ValueError(f"status is {record.status!r}")
    if record.status == "ok" and not {"accuracy", "loss"} <= record.metrics.keys():
        raise ValueError("it has no accuracy or loss")
    metrics = [*record.metrics.values(), *record.metrics_tta.values(), record.timings.get("seconds", 0.0)]
    texts = [record.exception, record.message, trial.backbone, trial.protocol]
    whole = [trial.fold, trial.seed, *(row.get(name) for name in WHOLE_NUMBERS)]
    for values, kind in ((metrics, float | int), (texts, str), (whole, int | None)):
        if not all(isinstance(value, kind) for value in values):
            raise ValueError(f"one of {values!r} is no {kind}")
    numbers = record.history.drop(columns="phase", errors="ignore")
    if not all(dtype.kind in "if" for dtype in numbers.dtypes):
        raise ValueError("its history holds text")
    if arrays and record.status == "ok":
        count, classes = len(record.samples), record.probabilities.shape[-1]
        tables = [record.probabilities, *([record.tta] if record.tta.size else [])]
        if any(table.shape != (count, classes) or not np.isfinite(table).all() for table in tables):
            raise ValueError("its probabilities make no sense")
        if len(record.sides) != count or len(record.labels) != count or not set(record.labels) <= set(range(classes)):
            raise ValueError("its sides or labels make no sense")
