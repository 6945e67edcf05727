"""The store: one folder per trial, written aside and moved in place, so that a record is complete or absent.

STORE/grids/DIGEST/              settings, grid and samples of a benchmark, see `run_files`
STORE/settings.toml, *.csv       exports for the user, never read back: settings of the last run; results.csv, a row
                                 per trial, equal between equal runs; timings.csv, seconds, machine and versions
STORE/trials/NAME-DIGEST/        the record of a trial, see `record_files`
STORE/unfinished/NAME-DIGEST/    checkpoints of a fit that has not ended
STORE/logs/NAME-DIGEST/          log.txt, and what callbacks write
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from leukemia_dl.atomic import moved_aside, new_folder, write_file
from leukemia_dl.benchmark.record_files import DAMAGE, check_format, files_of, model_problem, read_record
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.errors import DamagedRecordError, StoreError
from leukemia_dl.progress import track

__all__ = ["Store", "paths_in"]

_ATTEMPTS, _DAY = 3, 86_400.0
_log = logging.getLogger(__name__)


class Store:
    """A folder of records. Any number of writers may share it: they never write the same file in place.

    In its methods `trial` is a `Trial`, `name` that of a trial's folder (`Trial.folder`, `names()`), and `arrays` says
    whether to read history, predictions and traceback too, which are left empty otherwise.

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
        """Return the store at a path.

        Raises:
            StoreError: If there is none.
        """
        store = cls(root)
        if not store.trials.is_dir():
            found = "it has no folder trials/" if store.root.is_dir() else "there is no such folder"
            raise StoreError(
                f"{store.root} is no store: {found}. A store is the folder that a benchmark writes to (--store, by "
                "default runs/DATASET-RECIPE), with a folder per trial in trials/."
            )
        return store

    def create(self) -> None:
        """Make the folder and try to write into it.

        Raises:
            StoreError: If that fails, or it holds records of another format; it says why and what to do.
        """
        with _writing(self.root):
            self.trials.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.trials) as probe:
                probe.write(b"x")  # a full disk still makes empty files
                probe.flush()
        for old, place in moved_aside(self.trials):
            with contextlib.suppress(OSError):
                old.rename(place)
        for name in self.names():  # now, and not when the tables are written after hours of training
            check_format(self.trials / name)

    def folder(self, trial: Trial) -> Path:
        """Return the folder for the record of a trial."""
        return self.trials / trial.folder

    def checkpoints(self, trial: Trial) -> Path:
        """Return the folder for the state of a trial's unfinished fit."""
        return self.root / "unfinished" / trial.folder

    def remove_checkpoints(self, trial: Trial) -> None:
        """Remove the state of a fit that has ended, and the folder of such states if it was the last."""
        folder = self.checkpoints(trial)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()

    def logs(self, trial: Trial) -> Path:
        """Return the folder of a trial's log, where its callbacks may write too."""
        return self.root / "logs" / trial.folder

    def names(self) -> list[str]:
        """Return the names of all folders of trials, sorted."""
        return [name for name, _ in self.state() if (self.trials / name).is_dir()]

    def state(self) -> list[tuple[str, int]]:
        """Return names and numbers that change whenever a record comes, goes or is replaced."""
        if not self.trials.is_dir():
            return []
        with os.scandir(self.trials) as found:
            return sorted((entry.name, entry.inode()) for entry in found if not entry.name.startswith("."))

    def read(self, trial: Trial, arrays: bool = True) -> Record | None:
        """Return the record of a trial, or None if there is none.

        Raises:
            DamagedRecordError: If its folder is damaged.
            StoreError: If it is of another format.
        """
        record = self.read_folder(trial.folder, arrays)
        return record if record is not None and record.trial.digest == trial.digest else None

    def read_folder(self, name: str, arrays: bool = True) -> Record | None:
        """Return the record in a folder of `trials`, of any grid; None and `DamagedRecordError` as for `read`."""
        folder = self.trials / name
        for attempt in range(_ATTEMPTS):
            try:
                return read_record(folder, arrays)
            except StoreError:
                raise
            except DAMAGE as caught:
                # Another run may be replacing it at this moment.
                error = caught
                time.sleep(0.02 * (attempt + 1 < _ATTEMPTS))
        raise DamagedRecordError(
            f"{folder} is damaged ({type(error).__name__}: {error}). The same benchmark runs the trial again."
        ) from error

    def take(self, trial: Trial) -> Record | None:
        """Return the record of a trial without its arrays; None, with one warning, if it is damaged."""
        return next(self.records({trial.folder: trial.digest}, arrays=False), None)

    def records(self, digests: Mapping[str, str] | None = None, arrays: bool = True) -> Iterator[Record]:
        """Yield the records of trials, given as `digests` by name, or all records, sorted by name.

        A damaged record is left out, with one warning.
        """
        for name, digest in (dict.fromkeys(self.names(), "") if digests is None else digests).items():
            try:
                record = self.read_folder(name, arrays)
            except DamagedRecordError as error:
                if name not in self._warned:
                    _log.warning("%s", error)
                self._warned.add(name)
                continue
            if record is not None and digest in ("", record.trial.digest):
                yield record

    def has_model(self, name: str) -> bool:
        """Return whether the trained net in a folder of `trials` was kept and is there."""
        return not self.model_problem(name, compare=False)

    def has_result(self, record: Record | None, wants_model: bool, compare: bool = True) -> bool:
        """Return whether the trial of `record` need not run again: a result and, with `wants_model`, its net are there.

        With `compare` the net is compared with its checksum, and a warning names a damaged net.
        """
        if record is None or record.status == "failed":
            return False
        if not wants_model or record.trial.kind == "baseline":
            return True
        name = record.trial.folder
        problem = self.model_problem(name, compare)
        if problem and self.has_model(name):
            _log.warning("%s: %s. The trial runs again.", self.trials / name, problem)
        return not problem

    def model_problem(self, name: str, compare: bool = True) -> str:
        """Return why the trained net in a folder of `trials` cannot be used, or ""; `compare` checks its checksum."""
        return model_problem(self.trials / name, compare)

    def verify(self) -> dict[str, str]:
        """Compare every file with its checksum, nets included, and return the problem of each damaged folder."""
        names = self.names()
        # One after the other: Python 3.11 parses the headers of arrays wrongly in several threads, now and then.
        found = [name for name in track(names, len(names), "Checking records") if self._problem(name)]
        # A running benchmark replaces a whole folder by another: check a folder that seems damaged again.
        return {name: problem for name in found if (problem := self._problem(name))}

    def unfinished(self) -> list[Path]:
        """Return records and fits that were begun and not touched for a day; no links."""
        kept = {old for old, _ in moved_aside(self.trials)}  # `create` puts them back
        found = [path for path in paths_in(self.trials) if path.name.startswith(".") and path not in kept]
        return [path for path in (*found, *paths_in(self.root / "unfinished")) if _touched(path) < time.time() - _DAY]

    def write(self, record: Record, model: bytes | None = None) -> Path:
        """Keep the record of a trial, in place of an earlier one, and return its folder.

        Args:
            record: The record.
            model: The trained net, as the bytes of its file.

        Raises:
            StoreError: If it cannot be written; nothing half is left.
        """
        target = self.folder(record.trial)
        with _writing(target), new_folder(target) as folder:
            for name, content in files_of(record, model).items():
                write_file(folder / name, content)
        return target

    def write_file(self, name: str, content: str | bytes) -> Path:
        """Write `content` to the store's own file `name`, such as results.csv, aside, then in place; return its path.

        Raises:
            StoreError: If it cannot be written.
        """
        path = self.root / name
        with _writing(path):
            write_file(path, content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        return path

    def export(self, results: pd.DataFrame, timings: pd.DataFrame) -> None:
        """Write `results` and `timings` to their CSV files, floats so that they read back to the same value."""
        self.write_file("results.csv", results.to_csv(index=False, lineterminator="\n"))
        self.write_file("timings.csv", timings.to_csv(index=False, lineterminator="\n"))

    def _problem(self, name: str) -> str:
        """Return the problem of a trial's folder, or ""."""
        try:
            record = self.read_folder(name)
        except DamagedRecordError as error:
            return f"{type(error.__cause__).__name__}: {error.__cause__}"
        except StoreError as error:  # of another format
            return str(error)
        if record is None:
            return "it holds no record" if (self.trials / name).is_dir() else ""
        if record.trial.folder != name:
            return f"it holds the record of {record.trial.folder}"
        return self.model_problem(name) if self.has_model(name) else ""


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


def _touched(path: Path) -> float:
    """Return when a path, or one below it, was changed last; no link is followed."""
    times = [0.0]
    for each in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):  # it was deleted meanwhile
            times.append(each.lstat().st_mtime)
    return max(times)
