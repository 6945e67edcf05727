"""The store: one folder per trial, written aside and moved in place, so that what is there is always whole.

STORE/grids/DIGEST/              a benchmark: settings.toml, grid.csv (its trials), samples.csv (patients of images)
STORE/settings.toml, *.csv       exports for the user, never read back: settings of the last run; results.csv, a row
                                 per trial, equal between equal runs; timings.csv, seconds, machine and versions
STORE/trials/NAME-DIGEST/        the record of a trial, see `files`
STORE/unfinished/NAME-DIGEST/    checkpoints of a fit that has not ended
STORE/logs/NAME-DIGEST/          log.txt, and what callbacks write
STORE/quarantine/                records that were damaged
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from leukemia_dl.atomic import moved_aside, new_folder, sha256_of_file, write_file
from leukemia_dl.benchmark.files import (
    DAMAGE,
    FORMAT,
    MODEL_FILE,
    SUMS_FILE,
    check_format,
    pack,
    read_file,
    read_sums,
    unpack,
)
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.errors import DamagedRecordError, StoreError

__all__ = ["Store"]

_LOOKS = 3
_log = logging.getLogger(__name__)


class Store:
    """A folder of trials. Any number of writers may share it: they never write the same file in place.

    In its methods `trial` is a `Trial`, `name` that of a trial's folder (`Trial.folder`, `names()`), and `arrays` says
    whether to read history, predictions and traceback too, which are left empty otherwise.

    Args:
        root: The folder; nothing is written before `create`.
    """

    def __init__(self, root: str | Path) -> None:
        """Take the folder."""
        self.root = Path(root).expanduser()
        self.trials = self.root / "trials"

    def __repr__(self) -> str:
        """Name the folder."""
        return f"Store({str(self.root)!r})"

    def create(self) -> None:
        """Make the folder and try to write into it.

        Raises:
            StoreError: If that fails, or it holds records of another format; it says why and what to do.
        """
        try:
            self.trials.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.trials) as probe:
                probe.write(b"x")  # a full disk still makes empty files
                probe.flush()
        except OSError as error:
            raise StoreError(
                f"The store {self.root} cannot be written: {error.strerror or error}. "
                "Choose another folder (store=..., command line: --store) or mend its permissions or disk space."
            ) from error
        for old, place in self.displaced():
            with contextlib.suppress(OSError):
                old.rename(place)
        for file in self.trials.glob("[!.]*/record.json"):
            # Now, and not when the tables are written after hours of training. Damage is the business of `take`.
            found = FORMAT
            with contextlib.suppress(OSError, *DAMAGE):
                found = json.loads(read_file(file))["format"]
            if found != FORMAT:
                check_format(file.parent, found)

    def displaced(self) -> list[tuple[Path, Path]]:
        """Return records that were moved away by a writer who was then killed, and where they belong."""
        return moved_aside(self.trials)

    def folder(self, trial: Trial) -> Path:
        """Return the folder that holds, or would hold, what a trial left."""
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
        if not self.trials.is_dir():
            return []
        return sorted(path.name for path in self.trials.iterdir() if not path.name.startswith(".") and path.is_dir())

    def state(self) -> list[tuple[str, int]]:
        """Return what changes whenever a record comes, goes or is replaced."""
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
        """Return the record in a folder of `trials`, whichever grid it is of; likewise, DamagedRecordError included."""
        folder = self.trials / name
        for attempt in range(_LOOKS):
            try:
                return unpack(folder, arrays)
            except StoreError:
                raise
            except (*DAMAGE, OSError) as caught:
                # Another driver may be replacing it at this moment.
                error = caught
                time.sleep(0.02 * (attempt + 1 < _LOOKS))
        raise DamagedRecordError(
            f"{folder} is damaged ({type(error).__name__}: {error}). `run` puts it into quarantine and runs the "
            "trial again."
        ) from error

    def take(self, trial: Trial) -> Record | None:
        """Return the record of a trial without its arrays; a damaged one goes to quarantine, with a warning: None."""
        try:
            return self.read(trial, arrays=False)
        except DamagedRecordError as error:
            place = self.quarantine(trial.folder)
            _log.warning("%s It was moved to %s.", str(error).partition(" `run`")[0], place)
            return None

    def quarantine(self, name: str) -> Path:
        """Move a folder of `trials` out of the way, and return where to; StoreError if that cannot be done."""
        place = self.root / "quarantine" / f"{name}-{uuid.uuid4().hex[:8]}"
        try:
            place.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another driver was faster
                (self.trials / name).replace(place)
            with contextlib.suppress(*DAMAGE, OSError):
                if unpack(place) is not None:  # it was replaced by a whole one in the last moment
                    place.rename(self.trials / name)
        except OSError as error:
            raise StoreError(f"{self.trials / name} is damaged and cannot be moved: {error}.") from error
        return place

    def records(self, arrays: bool = True) -> Iterator[Record]:
        """Yield every record of the store that can be read, sorted by the name of its folder; others with a warning."""
        for name in self.names():
            try:
                record = self.read_folder(name, arrays)
            except DamagedRecordError as error:
                _log.warning("%s", error)
                continue
            if record is not None:
                yield record

    def has_model(self, name: str) -> bool:
        """Return whether the trained net in a folder of `trials` was kept and is there."""
        return not self.model_problem(name, compare=False)

    def model_problem(self, name: str, compare: bool = True) -> str:
        """Return why the trained net in a folder of `trials` cannot be used, or ""; `compare` checks its checksum."""
        folder = self.trials / name
        try:
            expected = read_sums(folder).get(MODEL_FILE)
            if expected is None or not (folder / MODEL_FILE).is_file():
                return f"{MODEL_FILE} is not there"
            whole = not compare or sha256_of_file(folder / MODEL_FILE) == expected
        except (OSError, ValueError) as error:
            return f"{MODEL_FILE} cannot be read: {error}"
        return "" if whole else f"{MODEL_FILE} has another checksum than {SUMS_FILE} says"

    def write(self, record: Record, model: bytes | None = None) -> Path:
        """Keep what a trial left, in place of an earlier record of it, and return its folder.

        Args:
            record: The record.
            model: The trained net, as the bytes of its file.

        Raises:
            StoreError: If it cannot be written; nothing half is left.
        """
        target = self.folder(record.trial)
        try:
            with new_folder(target) as folder:
                for name, content in pack(record, model).items():
                    write_file(folder / name, content)
        except OSError as error:
            raise StoreError(
                f"{target} cannot be written: {error.strerror or error}. Free space or choose another store. "
                "Finished trials are kept, and this one goes on from its last epoch: run it again."
            ) from error
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Write `text` to the store's own file `name`, such as results.csv, aside, then in place; return its path."""
        return self.write_bytes(name, text.encode("utf-8", "surrogateescape"))

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write `content` likewise; StoreError if that fails."""
        path = self.root / name
        try:
            write_file(path, content)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written: {error.strerror or error}. Free space or choose another store."
            ) from error
        return path

    def export(self, results: pd.DataFrame, timings: pd.DataFrame) -> None:
        """Write `results` and `timings` to their CSV files, floats so that they read back to the same value."""
        self.write_text("results.csv", results.to_csv(index=False, lineterminator="\n"))
        self.write_text("timings.csv", timings.to_csv(index=False, lineterminator="\n"))
