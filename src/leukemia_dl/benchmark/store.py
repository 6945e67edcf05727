"""The store: one folder per trial, written aside and moved in place, so that a record is complete or absent.

STORE/grids/DIGEST/ holds settings, grid and samples of a benchmark (see `run_files`), STORE/unfinished/NAME-DIGEST/
checkpoints of a fit, STORE/logs/NAME-DIGEST/ log.txt. STORE/trials/NAME-DIGEST/ is a record: record.json (trial,
status, row, metrics, timings), history.csv (learning curves), probabilities.npz (predictions of the val and test
sides), traceback.txt (of a failure), model.keras, and SHA256SUMS of these for `sha256sum --check`.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from leukemia_dl.atomic import moved_aside, new_folder, remove_unfinished, sha256_of_file, write_file
from leukemia_dl.benchmark.plan import Trial
from leukemia_dl.benchmark.records import WHOLE_NUMBERS, Record, Status, result_frame, timing_frame
from leukemia_dl.errors import DamagedRecordError, StoreError
from leukemia_dl.progress import track

FORMAT, _ATTEMPTS = 4, 3
# Limits in bytes: of a text file, of predictions, of a net that is hashed even if its end shows that it is damaged.
_MOST_BYTES, _MOST_ARRAY_BYTES, _LARGE_MODEL_BYTES = 2**24, 2**29, 2**31
_RECORD, _MODEL, _SUMS = "record.json", "model.keras", "SHA256SUMS"
_HISTORY, _PREDICTIONS, _TRACEBACK = "history.csv", "probabilities.npz", "traceback.txt"
_JSON = ("status", "exception", "message", "row", "timings")
_ARRAYS = ("sides", "samples", "labels", "probabilities", "tta")
_log = logging.getLogger(__name__)


class Store:
    """A folder `root` of records. Any number of writers may share it: they never write the same file in place.

    In its methods `trial` is a `Trial` or the name of its folder, and `arrays` says whether to read history,
    predictions and traceback too. A file that cannot be written raises `StoreError` and leaves all as it was.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.trials = self.root / "trials"
        self._warned: set[str] = set()

    @classmethod
    def open(cls, root: str | Path) -> Store:
        """Return the store at a path; StoreError if there is none."""
        store = cls(root)
        if not store.trials.is_dir():
            raise StoreError(f"{store.root} is no store: it has no folder trials/. Name the --store of a benchmark.")
        return store

    def create(self) -> None:
        """Make the folder, and restore or remove files of killed writers; StoreError for records of another format."""
        with _writing(self.root):
            self.trials.mkdir(parents=True, exist_ok=True)
        for old, place in moved_aside(self.trials):
            with contextlib.suppress(OSError):
                old.rename(place)
        remove_unfinished(self.trials)
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

    def read(self, trial: Trial | str, arrays: bool = True) -> Record | None:
        """Return the record of a trial, or None; DamagedRecordError, or StoreError if it is of another format."""
        folder = self.folder(trial)
        for attempt in range(_ATTEMPTS):
            try:
                return _read_record(folder, arrays) if folder.is_dir() else None
            except StoreError:
                raise
            except Exception as caught:  # files may be damaged or hostile in any way
                error = caught
                time.sleep(0.02 * (attempt + 1 < _ATTEMPTS))  # another run may be replacing it at this moment
        raise DamagedRecordError(
            f"{folder} is damaged ({type(error).__name__}: {error}). The same benchmark runs the trial again."
        ) from error

    def records(self, names: Iterable[str] | None = None, arrays: bool = True) -> Iterator[Record]:
        """Yield the records in the folders `names`, or in all; a damaged one is left out, with one warning."""
        for name in self.names() if names is None else names:
            try:
                if (record := self.read(name, arrays)) is not None:
                    yield record
            except DamagedRecordError as error:
                if name not in self._warned:
                    _log.warning("%s", error)
                self._warned.add(name)

    def has_model(self, trial: Trial | str) -> bool:
        """Return whether the trained net of a trial was kept and is there."""
        return (self.folder(trial) / _MODEL).is_file()

    def has_result(self, record: Record | None, wants_model: bool) -> bool:
        """Return whether the trial of `record` has ended without a failure, with an undamaged net if `wants_model`."""
        if record is None or record.status == "failed":
            return False
        # A baseline has no net, and a head on features from elsewhere is none.
        has_net = record.trial.kind == "backbone" and record.trial.pipeline is not None
        problem = self.model_problem(record.trial) if wants_model and has_net else ""
        if problem and self.has_model(record.trial):
            _log.warning("%s: %s. The trial runs again.", self.folder(record.trial), problem)
        return not problem

    def model_problem(self, trial: Trial | str) -> str:
        """Return why the trained net of a trial cannot be used, or ""."""
        path = self.folder(trial) / _MODEL
        try:
            if not path.is_file():
                return f"{_MODEL} is not there"
            if (size := path.stat().st_size) > _LARGE_MODEL_BYTES and not zipfile.is_zipfile(path):
                return f"{_MODEL} of {size:,} bytes is no saved net"
            same = sha256_of_file(path) == _read_sums(path.parent).get(_MODEL)
            return "" if same else f"{_MODEL} has another checksum than {_SUMS} says"
        except (OSError, ValueError) as error:
            return f"{_MODEL} cannot be read: {error}"

    def verify(self) -> dict[str, str]:
        """Compare every file with its checksum, nets included, and return the problem of each damaged folder."""
        problems, names = dict[str, str](), self.names()
        for name in track(names, len(names), "Checking records"):
            try:
                self.read(name)
                problems[name] = self.model_problem(name) if self.has_model(name) else ""
            except StoreError as error:
                problems[name] = str(error)
        return {name: problem for name, problem in problems.items() if problem}

    def write(self, record: Record, model: bytes | None = None) -> Path:
        """Keep `record`, and `model`, the file of its net, in place of an earlier one, and return its folder."""
        target, files = self.folder(record.trial), _files_of(record, model)
        with _writing(target), new_folder(target) as folder:
            for name, content in files.items():
                write_file(folder / name, content)
        return target

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write `files`, texts by name, into the store, each aside, then in place."""
        with _writing(self.root):
            for name, content in files.items():
                write_file(self.root / name, content.encode("utf-8", "surrogateescape"))

    def export(self, first: Sequence[str] = ()) -> pd.DataFrame:
        """Write results.csv and timings.csv, again if a trial ends meanwhile; return results of the folders `first`."""
        before: Any = None
        while before != (before := {(entry.name, entry.inode()) for entry in os.scandir(self.trials)}):
            found = list(self.records(dict.fromkeys([*first, *self.names()]), arrays=False))
            frames = {"results.csv": result_frame(found), "timings.csv": timing_frame(found)}
            self.write_files({name: frame.to_csv(index=False, lineterminator="\n") for name, frame in frames.items()})
        return result_frame(record for record in found if record.trial.folder in first)


def read_file(path: Path, most: int = _MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes; ValueError for another one, or OSError."""
    found = path.stat()  # asked first, since opening a pipe would wait for its writer
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    if found.st_size > most:
        raise ValueError(f"{path.name} has more than {most:,} bytes")
    return path.read_bytes()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror or error}"
        raise StoreError(f"{reason}. Free space, or choose another folder (--store). Finished trials stay.") from error


def _files_of(record: Record, model: bytes | None) -> dict[str, bytes]:
    saved = {name: getattr(record, name) for name in _JSON}
    saved |= {"format": FORMAT, "digest": record.trial.digest, "trial": record.trial.to_dict()}
    for name in ("metrics", "metrics_tta"):  # JSON knows no NaN
        values = getattr(record, name)
        saved[name] = {key: None if np.isnan(value) else float(value) for key, value in values.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: getattr(record, name) for name in _ARRAYS})
    files = {
        _RECORD: json.dumps(saved, indent=1, allow_nan=False).encode(),
        _HISTORY: record.history.to_csv(index=False, lineterminator="\n").encode() if len(record.history) else b"",
        _PREDICTIONS: buffer.getvalue(),
        _TRACEBACK: record.traceback.encode("utf-8", "backslashreplace"),
        _MODEL: model or b"",
    }
    files = {name: content for name, content in files.items() if content}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return files | {_SUMS: sums.encode()}


def _read_record(folder: Path, arrays: bool) -> Record:
    """Return the record in a folder; StoreError if it is of another format, and any other error if it is damaged."""
    files = {_RECORD: read_file(folder / _RECORD)}
    saved = json.loads(files[_RECORD])
    if saved["format"] != FORMAT:
        raise StoreError(f"{folder} has format {saved['format']!r}; this version reads {FORMAT}. Use another store.")
    for name, expected in _read_sums(folder).items():
        if name not in (_RECORD, _MODEL):
            files[name] = read_file(folder / name, _MOST_ARRAY_BYTES if name == _PREDICTIONS else _MOST_BYTES)
        if name != _MODEL and hashlib.sha256(files[name]).hexdigest() != expected:
            raise ValueError(f"{name} has another checksum than {_SUMS} says")
    fields = {name: saved[name] for name in _JSON}
    for which in ("metrics", "metrics_tta"):
        fields[which] = {name: float("nan") if value is None else value for name, value in saved[which].items()}
    if arrays:
        packed = io.BytesIO(files[_PREDICTIONS])
        with zipfile.ZipFile(packed) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > _MOST_ARRAY_BYTES:
                raise ValueError(f"{_PREDICTIONS} unpacks to {size:,} bytes")
        with np.load(packed, allow_pickle=False) as found:
            fields |= {name: found[name] for name in _ARRAYS}
        fields["traceback"] = files.get(_TRACEBACK, b"").decode("utf-8", "replace")
        fields["history"] = pd.read_csv(io.BytesIO(files[_HISTORY])) if _HISTORY in files else pd.DataFrame()
    record = Record(Trial(**saved["trial"]), **fields)
    if record.trial.folder != folder.name:
        raise ValueError(f"it holds the record of {record.trial.folder}")
    _check(record, arrays)
    return record


def _read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a folder by name; ValueError if the file is not complete, or OSError."""
    text = read_file(folder / _SUMS).decode("ascii")
    found = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  ([A-Za-z0-9_.-]+)\n", text, re.MULTILINE)}
    if len(found) != len(text.splitlines()) or not {_RECORD, _PREDICTIONS} <= found.keys():
        raise ValueError(f"{_SUMS} is damaged")
    return found


def _check(record: Record, arrays: bool) -> None:
    trial, done = record.trial, record.status == "ok"
    metrics = [*record.metrics.values(), *record.metrics_tta.values(), record.timings.get("seconds", 0.0)]
    counts = [trial.fold, trial.seed, *(record.row.get(name) for name in WHOLE_NUMBERS)]
    texts = [record.exception, record.message, trial.backbone, trial.protocol]
    sound = [
        record.status in get_args(Status) and (not done or {"accuracy", "loss"} <= record.metrics.keys()),
        all(isinstance(value, float | int) for value in metrics),
        all(isinstance(value, int | None) for value in counts),
        all(isinstance(value, str) for value in texts),
        all(kind.kind in "if" for kind in record.history.drop(columns="phase", errors="ignore").dtypes),
    ]
    if arrays and done:
        shape = count, classes = len(record.samples), record.probabilities.shape[-1]
        tables = [record.probabilities, *([record.tta] if record.tta.size else [])]
        sound += [table.shape == shape and np.isfinite(table).all() for table in tables]
        sound += [len(record.sides) == len(record.labels) == count, set(record.labels) <= set(range(classes))]
    if not all(sound):
        raise ValueError("a value is missing, of another type or out of range")
