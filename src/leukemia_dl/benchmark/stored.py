"""What a store holds of the benchmark that it was made for: enough to report on it, with or without the images."""

from __future__ import annotations

import contextlib
import io
import logging
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from leukemia_dl.benchmark.files import MOST_BYTES, read_file
from leukemia_dl.benchmark.frames import history_frame, prediction_frame, result_frame, timing_frame
from leukemia_dl.benchmark.grid import Cell
from leukemia_dl.benchmark.maintenance import paths_in
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import DamagedRecordError, StoreError, UnknownNameError
from leukemia_dl.identity import digest
from leukemia_dl.preprocess import Pipeline

if TYPE_CHECKING:
    from leukemia_dl.benchmark.benchmark import Benchmark

__all__ = [
    "GRIDS", "GRID_FILE", "SAMPLES_FILE", "SETTINGS_FILE", "StoredRun", "grid_frame", "read_run", "run_of",
    "sample_frame", "write_run",
]  # fmt: skip

GRIDS, SETTINGS_FILE, GRID_FILE, SAMPLES_FILE = "grids", "settings.toml", "grid.csv", "samples.csv"
_GRID = ["trial", "digest", "kind", "backbone", "protocol", "fold", "seed", "recipe", "changes"]
_SAMPLES_BYTES, _ALL_BYTES = 128 * 2**20, 256 * 2**20
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
            `fold`, `seed`, `recipe`, `changes` (settings that differ from the recipe's preset).
        samples: `sample`, `subject`, `group`, `same_cell` of the data set.
        suffixes: By trial, text added to its backbone's name in all frames, where one backbone has several recipes.
    """

    store: Store
    text: str
    grid: pd.DataFrame
    samples: pd.DataFrame
    suffixes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Its settings as a dictionary of tables."""
        return tomllib.loads(self.text)

    @property
    def folder(self) -> Path:
        """Its folder in the store, named by its trials."""
        return self.store.root / GRIDS / digest(self.grid["digest"].tolist())[:12]

    @property
    def class_names(self) -> list[str]:
        """Classes, in label order."""
        return [str(name) for name in self.settings["dataset"]["class_names"]]

    @cached_property
    def results(self) -> pd.DataFrame:
        """A row per finished trial, in the order of the grid, see `Benchmark.results`."""
        return self._called(result_frame(self._records))

    @cached_property
    def timings(self) -> pd.DataFrame:
        """See `Benchmark.timings`."""
        return self._called(timing_frame(self._records))

    @cached_property
    def histories(self) -> pd.DataFrame:
        """See `Benchmark.histories`."""
        return self._called(history_frame(self._records))

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """See `Benchmark.predictions`."""
        return self._called(prediction_frame(self._records, self.class_names, self.samples))

    @cached_property
    def others(self) -> int:
        """How many trials of other benchmarks the store holds."""
        return len(set(self.store.names()) - set(self.grid["trial"]))

    def _called(self, frame: pd.DataFrame) -> pd.DataFrame:
        if self.suffixes and len(frame):
            frame["backbone"] += frame["trial"].map(self.suffixes)
        return frame

    @cached_property
    def _records(self) -> list[Record]:
        return list(self._read())

    def _read(self) -> Iterator[Record]:
        known = set(self.samples["sample"])
        for name, expected in zip(self.grid["trial"], self.grid["digest"], strict=True):
            try:
                record = self.store.read_folder(name)
            except DamagedRecordError as error:
                _log.warning("%s", error)
                continue
            if record is None or record.trial.digest != expected:
                continue
            if record.status == "ok" and not self._fits(record, known):
                _log.warning("%s is of other classes or images than the run, and is left out", self.store.trials / name)
                continue
            yield record

    def _fits(self, record: Record, known: set[str]) -> bool:
        """Return whether predictions are of this run's images and classes."""
        n, k = len(record.samples), len(self.class_names)
        labels, arrays = record.labels, [record.probabilities, *([record.tta] if record.metrics_tta else [])]
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
    """Write the settings, grid and samples of a benchmark into its folder in grids/, which is named by its trials.

    Another benchmark in the same store has another folder. `settings.toml` in the store is a copy for the user, of the
    benchmark that ran last, which is never read back.

    Raises:
        StoreError: If the store cannot be written.
    """
    run = run_of(bench)
    run.store.write_text(SETTINGS_FILE, run.text)
    tables = ((GRID_FILE, run.grid), (SAMPLES_FILE, run.samples))
    texts = {name: frame.to_csv(index=False, lineterminator="\n") for name, frame in tables}
    for name, text in (texts | {SETTINGS_FILE: run.text}).items():
        run.store.write_text(f"{GRIDS}/{run.folder.name}/{name}", text)


def read_run(folder: str | Path, together: bool = False) -> StoredRun:
    """Return the benchmark that a store was made for, finished or not.

    A benchmark whose trials are all part of another benchmark in the store is ignored.

    Args:
        folder: A store, or one folder of its grids/.
        together: Whether to combine several benchmarks on one data set; names of backbones then say how they differ.

    Raises:
        StoreError: If the folder is no store, or holds several benchmarks and `together` is False or they cannot be
            combined; the message names the folder of each.
    """
    try:
        root = Path(folder).expanduser().absolute()
    except RuntimeError as error:  # ~somebody who is not there
        raise StoreError(f"{folder} is no path that can be used: {error}.") from None
    alone = root.parent.name == GRIDS
    store = Store(root.parent.parent if alone else root)
    # The settings are written last: a folder without them is being written.
    try:
        folders = [path for path in ([root] if alone else paths_in(root / GRIDS)) if (path / SETTINGS_FILE).exists()]
        size = sum(file.lstat().st_size for path in folders for file in path.iterdir())
    except OSError as error:
        raise StoreError(f"{error.filename or root} cannot be read: {error.strerror or error}.") from error
    if size > _ALL_BYTES and not alone:
        raise StoreError(f"{root / GRIDS} is larger than {_ALL_BYTES:,} bytes. Give the folder of one benchmark there.")
    if not folders:
        raise StoreError(
            f"{store.root} is not the store of a benchmark, or an earlier version made it: it has no "
            f"{GRIDS}/*/{SETTINGS_FILE}. The same benchmark, run again on it, writes that."
        )
    runs: dict[Path, StoredRun] = {}
    for path, run in sorted(((path, _read(store, path)) for path in folders), key=lambda pair: -len(pair[1].grid)):
        if not any(set(run.grid["trial"]) <= set(other.grid["trial"]) for other in runs.values()):
            runs[path] = run
    found = next(iter(runs.values())) if len(runs) == 1 else _joined([*runs.values()]) if together else None
    if found is None:
        each = "; ".join(f"{path} ({_words(run)})" for path, run in runs.items())
        raise StoreError(f"{store.root} holds {len(runs)} benchmarks. Give the folder of one instead: {each}.")
    return found


def _read(store: Store, folder: Path) -> StoredRun:
    try:
        text = read_file(folder / SETTINGS_FILE).decode()
        grid, samples = _read_csv(folder / GRID_FILE), _read_csv(folder / SAMPLES_FILE, _SAMPLES_BYTES)
        # As in a data set's table; arrow cannot hold names that are not UTF-8.
        samples = samples.astype(pd.StringDtype("python"))
        grid = grid.astype({"fold": "Int64", "seed": "Int64"}).fillna({"recipe": "", "changes": ""})
        run = StoredRun(store, text, grid, samples)
        _check(run)
    except OSError as error:
        raise StoreError(f"{error.filename or folder} cannot be read: {error.strerror or error}.") from error
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise StoreError(
            f"{folder}: its {SETTINGS_FILE}, {GRID_FILE} or {SAMPLES_FILE} is damaged ({error}). The same benchmark, "
            "run again on the store, writes them anew and keeps its trials."
        ) from error
    return run


def _joined(runs: Sequence[StoredRun]) -> StoredRun | None:
    """Return several benchmarks as one; None if their data differ, or trials could not be distinguished."""
    if len({(run.settings["dataset"]["fingerprint"], *run.class_names) for run in runs}) > 1:
        return None
    grid = pd.concat([run.grid for run in runs]).drop_duplicates("digest").reset_index(drop=True)
    by_backbone = grid.groupby("backbone")
    # The recipe's name only where there are several, the changes only where they differ.
    several = by_backbone["recipe"].transform("nunique") > 1
    label = (grid["recipe"].where(several, "") + ", " + grid["changes"]).str.strip(", ")
    varied = label.groupby(grid["backbone"]).transform("nunique") > 1
    suffix = (" (" + label + ")").where(varied & (label != ""), "")
    grid["backbone"] += suffix
    if grid.duplicated(["backbone", "protocol", "fold", "seed"]).any():
        return None
    return replace(runs[0], grid=grid, suffixes=dict(zip(grid["trial"], suffix, strict=True)))


def _words(run: StoredRun) -> str:
    nets = run.grid[run.grid["kind"] == "backbone"]
    named = (", ".join(dict.fromkeys(nets[name])) for name in ("backbone", "recipe", "changes"))
    return "; ".join([f"{len(run.grid):,} trials of {run.settings['dataset']['name']}", *filter(None, named)])


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
    rows = [
        {"trial": c.trial.folder, **{name: getattr(c.trial, name) for name in _GRID[1:-2]}}
        | {"recipe": (c.trial.recipe or {}).get("name", ""), "changes": c.changes}
        for c in cells
    ]
    return pd.DataFrame(rows, columns=_GRID).astype({"fold": "Int64", "seed": "Int64"})


def sample_frame(dataset: Dataset) -> pd.DataFrame:
    """Return what predictions are to be joined with, which a store keeps as samples.csv."""
    return dataset.table[_SAMPLES]


def _read_csv(path: Path, most: int = MOST_BYTES) -> pd.DataFrame:
    # A patient may be called NA: only what is empty is missing.
    names: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_values": [""]}
    content = io.BytesIO(read_file(path, most))
    table: pd.DataFrame = pd.read_csv(content, encoding="utf-8", encoding_errors="surrogateescape", **names)
    return table
