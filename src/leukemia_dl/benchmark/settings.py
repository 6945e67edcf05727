"""A benchmark's settings as a TOML file that repeats it."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukemia_dl.benchmark.files import read_file
from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import DataError, LeukemiaDLError, SettingsError
from leukemia_dl.models.backend import backend_name
from leukemia_dl.models.registry import THIS_PROCESS, find_backbone
from leukemia_dl.plugins import installed_version
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.recipe import Recipe

if TYPE_CHECKING:
    from leukemia_dl.benchmark.benchmark import Benchmark

__all__ = ["read_settings", "settings_of"]

_BENCHMARK = (
    "backbones", "baselines", "protocol", "folds", "n_folds", "seeds", "allow_leakage", "save_models", "device",
    "threads", "store", "callbacks",
)  # fmt: skip
_VERSIONED = ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy")


def settings_of(bench: Benchmark) -> str:
    """Return the settings as TOML; what is None is left out. What cannot be said in it, comments say."""
    import tomli_w

    info, comments = bench.dataset.info, []
    source = dict(bench.source or {})
    if bench.source is None:
        comments.append("The data set was not made by Dataset.load: pass it, Benchmark.from_toml(path, dataset=...).")
    callbacks = bench.callbacks if isinstance(bench.callbacks, str) or bench.callbacks is None else _name_of(bench)
    if bench.callbacks is not None and callbacks is None:
        comments.append("There were callbacks that have no name: this file alone does not repeat what they did.")
    if here := [name for name in bench.backbones if find_backbone(name).plugin == THIS_PROCESS]:
        comments.append(
            f"A script registered the backbones {', '.join(here)}: let it do so again, then Benchmark.from_toml(path). "
            "The command line does not know them."
        )
    settings = {
        "dataset": {"name": info.name, **source}
        | {"title": info.title, "synthetic": info.synthetic, "samples": len(bench.dataset)}
        | {"licence": info.licence, "citation": info.citation, "url": info.url}
        | {"class_names": list(bench.dataset.class_names), "fingerprint": bench.dataset.fingerprint},
        "benchmark": {
            "backbones": list(bench.backbones),
            "baselines": list(bench.baselines),
            "protocol": list(bench.protocols),
            "folds": bench.folds if bench.folds is None or bench.folds == "all" else list(bench.folds),
            "n_folds": bench.n_folds,
            "seeds": list(bench.seeds),
            "allow_leakage": bench.allow_leakage,
            "save_models": bench.save_models,
            **asdict(bench.compute),
            "store": str(bench.store.root.absolute()),
            "callbacks": callbacks,
        },
        "recipe": bench.recipe.to_dict(),
        "pipeline": {str(size): steps.to_dict() for size, steps in bench.pipelines.items()},
        "made_with": {"backend": backend_name()}
        | {name: found for name in _VERSIONED if (found := installed_version(name)) != "unknown"},
    }
    head = "".join(f"# {line}\n" for line in comments)
    text = head + tomli_w.dumps({name: _without_none(part) for name, part in settings.items()})
    return text.encode("utf-8", "backslashreplace").decode()


def read_settings(path: Path, dataset: Dataset | None, root: str | Path | None) -> tuple[Dataset, dict[str, Any]]:
    """Return the data set and the arguments of `Benchmark` that a file describes.

    Args:
        path: The file.
        dataset: The data set; None to load it.
        root: Where it lies; None for what the file says.

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
    said, asked, recipe = (_table(content, name, path) for name in ("dataset", "benchmark", "recipe"))
    unknown = sorted(set(content) - {"dataset", "benchmark", "recipe", "pipeline", "made_with"})
    unknown += sorted(set(asked) - set(_BENCHMARK))
    if unknown:
        raise SettingsError(f"{path} has the unknown setting {', '.join(map(repr, unknown))}. See Benchmark.to_toml.")
    _use_backend(_table(content, "made_with", path, needed=False).get("backend"), path)
    for table, name in ((said, "name"), (said, "root"), (said, "fingerprint"), (asked, "store"), (asked, "device")):
        if not isinstance(table.get(name, ""), str):
            raise SettingsError(f"{path}: {name} must be text. Received: {table[name]!r}.")
    if "..." in (said.get("root"), asked.get("store")):
        raise SettingsError(f"{path} has a root or store '...', as a report shows it: put your own folder there.")
    arguments: dict[str, Any] = {**asked, "recipe": Recipe.from_dict(recipe)}
    pipelines = _table(content, "pipeline", path, needed=False)
    if pipelines:
        steps = {
            int(size): Pipeline.from_dict(values)
            for size, values in pipelines.items()
            if re.fullmatch("[0-9]{1,5}", size)
        }
        arguments["pipeline"] = _Chosen(steps)
    if dataset is None:
        dataset = _load(said, root, path)
    _compare(dataset, said, path)
    return dataset, arguments


class _Chosen(dict[int, Pipeline]):
    """Pipelines by size, called with a size."""

    def __call__(self, size: int) -> Pipeline:
        """Return that of a size."""
        if size not in self:
            raise SettingsError(f"There is no pipeline for images of {size} pixels. There are: {list(self)}.")
        return self[size]


def _load(said: dict[str, Any], root: str | Path | None, path: Path) -> Dataset:
    if "options" not in said and root is None and "root" not in said:
        raise SettingsError(
            f"The data set {said.get('name')!r} of {path} was not made by Dataset.load. Pass it: "
            "Benchmark.from_toml(path, dataset=...)."
        )
    options = _table(said, "options", path, needed=False)
    try:
        return Dataset.load(str(said.get("name")), root=root or said.get("root"), **options)
    except (TypeError, ValueError) as error:
        if isinstance(error, LeukemiaDLError):
            raise
        raise SettingsError(f"The data set of {path} cannot be loaded: {error}. Received: {said!r}.") from error


def _compare(dataset: Dataset, said: dict[str, Any], path: Path) -> None:
    """Raise DataError if a data set is another one than a file says; a file without a fingerprint asks for none."""
    labelled = dataset.subset(dataset.labels >= 0)
    expected = said.get("fingerprint")
    if expected is not None and labelled.fingerprint != expected:
        raise DataError(
            f"The data set is not the one that {path} was written for: {len(labelled):,} labelled images where "
            f"{said.get('samples')} are expected, or other contents, labels or groups. Check its root and options, or "
            "delete the line `fingerprint` to run on these data instead."
        )


def _use_backend(backend: Any, path: Path) -> None:
    if backend is None:
        return
    if "keras" not in sys.modules and not os.environ.get("KERAS_BACKEND"):
        os.environ["KERAS_BACKEND"] = str(backend)
    if backend_name() != backend:
        raise SettingsError(
            f"{path} was run on the Keras backend {backend!r}, and this process uses {backend_name()!r}. Set "
            f"KERAS_BACKEND={backend}, or delete the line `backend` to run on this one instead."
        )


def _table(content: dict[str, Any], name: str, path: Path, needed: bool = True) -> dict[str, Any]:
    found = content.get(name, None if needed else {})
    if not isinstance(found, dict):
        raise SettingsError(f"{path} has no table [{name}]: it is no file of Benchmark.to_toml.")
    return found


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _name_of(bench: Benchmark) -> str | None:
    """Return "module:function" of a callback factory that can be had by it."""
    module, name = (getattr(bench.callbacks, attribute, "") for attribute in ("__module__", "__qualname__"))
    found = getattr(sys.modules.get(module), name, None) if module != "__main__" else None
    return f"{module}:{name}" if found is bench.callbacks and found is not None else None
