"""The files of a benchmark in its store, grids/DIGEST/, and reading it back, with or without the images.

settings.toml   settings that repeat it, see `settings`
grid.csv        a row per trial that it asks for
samples.csv     patient and group of each image
"""

from __future__ import annotations

import contextlib
import io
import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.benchmark import settings
from leukemia_dl.benchmark.frames import history_frame, prediction_frame, result_frame, timing_frame
from leukemia_dl.benchmark.plan import Plan
from leukemia_dl.benchmark.record_files import MOST_BYTES, read_file
from leukemia_dl.benchmark.store import Store, paths_in
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.errors import StoreError, UnknownNameError
from leukemia_dl.identity import digest
from leukemia_dl.preprocess import Pipeline

__all__ = ["StoredRun", "read_run", "run_of", "write_run"]

GRIDS, SETTINGS_FILE, GRID_FILE, SAMPLES_FILE = "grids", "settings.toml", "grid.csv", "samples.csv"
_GRID = ["trial", "digest", "kind", "backbone", "protocol", "fold", "seed", "recipe", "changes"]
_SAMPLES = ["sample", "subject", "group", "same_cell"]
_SAMPLES_BYTES, _ALL_BYTES = 128 * 2**20, 256 * 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A benchmark as its store knows it.

    Attributes:
        store: The store of its trials.
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
        return self._named(result_frame(self._records))

    @cached_property
    def timings(self) -> pd.DataFrame:
        """See `Benchmark.timings`."""
        return self._named(timing_frame(self._records))

    @cached_property
    def histories(self) -> pd.DataFrame:
        """See `Benchmark.histories`."""
        return self._named(history_frame(self._records))

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """See `Benchmark.predictions`."""
        return self._named(prediction_frame(self._records, self.class_names, self.samples))

    @cached_property
    def others(self) -> int:
        """How many trials of other benchmarks the store holds."""
        return len(set(self.store.names()) - set(self.grid["trial"]))

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        if self.suffixes and len(frame):
            frame["backbone"] += frame["trial"].map(self.suffixes)
        return frame

    @cached_property
    def _records(self) -> list[Record]:
        found, known = [], set(self.samples["sample"])
        for record in self.store.records(dict(zip(self.grid["trial"], self.grid["digest"], strict=True))):
            if record.status != "ok" or self._fits(record, known):
                found.append(record)
            else:
                _log.warning("%s is left out: it is of other classes or images than the run", record.trial.folder)
        return found

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


def run_of(plan: Plan, store: Store) -> StoredRun:
    """Return a benchmark as its store knows it, or will."""
    rows = [
        {"trial": planned.trial.folder, **{name: getattr(planned.trial, name) for name in _GRID[1:-2]}}
        | {"recipe": (planned.trial.recipe or {}).get("name", ""), "changes": planned.changes}
        for planned in plan.trials
    ]
    grid = pd.DataFrame(rows, columns=_GRID).astype({"fold": "Int64", "seed": "Int64"})
    return StoredRun(store, settings.dump(plan, store), grid, plan.dataset.table[_SAMPLES])


def write_run(plan: Plan, store: Store) -> None:
    """Write the settings, grid and samples of a benchmark into its folder in grids/, which is named by its trials.

    `settings.toml` in the store is a copy for the user, of the benchmark that ran last, which is never read back.

    Raises:
        StoreError: If the store cannot be written.
    """
    run = run_of(plan, store)
    store.write_file(SETTINGS_FILE, run.text)
    for name, frame in ((GRID_FILE, run.grid), (SAMPLES_FILE, run.samples)):
        store.write_file(f"{GRIDS}/{run.folder.name}/{name}", frame.to_csv(index=False, lineterminator="\n"))
    # Last: a folder without settings is being written.
    store.write_file(f"{GRIDS}/{run.folder.name}/{SETTINGS_FILE}", run.text)


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
        alone = root.parent.name == GRIDS
        folders = [path for path in ([root] if alone else paths_in(root / GRIDS)) if (path / SETTINGS_FILE).exists()]
        size = sum(file.lstat().st_size for path in folders for file in path.iterdir())
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder for ~name
        raise StoreError(f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    store = Store(root.parent.parent if alone else root)
    if size > _ALL_BYTES and not alone:
        raise StoreError(f"{root / GRIDS} is larger than {_ALL_BYTES:,} bytes. Give the folder of one benchmark there.")
    if not folders:
        raise StoreError(
            f"{store.root} is not the store of a benchmark, or an earlier version made it: it has no "
            f"{GRIDS}/*/{SETTINGS_FILE}. The same benchmark, run again on it, writes that."
        )
    runs: dict[Path, StoredRun] = {}
    for path, run in sorted(((path, _read_one(store, path)) for path in folders), key=lambda pair: -len(pair[1].grid)):
        if not any(set(run.grid["trial"]) <= set(other.grid["trial"]) for other in runs.values()):
            runs[path] = run
    found = next(iter(runs.values())) if len(runs) == 1 else _joined([*runs.values()]) if together else None
    if found is None:
        each = "; ".join(f"{path} ({_words(run)})" for path, run in runs.items())
        raise StoreError(f"{store.root} holds {len(runs)} benchmarks. Give the folder of one instead: {each}.")
    return found


def _read_one(store: Store, folder: Path) -> StoredRun:
    try:
        text = read_file(folder / SETTINGS_FILE).decode()
        # As in a data set's table; arrow cannot hold names that are not UTF-8.
        samples = _read_csv(folder / SAMPLES_FILE, _SAMPLES_BYTES).astype(pd.StringDtype("python"))
        grid = _read_csv(folder / GRID_FILE, MOST_BYTES)
        grid = grid.astype({"fold": "Int64", "seed": "Int64"}).fillna({"recipe": "", "changes": ""})
        run = StoredRun(store, text, grid, samples)
        _check(run)
    except OSError as error:
        raise StoreError(f"{error.filename or folder} cannot be read: {error.strerror or error}.") from error
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise StoreError(
            f"{folder}: its {SETTINGS_FILE}, {GRID_FILE} or {SAMPLES_FILE} is damaged ({error}). The same benchmark, "
            "run again on the store, writes them again and keeps its trials."
        ) from error
    return run


def _read_csv(path: Path, most: int) -> pd.DataFrame:
    # A patient may be called NA: only an empty field is missing.
    content = io.BytesIO(read_file(path, most))
    return pd.read_csv(content, dtype=str, keep_default_na=False, na_values=[""], encoding_errors="surrogateescape")


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
    data, classes = run.settings["dataset"], run.class_names
    texts = [data[name] for name in ("name", "title", "fingerprint")] + [run.settings["recipe"]["name"]]
    texts += [data.get(name, "") for name in ("licence", "citation", "url", "root")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"one of {texts} is no text")
    if not isinstance(data["class_names"], list) or len(set(classes)) < max(2, len(classes)):
        raise ValueError(f"the classes are {data['class_names']}")
    if not run.settings["pipeline"]:
        raise ValueError("there is no pipeline")
    for size, steps in run.settings["pipeline"].items():
        int(size)
        for step in steps["steps"]:
            with contextlib.suppress(UnknownNameError):  # a step of a module that is not imported here
                Pipeline.from_dict({"steps": [step]})
    names, samples = run.grid[_GRID]["trial"], run.samples[_SAMPLES]["sample"]
    if run.grid[["kind", "backbone", "protocol"]].isna().any(axis=None):
        raise ValueError("a trial has no kind, backbone or protocol")
    for name in names:
        if not isinstance(name, str) or name.startswith(".") or Path(name).name != name or "\\" in name:
            raise ValueError(f"{name!r} is no name of a trial")
    if names.duplicated().any() or samples.duplicated().any() or samples.isna().any():
        raise ValueError("a trial or sample is there twice or has no name")
