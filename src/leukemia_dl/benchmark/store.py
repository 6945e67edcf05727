"""The store: one folder per trial, written aside and moved in place, so that what is there is always whole.

STORE/settings.toml              what was asked for, in full
STORE/results.csv                a row per trial; equal between equal runs, rebuilt from the trials
STORE/timings.csv                seconds, machine and versions of each trial
STORE/trials/NAME-DIGEST/        record.json, history.csv, probabilities.npz, model.keras
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import shutil
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from leukemia_dl.benchmark.trial import Record, Status, Trial
from leukemia_dl.errors import StoreError

__all__ = ["Store"]

FORMAT = 2
MODEL_FILE = "model.keras"
_ATTEMPTS = 200
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError, zlib.error, zipfile.BadZipFile)


class Store:
    """A folder of trials. Any number of writers may share it: they never write the same file in place."""

    def __init__(self, root: str | Path) -> None:
        """Take the folder; nothing is written before `create`."""
        self.root = Path(root).expanduser()
        self.trials = self.root / "trials"

    def __repr__(self) -> str:
        """Name the folder."""
        return f"Store({str(self.root)!r})"

    def create(self) -> None:
        """Make the folder and try to write into it.

        Raises:
            StoreError: If that fails; it says why and what to do.
        """
        try:
            self.trials.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.trials):
                pass
        except OSError as error:
            raise StoreError(
                f"The store {self.root} cannot be written: {error.strerror or error}. "
                "Choose another folder (store=..., command line: --store) or mend its permissions or disk space."
            ) from error
        for file in sorted(self.trials.glob("[!.]*/record.json")):
            # Now, and not when the tables are written after hours of training.
            with contextlib.suppress(OSError, ValueError):
                _check_format(file.parent, json.loads(file.read_text(encoding="utf-8")))

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
        """Return the folder where a trial's callbacks may write."""
        return self.root / "logs" / trial.folder

    def read(self, trial: Trial) -> Record | None:
        """Return the record of a trial, or None if there is none.

        Raises:
            StoreError: If its folder is damaged, or of another format.
        """
        record = self._read(self.folder(trial))
        return record if record is not None and record.trial.digest == trial.digest else None

    def records(self) -> list[Record]:
        """Return every record of the store, whichever grid it is of, sorted by the name of its folder."""
        folders = sorted(folder for folder in self.trials.glob("[!.]*") if folder.is_dir())
        return [record for record in map(self._read, folders) if record is not None]

    def _read(self, folder: Path) -> Record | None:
        try:
            saved = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            _check_format(folder, saved)
            history = pd.read_csv(folder / "history.csv") if (folder / "history.csv").exists() else pd.DataFrame()
            with np.load(folder / "probabilities.npz", allow_pickle=False) as arrays:
                data = {name: arrays[name] for name in ("sides", "samples", "labels", "probabilities", "averaged")}
            metrics, averaged = (
                {name: float("nan") if value is None else value for name, value in saved[which].items()}
                for which in ("metrics", "metrics_averaged")
            )
            record = Record(
                Trial(**saved["trial"]),
                saved["status"],
                row=dict(saved["row"]),
                metrics=metrics,
                metrics_averaged=averaged,
                timings=dict(saved["timings"]),
                history=history,
                error=saved["error"],
                traceback=saved["traceback"],
                **data,
            )
            _check(record)
            return record
        except FileNotFoundError:
            return None
        except StoreError:
            raise
        except (*_DAMAGE, OSError) as error:
            raise StoreError(
                f"{folder} is damaged ({type(error).__name__}: {error}). Delete it: the trial is then run again."
            ) from error

    def write(self, record: Record, save_model: Callable[[Path], Any] | None = None) -> Path:
        """Keep what a trial left, in place of an earlier record of it.

        Args:
            record: The record.
            save_model: Called with the path to write the trained model to.

        Raises:
            StoreError: If it cannot be written; nothing half is left.
        """
        target = self.folder(record.trial)
        aside = self.trials / f".{record.trial.folder}-{uuid.uuid4().hex[:8]}"
        try:
            aside.mkdir()
            self._write_files(aside, record)
            if save_model is not None:
                save_model(aside / MODEL_FILE)
            self._move(aside, target)
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error}. Free space or choose another store.") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the store's own, such as results.csv, aside and then in place."""
        path = self.root / name
        aside = path.with_name(f".{name}-{uuid.uuid4().hex[:8]}")
        try:
            aside.write_bytes(text.encode("utf-8", "surrogateescape"))
            aside.replace(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error}. Free space or choose another store.") from error
        finally:
            aside.unlink(missing_ok=True)
        return path

    def export(self, results: pd.DataFrame, timings: pd.DataFrame) -> None:
        """Write results.csv and timings.csv. Floats are written so that they read back to the same value."""
        self.write_text("results.csv", results.to_csv(index=False, lineterminator="\n"))
        self.write_text("timings.csv", timings.to_csv(index=False, lineterminator="\n"))

    @staticmethod
    def _move(aside: Path, target: Path) -> None:
        """Put a folder in the place of another. Somebody else may do the same at this moment: the last one stays."""
        old = aside.with_name(aside.name + "-old")
        for attempt in range(_ATTEMPTS):
            try:
                # A folder cannot be replaced by a folder that holds files: move the old one out of the way first.
                with contextlib.suppress(FileNotFoundError):
                    target.replace(old)
                aside.replace(target)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(random.SystemRandom().uniform(0, 0.02))
            finally:
                shutil.rmtree(old, ignore_errors=True)

    @staticmethod
    def _write_files(folder: Path, record: Record) -> None:
        saved = {
            "format": FORMAT,
            "digest": record.trial.digest,
            "status": record.status,
            "trial": record.trial.to_dict(),
            "metrics": _without_nan(record.metrics),
            "metrics_averaged": _without_nan(record.metrics_averaged),
            "row": dict(record.row),
            "timings": dict(record.timings),
            "error": record.error,
            "traceback": record.traceback,
        }
        (folder / "record.json").write_text(json.dumps(saved, indent=1, allow_nan=False), encoding="utf-8")
        if len(record.history):
            record.history.to_csv(folder / "history.csv", index=False, lineterminator="\n")
        np.savez_compressed(
            folder / "probabilities.npz",
            sides=record.sides,
            samples=record.samples,
            labels=record.labels,
            probabilities=record.probabilities,
            averaged=record.averaged,
        )


def _check_format(folder: Path, saved: Mapping[str, Any]) -> None:
    if saved["format"] != FORMAT:
        raise StoreError(
            f"{folder} has format {saved['format']!r}; this version reads {FORMAT}. "
            "Use another store, or the version of leukemia-dl that wrote it."
        )


def _without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in metrics.items()}


def _check(record: Record) -> None:
    """Raise ValueError if a record that could be read makes no sense."""
    if record.status not in get_args(Status):
        raise ValueError(f"status is {record.status!r}")
    if not all(isinstance(value, float | int) for value in record.metrics.values()):
        raise ValueError("a metric is no number")
    count = len(record.samples)
    if record.status == "ok" and not count == len(record.sides) == len(record.labels) == len(record.probabilities):
        raise ValueError("its predictions differ in number")
