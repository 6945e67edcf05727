"""The settings of a benchmark as a TOML file that repeats it."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from leukemia_dl.benchmark.plan import Plan
from leukemia_dl.benchmark.record_files import read_file
from leukemia_dl.benchmark.store import Store
from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import DataError, LeukemiaDLError, SettingsError
from leukemia_dl.models.backend import backend_name
from leukemia_dl.models.registry import THIS_PROCESS
from leukemia_dl.plugins import installed_version
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.backends import ComputeConfig
from leukemia_dl.training.recipe import Recipe

__all__ = ["dump", "load"]

_GIVEN = ("backbones", "baselines", "protocol", "folds", "n_folds", "seeds", "allow_leakage", "save_models", "store")
_BENCHMARK = {*_GIVEN, "callbacks", *(field.name for field in fields(ComputeConfig))}
_TABLES = {"dataset", "benchmark", "recipe", "pipeline", "made_with"}
_VERSIONED = ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy")


def dump(plan: Plan, store: Store) -> str:
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
    settings = {
        "dataset": {"name": info.name, **(plan.source or {})}
        | {"title": info.title, "synthetic": info.synthetic, "samples": len(plan.dataset)}
        | {"licence": info.licence, "citation": info.citation, "url": info.url}
        | {"class_names": list(plan.dataset.class_names), "fingerprint": plan.dataset.fingerprint},
        "benchmark": {
            "backbones": list(plan.backbones),
            "baselines": list(plan.baselines),
            "protocol": list(plan.protocols),
            "folds": plan.folds,
            "n_folds": plan.n_folds,
            "seeds": list(plan.seeds),
            "allow_leakage": plan.allow_leakage,
            "save_models": plan.save_models,
            **asdict(plan.compute),
            "store": str(store.root.absolute()),
            "callbacks": callbacks,
        },
        "recipe": plan.recipe.to_dict(),
        "pipeline": {str(size): steps.to_dict() for size, steps in plan.pipelines.items()},
        "made_with": {"backend": backend_name()}
        | {name: found for name in _VERSIONED if (found := installed_version(name)) != "unknown"},
    }
    head = "".join(f"# {comment}\n" for comment in comments)
    tables = {
        table: {name: value for name, value in values.items() if value is not None}
        for table, values in settings.items()
    }
    return (head + tomli_w.dumps(tables)).encode("utf-8", "backslashreplace").decode()


def load(path: Path, dataset: Dataset | None, root: str | Path | None) -> tuple[Dataset, dict[str, Any]]:
    """Return the data set and the arguments of `Benchmark` that a file describes.

    Args:
        path: The file.
        dataset: The data set; None to load it.
        root: Where the data set lies; None for the folder that the file names.

    Raises:
        SettingsError: If the file is none of ours, or cannot be repeated here.
        DataError: If the data set is not that of the file.
    """
    try:
        content = tomllib.loads(read_file(path.expanduser()).decode())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}.") from error
    data, asked, recipe = (_table(content, name, path) for name in ("dataset", "benchmark", "recipe"))
    if unknown := sorted((set(content) - _TABLES) | (set(asked) - _BENCHMARK)):
        raise SettingsError(f"{path} has the unknown setting {', '.join(map(repr, unknown))}. See Benchmark.to_toml.")
    _use_backend(_table(content, "made_with", path, {}).get("backend"), path)
    for table, name in ((data, "name"), (data, "root"), (data, "fingerprint"), (asked, "store"), (asked, "device")):
        if not isinstance(table.get(name, ""), str):
            raise SettingsError(f"{path}: {name} must be text. Received: {table[name]!r}.")
    if "..." in (data.get("root"), asked.get("store")):
        raise SettingsError(f"{path} has a root or store '...', as a report shows it: put your own folder there.")
    arguments: dict[str, Any] = {**asked, "recipe": Recipe.from_dict(recipe)}
    if pipelines := _table(content, "pipeline", path, {}):
        sizes = [size for size in pipelines if re.fullmatch("[0-9]{1,5}", size)]
        arguments["pipeline"] = _BySize({int(size): Pipeline.from_dict(pipelines[size]) for size in sizes})
    if dataset is None:
        dataset = _load_dataset(data, root, path)
    labelled = dataset.subset(dataset.labels >= 0)
    if data.get("fingerprint") not in (None, labelled.fingerprint):
        raise DataError(
            f"The data set is not the one that {path} was written for: {len(labelled):,} labelled images where "
            f"{data.get('samples')} are expected, or other contents, labels or groups. Check its root and options, or "
            "delete the line `fingerprint` to run on these data instead."
        )
    return dataset, arguments


class _BySize(dict[int, Pipeline]):
    """Pipelines by image size, called with a size."""

    def __call__(self, size: int) -> Pipeline:
        if size not in self:
            raise SettingsError(f"There is no pipeline for images of {size} pixels. There are: {list(self)}.")
        return self[size]


def _load_dataset(data: dict[str, Any], root: str | Path | None, path: Path) -> Dataset:
    if "options" not in data and root is None and "root" not in data:
        raise SettingsError(
            f"The data set {data.get('name')!r} of {path} was not made by Dataset.load. Pass it: "
            "Benchmark.from_toml(path, dataset=...)."
        )
    options = _table(data, "options", path, {})
    try:
        return Dataset.load(str(data.get("name")), root=root or data.get("root"), **options)
    except LeukemiaDLError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingsError(f"The data set of {path} cannot be loaded: {error}. Received: {data!r}.") from error


def _use_backend(backend: Any, path: Path) -> None:
    """Choose the backend of a file where none is chosen yet; SettingsError if another one is in use."""
    if backend is None:
        return
    if "keras" not in sys.modules and not os.environ.get("KERAS_BACKEND"):
        os.environ["KERAS_BACKEND"] = str(backend)
    if backend_name() != backend:
        raise SettingsError(
            f"{path} was run on the Keras backend {backend!r}, and this process uses {backend_name()!r}. Set "
            f"KERAS_BACKEND={backend}, or delete the line `backend` to run on this one instead."
        )


def _table(content: dict[str, Any], name: str, path: Path, default: Any = None) -> dict[str, Any]:
    found = content.get(name, default)
    if not isinstance(found, dict):
        raise SettingsError(f"{path} has no table [{name}]: it is no file of Benchmark.to_toml.")
    return found


def _name_of(callbacks: Any) -> str | None:
    """Return "module:function", by which a callback factory can be imported; None if there is none or it cannot."""
    if isinstance(callbacks, str):
        return callbacks
    module, name = (getattr(callbacks, attribute, "") for attribute in ("__module__", "__qualname__"))
    found = getattr(sys.modules.get(module), name, None) if module != "__main__" else None
    return f"{module}:{name}" if found is not None and found is callbacks else None
