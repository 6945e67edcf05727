"""What a store holds of the benchmark that it was made for: enough to report on it, with or without the images."""

from __future__ import annotations

import contextlib
import logging
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from leukemia_dl.benchmark.frames import history_frame, prediction_frame, result_frame, timing_frame
from leukemia_dl.benchmark.grid import Cell
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import DamagedRecordError, StoreError, UnknownNameError
from leukemia_dl.preprocess import Pipeline

if TYPE_CHECKING:
    from leukemia_dl.benchmark.benchmark import Benchmark

__all__ = [
    "GRID_FILE", "SAMPLES_FILE", "SETTINGS_FILE", "StoredRun", "grid_frame", "read_run", "run_of", "sample_frame",
    "write_run",
]  # fmt: skip

SETTINGS_FILE, GRID_FILE, SAMPLES_FILE = "settings.toml", "grid.csv", "samples.csv"
_GRID = ["trial", "digest", "kind", "backbone", "protocol", "fold", "seed"]
_SAMPLES = ["sample", "subject", "group", "same_cell"]
_NEEDED: dict[str, tuple[str, ...]] = {
    "dataset": ("name", "title", "class_names", "fingerprint"),
    "recipe": ("name",),
    "pipeline": (),
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A benchmark as its store knows it.

    Attributes:
        store: Where its trials are.
        text: Its settings, TOML.
        grid: A row per trial that was asked for: `trial` (its folder), `digest`, `kind`, `backbone`, `protocol`,
            `fold`, `seed`.
        samples: `sample`, `subject`, `group`, `same_cell` of the data set.
    """

    store: Store
    text: str
    grid: pd.DataFrame
    samples: pd.DataFrame

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Its settings as a dictionary of tables."""
        return tomllib.loads(self.text)

    @property
    def class_names(self) -> list[str]:
        """Classes, in label order."""
        return [str(name) for name in self.settings["dataset"]["class_names"]]

    @cached_property
    def results(self) -> pd.DataFrame:
        """A row per finished trial, in the order of the grid, see `Benchmark.results`."""
        return result_frame(self._records)

    @cached_property
    def timings(self) -> pd.DataFrame:
        """See `Benchmark.timings`."""
        return timing_frame(self._records)

    @cached_property
    def histories(self) -> pd.DataFrame:
        """See `Benchmark.histories`."""
        return history_frame(self._records)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """See `Benchmark.predictions`."""
        return prediction_frame(self._records, self.class_names, self.samples)

    @property
    def missing(self) -> pd.DataFrame:
        """The rows of the grid whose trial the store does not hold, whole."""
        there = {record.trial.folder for record in self._records}
        return self.grid[~self.grid["trial"].isin(there)]

    @cached_property
    def others(self) -> int:
        """How many trials of other benchmarks the store holds."""
        return len(set(self.store.names()) - set(self.grid["trial"]))

    @cached_property
    def _records(self) -> list[Record]:
        return list(self._read())

    def _read(self) -> Iterator[Record]:
        known = set(self.samples["sample"])
        for name, digest in zip(self.grid["trial"], self.grid["digest"], strict=True):
            try:
                record = self.store.read_folder(name)
            except DamagedRecordError as error:
                _log.warning("%s", error)
                continue
            if record is None or record.trial.digest != digest:
                continue
            if record.status == "ok" and not self._fits(record, known):
                _log.warning("%s is of other classes or images than the run, and is left out", self.store.trials / name)
                continue
            yield record

    def _fits(self, record: Record, known: set[str]) -> bool:
        """Return whether predictions are of this run's images and classes."""
        n, k = len(record.samples), len(self.class_names)
        labels, arrays = record.labels, [record.probabilities, *([record.averaged] if record.metrics_averaged else [])]
        return (
            labels.shape == (n,)
            and labels.dtype.kind in "iu"
            and bool(((labels >= 0) & (labels < k)).all())
            and all(array.shape == (n, k) and np.isfinite(array).all() for array in arrays)
            and known.issuperset(record.samples)
        )


def run_of(bench: Benchmark) -> StoredRun:
    """Return what the store of a benchmark holds of it."""
    return StoredRun(bench.store, bench.to_toml(), grid_frame(bench._grid), sample_frame(bench.dataset))


def write_run(bench: Benchmark) -> None:
    """Write down what was asked for, so that its store tells of it without the data set.

    Raises:
        StoreError: If the store cannot be written.
    """
    run = run_of(bench)
    run.store.write_text(SETTINGS_FILE, run.text)
    for name, frame in ((GRID_FILE, run.grid), (SAMPLES_FILE, run.samples)):
        run.store.write_text(name, frame.to_csv(index=False, lineterminator="\n"))


def read_run(folder: str | Path) -> StoredRun:
    """Return the run that a store was made for last, finished or not.

    Raises:
        StoreError: If the folder is no store, or one that an earlier version made.
    """
    try:
        store = Store(folder)
    except RuntimeError as error:  # ~somebody who is not there
        raise StoreError(f"{folder} is no path that can be used: {error}.") from None
    try:
        text = (store.root / SETTINGS_FILE).read_text(encoding="utf-8")
        grid, samples = (_read_csv(store.root / name) for name in (GRID_FILE, SAMPLES_FILE))
        # As in a data set's table; arrow cannot hold names that are not UTF-8.
        samples = samples.astype(pd.StringDtype("python"))
        run = StoredRun(store, text, grid.astype({"fold": "Int64", "seed": "Int64"}), samples)
        _check(run)
    except FileNotFoundError as error:
        raise StoreError(
            f"{store.root} is not the store of a benchmark, or an earlier version made it: it has no "
            f"{Path(str(error.filename)).name}. The same benchmark, run again on it, writes that and keeps its trials."
        ) from error
    except OSError as error:
        raise StoreError(f"{store.root} cannot be read: {error.strerror or error}.") from error
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise StoreError(_damaged(store.root, error)) from error
    return run


def _check(run: StoredRun) -> None:
    """Raise KeyError, TypeError or ValueError if something is missing, or a name of a trial leads elsewhere."""
    said = run.settings
    for table, names in _NEEDED.items():
        missing = [name for name in names if not isinstance(said[table][name], (str, list))]
        if missing:
            raise ValueError(f"{table}.{missing[0]} is {said[table][missing[0]]!r}")
    if not isinstance(said["dataset"]["class_names"], list) or len(set(run.class_names)) < 2:
        raise ValueError("there are no classes")
    for name in ("licence", "citation", "url", "root"):
        if not isinstance(said["dataset"].get(name, ""), str):
            raise ValueError(f"dataset.{name} is no text")
    for size, steps in said["pipeline"].items():
        int(size)
        for step in steps["steps"]:
            with contextlib.suppress(UnknownNameError):  # one of somebody's own, whose module is not imported here
                Pipeline.from_dict({"steps": [step]})
    if not said["pipeline"] or len(set(run.class_names)) < len(run.class_names):
        raise ValueError("there is no pipeline, or a class is there twice")
    run.grid[_GRID], run.samples[_SAMPLES]
    if run.grid["trial"].duplicated().any() or run.grid[["kind", "backbone", "protocol"]].isna().any(axis=None):
        raise ValueError("a trial is there twice, or has no name")
    for name in run.grid["trial"]:
        if not isinstance(name, str) or name.startswith(".") or Path(name).name != name or "\\" in name:
            raise ValueError(f"{name!r} is no name of a trial")
    if run.samples["sample"].isna().any() or run.samples["sample"].duplicated().any():
        raise ValueError("samples have no name, or one that is there twice")


def grid_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return a row per trial of a grid, which a store keeps as grid.csv."""
    rows = [{"trial": c.trial.folder, **{name: getattr(c.trial, name) for name in _GRID[1:]}} for c in cells]
    return pd.DataFrame(rows, columns=_GRID).astype({"fold": "Int64", "seed": "Int64"})


def sample_frame(dataset: Dataset) -> pd.DataFrame:
    """Return what predictions are to be joined with, which a store keeps as samples.csv."""
    return dataset.table[_SAMPLES]


def _read_csv(path: Path) -> pd.DataFrame:
    # A patient may be called NA: only what is empty is missing.
    names: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_values": [""]}
    table: pd.DataFrame = pd.read_csv(path, encoding="utf-8", encoding_errors="surrogateescape", **names)
    return table


def _damaged(root: Path, why: object) -> str:
    return (
        f"{root}: its {SETTINGS_FILE}, {GRID_FILE} or {SAMPLES_FILE} is damaged ({why}). The same benchmark, run again "
        "on it, writes them anew and keeps its trials."
    )
