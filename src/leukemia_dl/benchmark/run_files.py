"""The files of a benchmark in its store, grids/DIGEST/, and reading it back, with or without the images.

settings.toml   settings that repeat it
grid.csv        a row per trial that it asks for
samples.csv     patient and group of each image
"""

from __future__ import annotations

import io
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.benchmark.plan import Plan
from leukemia_dl.benchmark.records import (
    history_frame,
    installed_versions,
    prediction_frame,
    result_frame,
    timing_frame,
)
from leukemia_dl.benchmark.store import Store, paths_in, read_file
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.cache import user_path
from leukemia_dl.errors import DataError, SettingsError, StoreError
from leukemia_dl.identity import digest
from leukemia_dl.models.backend import backend_name
from leukemia_dl.models.registry import THIS_PROCESS
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.recipe import Recipe

__all__ = ["StoredRun", "read_run", "read_settings", "run_of", "settings_text", "write_run"]

GRIDS, SETTINGS_FILE, GRID_FILE, SAMPLES_FILE = "grids", "settings.toml", "grid.csv", "samples.csv"
_GRID = ["trial", "digest", "kind", "backbone", "protocol", "fold", "seed", "recipe", "changes"]
_SAMPLES = ["sample", "subject", "group", "same_cell"]
_TABLES = {"dataset", "benchmark", "recipe", "pipeline", "made_with"}
_MOST_CSV_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A benchmark as its store knows it."""

    store: Store
    text: str  # its settings, TOML
    grid: pd.DataFrame  # the columns _GRID of each trial that it asks for
    samples: pd.DataFrame  # the columns _SAMPLES of its data set
    suffixes: Mapping[str, str] = field(default_factory=dict)  # of backbones by trial, if one has several recipes

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
        try:
            return self._named(prediction_frame(self._records, self.class_names, self.samples))
        except (LookupError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self.store.root} is damaged: its predictions are not of the classes and images of {self.folder} "
                f"({type(error).__name__}: {error})."
            ) from error

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
        return list(self.store.records(self.grid["trial"]))


def run_of(plan: Plan, store: Store) -> StoredRun:
    """Return a benchmark as its store knows it, or will."""
    rows = [
        {"trial": planned.trial.folder, **{name: getattr(planned.trial, name) for name in _GRID[1:-2]}}
        | {"recipe": (planned.trial.recipe or {}).get("name", ""), "changes": planned.changes}
        for planned in plan.trials
    ]
    grid = pd.DataFrame(rows, columns=_GRID).astype({"fold": "Int64", "seed": "Int64"})
    return StoredRun(store, settings_text(plan, store), grid, plan.dataset.table[_SAMPLES])


def write_run(plan: Plan, store: Store) -> None:
    """Write the files of a benchmark, and its settings into the store too: a copy for the user, never read back."""
    run = run_of(plan, store)
    store.write_file(SETTINGS_FILE, run.text)
    for name, frame in ((GRID_FILE, run.grid), (SAMPLES_FILE, run.samples)):
        store.write_file(f"{GRIDS}/{run.folder.name}/{name}", frame.to_csv(index=False, lineterminator="\n"))
    # Last: a folder without settings is being written.
    store.write_file(f"{GRIDS}/{run.folder.name}/{SETTINGS_FILE}", run.text)


def read_run(folder: str | Path, together: bool = False) -> StoredRun:
    """Return the benchmark of a store, finished or not, but for those whose trials are all part of another one.

    Args:
        folder: A store, or one folder of its grids/.
        together: Whether to combine several benchmarks on one data set; names of backbones then say how they differ.

    Raises:
        StoreError: If the folder is no store, is damaged, or holds several benchmarks that are not to be, or cannot
            be, combined; the message names the folder of each.
    """
    root = user_path(folder)
    alone = root.parent.name == GRIDS
    store = Store(root.parent.parent if alone else root)
    folders = [path for path in ([root] if alone else paths_in(root / GRIDS)) if (path / SETTINGS_FILE).exists()]
    if not folders:
        raise StoreError(
            f"{store.root} is not the store of a benchmark, or an earlier version made it: it has no "
            f"{GRIDS}/*/{SETTINGS_FILE}. The same benchmark, run again on it, writes that."
        )
    runs: dict[Path, StoredRun] = {}
    for path, run in sorted(((path, _read_one(store, path)) for path in folders), key=lambda pair: -len(pair[1].grid)):
        if not any(set(run.grid["trial"]) <= set(other.grid["trial"]) for other in runs.values()):
            runs[path] = run
    found = next(iter(runs.values())) if len(runs) == 1 else _combined([*runs.values()]) if together else None
    if found is None:
        each = "; ".join(f"{path} ({_words(run)})" for path, run in runs.items())
        raise StoreError(f"{store.root} holds {len(runs)} benchmarks. Give the folder of one instead: {each}.")
    return found


def _read_one(store: Store, folder: Path) -> StoredRun:
    try:
        text = read_file(folder / SETTINGS_FILE).decode()
        # As in a data set's table; arrow cannot hold names that are not UTF-8.
        samples = _read_csv(folder / SAMPLES_FILE).astype(pd.StringDtype("python"))
        grid = _read_csv(folder / GRID_FILE).astype({"fold": "Int64", "seed": "Int64"})
        grid = grid.fillna({"recipe": "", "changes": ""})
        run = StoredRun(store, text, grid, samples)
        _check(run)
    except (OSError, AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise StoreError(
            f"{folder}: its {SETTINGS_FILE}, {GRID_FILE} or {SAMPLES_FILE} is damaged ({error}). The same benchmark, "
            "run again on the store, writes them again and keeps its trials."
        ) from error
    return run


def _read_csv(path: Path) -> pd.DataFrame:
    content = io.BytesIO(read_file(path, _MOST_CSV_BYTES))
    # A patient may be called NA: only an empty field is missing.
    return pd.read_csv(content, dtype=str, keep_default_na=False, na_values=[""], encoding_errors="surrogateescape")


def _check(run: StoredRun) -> None:
    """Raise KeyError, TypeError or ValueError if something is missing, or a name of a trial leads elsewhere."""
    data, names, samples = run.settings["dataset"], run.grid[_GRID]["trial"], run.samples[_SAMPLES]["sample"]
    if not {"name", "title", "fingerprint"} <= data.keys() or len(set(run.class_names)) < max(2, len(run.class_names)):
        raise ValueError("the data set has no name, title, fingerprint or classes")
    if "name" not in run.settings["recipe"] or not all(map(str.isdigit, run.settings["pipeline"])):
        raise ValueError("the recipe has no name, or a pipeline no size")
    if run.grid[["trial", "kind", "backbone", "protocol"]].isna().any(axis=None) or samples.isna().any():
        raise ValueError("a trial or sample has no name")
    if not names.str.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*").all():
        raise ValueError("a trial has a name that no benchmark gives")
    if names.duplicated().any() or samples.duplicated().any():
        raise ValueError("a trial or sample is there twice")


def _combined(runs: Sequence[StoredRun]) -> StoredRun | None:
    """Return several benchmarks as one; None if their data differ, or trials could not be distinguished."""
    if len({(run.settings["dataset"]["fingerprint"], *run.class_names) for run in runs}) > 1:
        return None
    grid = pd.concat([run.grid for run in runs]).drop_duplicates("trial").reset_index(drop=True)
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


def settings_text(plan: Plan, store: Store) -> str:
    """Return the settings as TOML, without those that are None; comments say what the file alone does not repeat."""
    import tomli_w

    info, callbacks = plan.dataset.info, _name_of(plan.callbacks)
    comments = []
    if plan.source is None:
        comments.append("The data set was not made by Dataset.load: pass it, Benchmark.from_toml(path, dataset=...).")
    if plan.callbacks is not None and callbacks is None:
        comments.append("There were callbacks that have no name: this file alone does not repeat what they did.")
    if here := dict.fromkeys(one.trial.backbone for one in plan.trials if one.trial.plugin == THIS_PROCESS):
        comments.append(
            f"A script registered the backbones {', '.join(here)}: let it do so again, then Benchmark.from_toml(path). "
            "The command line does not know them."
        )
    facts = {name: getattr(info, name) for name in ("title", "synthetic", "licence", "citation", "url")}
    facts |= {"class_names": list(plan.dataset.class_names), "fingerprint": plan.dataset.fingerprint}
    given = ("backbones", "baselines", "folds", "n_folds", "seeds", "allow_leakage", "save_models")
    settings: dict[str, dict[str, Any]] = {
        "dataset": {"name": info.name, **(plan.source or {}), **facts, "samples": len(plan.dataset)},
        "benchmark": {"protocol": plan.protocols, **{name: getattr(plan, name) for name in given}}
        | {**asdict(plan.compute), "store": str(store.root.absolute()), "callbacks": callbacks},
        "recipe": plan.recipe.to_dict(),
        "pipeline": {str(size): steps.to_dict() for size, steps in plan.pipelines.items()},
        "made_with": {"backend": backend_name(), **installed_versions()},
    }
    for table, values in settings.items():
        settings[table] = {name: value for name, value in values.items() if value is not None}
    head = "".join(f"# {comment}\n" for comment in comments)
    return (head + tomli_w.dumps(settings)).encode("utf-8", "backslashreplace").decode()


def read_settings(path: Path, dataset: Dataset | None, root: str | Path | None) -> tuple[Dataset, dict[str, Any]]:
    """Return the data set, loaded if None from where the file says or from `root`, and the arguments of `Benchmark`."""
    try:
        content = tomllib.loads(read_file(path.expanduser()).decode())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}.") from error
    if unknown := sorted(set(content) - _TABLES):
        raise SettingsError(f"{path} has the unknown table {', '.join(map(repr, unknown))}. See Benchmark.to_toml.")
    data, arguments = content["dataset"], {**content["benchmark"], "recipe": Recipe.from_dict(content["recipe"])}
    backend = content.get("made_with", {}).get("backend")
    if backend is not None and "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", backend)
    if backend not in (None, backend_name()):
        raise SettingsError(
            f"{path} was run on the Keras backend {backend!r}, and this process uses {backend_name()!r}. Set "
            f"KERAS_BACKEND={backend}, or delete the line `backend` to run on this one instead."
        )
    if pipelines := {size: Pipeline.from_dict(steps) for size, steps in content.get("pipeline", {}).items()}:
        arguments["pipeline"] = partial(_pipeline_of, pipelines)
    if dataset is None and root is None and not {"root", "options"} & set(data):
        raise SettingsError(
            f"The data set {data['name']!r} of {path} was not made by Dataset.load. Pass it: "
            "Benchmark.from_toml(path, dataset=...)."
        )
    if dataset is None:
        dataset = Dataset.load(data["name"], root=root or data.get("root"), **data.get("options", {}))
    labelled = dataset.subset(dataset.labels >= 0)
    if data.get("fingerprint") not in (None, labelled.fingerprint):
        raise DataError(
            f"The data set is not the one that {path} was written for: {len(labelled):,} labelled images where "
            f"{data.get('samples')} are expected, or other contents, labels or groups. Check its root and options, or "
            "delete the line `fingerprint` to run on these data instead."
        )
    return dataset, arguments


def _pipeline_of(pipelines: Mapping[str, Pipeline], size: int) -> Pipeline:
    """Return the pipeline for images of a size."""
    if str(size) not in pipelines:
        raise SettingsError(f"There is no pipeline for images of {size} pixels, only for {', '.join(pipelines)}.")
    return pipelines[str(size)]


def _name_of(callbacks: Any) -> str | None:
    """Return "module:function", by which a callback factory can be imported; None if there is none or it cannot."""
    if callbacks is None or isinstance(callbacks, str):
        return callbacks
    module, name = (getattr(callbacks, attribute, "") for attribute in ("__module__", "__qualname__"))
    importable = module != "__main__" and getattr(sys.modules.get(module), name, None) is callbacks
    return f"{module}:{name}" if importable else None
