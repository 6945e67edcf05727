"""The files of a benchmark in its store, grids/DIGEST/ (settings.toml, grid.csv, samples.csv), and how to read them."""

import io
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.benchmark import records
from leukemia_dl.benchmark.plan import Plan
from leukemia_dl.benchmark.records import Record
from leukemia_dl.benchmark.store import Store, read_file
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.cache import user_path
from leukemia_dl.errors import DataError, SettingsError, StoreError
from leukemia_dl.identity import digest
from leukemia_dl.models.build import backend_name
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.recipe import Recipe

GRIDS, SETTINGS_FILE, GRID_FILE, SAMPLES_FILE = "grids", "settings.toml", "grid.csv", "samples.csv"
_GRID = ["trial", "digest", "kind", "backbone", "protocol", "fold", "seed", "recipe", "changes"]
_SAMPLES = ["sample", "subject", "group", "same_cell"]
_TABLES = {"dataset", "benchmark", "recipe", "pipeline", "made_with"}
_MOST_CSV_BYTES = 2**27


def _frame(make: Callable[[list[Record]], pd.DataFrame]) -> cached_property[pd.DataFrame]:
    return cached_property(lambda run: make(run._records))


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A benchmark as its store knows it; its frames are those of `Benchmark`."""

    store: Store
    text: str  # its settings, TOML
    grid: pd.DataFrame  # the columns _GRID of each trial that it asks for
    samples: pd.DataFrame  # the columns _SAMPLES of its data set

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
    def others(self) -> int:
        """How many trials of other benchmarks the store holds."""
        return len(set(self.store.names()) - set(self.grid["trial"]))

    results = _frame(records.result_frame)  # a row per finished trial, in the order of the grid
    timings = _frame(records.timing_frame)
    histories = _frame(records.history_frame)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The prediction frame; StoreError if it is not of the classes and images of the grid's files."""
        try:
            return records.prediction_frame(self._records, self.class_names, self.samples)
        except (LookupError, TypeError, ValueError) as error:
            problem = f"its predictions are not of the classes and images of {self.folder}"
            raise StoreError(f"{self.store.root} is damaged: {problem} ({type(error).__name__}: {error}).") from error

    @cached_property
    def _records(self) -> list[Record]:
        return list(self.store.records(self.grid["trial"]))


def run_of(plan: Plan, store: Store) -> StoredRun:
    """Return a benchmark as its store knows it, or will."""
    recipes = [planned.recipe.name if planned.recipe else "" for planned in plan.trials]
    rows = [{**one.trial.to_dict(), "trial": one.trial.folder, "digest": one.trial.digest} for one in plan.trials]
    changes = [planned.changes for planned in plan.trials]
    grid = pd.DataFrame(rows).assign(recipe=recipes, changes=changes)[_GRID]
    grid = grid.astype({"fold": "Int64", "seed": "Int64"})
    return StoredRun(store, settings_text(plan, store), grid, plan.dataset.table[_SAMPLES])


def write_run(plan: Plan, store: Store) -> None:
    """Write the files of a benchmark, and its settings into the store too: a copy for the user, never read back."""
    run = run_of(plan, store)
    place = f"{GRIDS}/{run.folder.name}"
    grid, samples = (frame.to_csv(index=False, lineterminator="\n") for frame in (run.grid, run.samples))
    files = {SETTINGS_FILE: run.text, f"{place}/{GRID_FILE}": grid, f"{place}/{SAMPLES_FILE}": samples}
    store.write_files(files | {f"{place}/{SETTINGS_FILE}": run.text})  # a folder without is being written


def read_run(folder: str | Path) -> StoredRun:
    """Return the benchmark of a store, or of a folder of its grids/; StoreError if there is none, or several."""
    root = user_path(folder)
    store = Store(root.parent.parent if root.parent.name == GRIDS else root)
    folders = [root] if root.parent.name == GRIDS else sorted((root / GRIDS).glob("*"))
    found = [_read_one(store, path) for path in folders if (path / SETTINGS_FILE).exists()]
    runs: list[StoredRun] = []
    for run in sorted(found, key=lambda run: -len(run.grid)):  # those that are part of another do not count
        if not any(set(run.grid["trial"]) <= set(other.grid["trial"]) for other in runs):
            runs.append(run)
    if not runs:
        raise StoreError(f"{store.root} is not the store of a benchmark: it has no {GRIDS}/*/{SETTINGS_FILE}.")
    if len(runs) > 1:
        parts = [dict.fromkeys(filter(None, [*run.grid["backbone"], *run.grid["changes"]])) for run in runs]
        each = "; ".join(f"{run.folder} ({', '.join(part)})" for run, part in zip(runs, parts, strict=True))
        raise StoreError(f"{store.root} holds {len(runs)} benchmarks. Give the folder of one instead: {each}.")
    return runs[0]


def _read_one(store: Store, folder: Path) -> StoredRun:
    try:
        # A patient may be called NA: only an empty field is missing.
        how: Any = {"dtype": str, "keep_default_na": False, "na_values": [""], "encoding_errors": "surrogateescape"}
        grid, samples = (
            pd.read_csv(io.BytesIO(read_file(folder / name, _MOST_CSV_BYTES)), **how)[columns]
            for name, columns in ((GRID_FILE, _GRID), (SAMPLES_FILE, _SAMPLES))
        )
        grid = grid.astype({"fold": "Int64", "seed": "Int64"}).fillna({"recipe": "", "changes": ""})
        # As in a data set's table; arrow cannot hold names that are not UTF-8.
        samples = samples.astype(pd.StringDtype("python"))
        run = StoredRun(store, read_file(folder / SETTINGS_FILE).decode(), grid, samples)
        settings, trials, ids = run.settings, grid["trial"], samples["sample"]
        sound = (
            {"name", "title", "fingerprint"} <= settings["dataset"].keys() and "name" in settings["recipe"],
            len(set(run.class_names)) == len(run.class_names) > 1 and all(map(str.isdigit, settings["pipeline"])),
            grid[["trial", "kind", "backbone", "protocol"]].notna().all(axis=None) and ids.notna().all(),
            trials.str.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*").all() and trials.is_unique and ids.is_unique,
        )
        if not all(sound):
            raise ValueError("a name is missing, is there twice or leads elsewhere")
        return run
    except (OSError, AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise StoreError(
            f"{folder}: its {SETTINGS_FILE}, {GRID_FILE} or {SAMPLES_FILE} is damaged ({error}). The same benchmark, "
            "run again on the store, writes them again and keeps its trials."
        ) from error


def settings_text(plan: Plan, store: Store) -> str:
    """Return the settings as TOML, without those that are None."""
    import tomli_w

    info, callbacks = plan.dataset.info, plan.callbacks
    if not isinstance(callbacks, str | None):  # its name; a list or a partial has none, and cannot be read back
        named = hasattr(callbacks, "__qualname__")
        callbacks = f"{callbacks.__module__}:{callbacks.__qualname__}" if named else type(callbacks).__name__
    facts = {name: getattr(info, name) for name in ("title", "synthetic", "licence", "citation", "url")}
    facts |= {"class_names": list(plan.dataset.class_names), "fingerprint": plan.dataset.fingerprint}
    given = ("backbones", "baselines", "folds", "n_folds", "n_repeats", "seeds", "allow_leakage", "save_models")
    settings: dict[str, dict[str, Any]] = {
        "dataset": {"name": info.name, **(plan.source or {}), **facts, "samples": len(plan.dataset)},
        "benchmark": {"protocol": plan.protocols, **{name: getattr(plan, name) for name in (*given, "primary_metric")}}
        | {"shots": [number or "all" for number in plan.shots], **asdict(plan.compute)}
        | {"store": str(store.root.absolute()), "callbacks": callbacks},
        "recipe": plan.recipe.to_dict(),
        "pipeline": {str(size): steps.to_dict() for size, steps in plan.pipelines.items()},
        "made_with": {"backend": backend_name(), **records.installed_versions()},
    }
    for table, values in settings.items():
        settings[table] = {name: value for name, value in values.items() if value is not None}
    return tomli_w.dumps(settings).encode("utf-8", "backslashreplace").decode()


def read_settings(path: Path, dataset: Dataset | None, root: str | Path | None) -> tuple[Dataset, dict[str, Any]]:
    """Return the data set, loaded if None from where the file says or from `root`, and the arguments of `Benchmark`."""
    try:
        content = tomllib.loads(read_file(path.expanduser()).decode())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}.") from error
    if unknown := sorted(set(content) - _TABLES):
        raise SettingsError(f"{path} has the unknown table {', '.join(map(repr, unknown))}. See Benchmark.to_toml.")
    data, arguments = content["dataset"], {**content["benchmark"], "recipe": Recipe.from_dict(content["recipe"])}
    backend = content.get("made_with", {}).get("backend")
    if backend is not None and "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", backend)
    if backend not in (None, backend_name()):
        problem = f"{path} was run on the Keras backend {backend!r}, and this process uses {backend_name()!r}"
        raise SettingsError(f"{problem}. Set KERAS_BACKEND={backend}, or delete the line `backend`.")
    if pipelines := {size: Pipeline.from_dict(steps) for size, steps in content.get("pipeline", {}).items()}:
        arguments["pipeline"] = lambda size: pipelines[str(size)]
    if dataset is None and root is None and not {"root", "options"} & set(data):
        raise SettingsError(f"{path} does not name its data set. Pass it: Benchmark.from_toml(path, dataset=...).")
    if dataset is None:
        dataset = Dataset.load(data["name"], root=root or data.get("root"), **data.get("options", {}))
    labelled = dataset.subset(dataset.labels >= 0)
    if data.get("fingerprint") not in (None, labelled.fingerprint):
        counts = f"{len(labelled):,} labelled images where {data.get('samples')} are expected, or others"
        problem = f"The data set is not the one that {path} was written for: {counts}"
        raise DataError(f"{problem}. Check its root and options, or delete the line `fingerprint`.")
    return dataset, arguments
