"""The data sets that can be loaded by name: our own sources and those of installed plugins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.columns import differing_counts
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.info import DatasetSource
from leukemia_dl.datasets.tables import class_list
from leukemia_dl.errors import DataError, SettingsError, unknown_name_error
from leukemia_dl.identity import plain_number
from leukemia_dl.plugins import Provided, add_registry, collect, problems_with

__all__ = ["BUILTIN", "DatasetSource", "dataset_table", "get_source", "list_datasets", "load_dataset"]

_NAMES = ("all_aria", "c_nmc_2019", "csv_file", "folder", "segmentation_wbc", "synthetic")
BUILTIN = tuple(f"leukemia_dl.datasets.sources.{name}" for name in _NAMES)
_DROPPED = "classes to leave out, such as ['basophil']"
_log = logging.getLogger(__name__)


def get_source(name: str) -> DatasetSource:
    """Return the source of the data set `name`.

    Raises:
        UnknownNameError: If there is none; it suggests the near match.
    """
    sources = {item.record.name: item.record for item in _provided()}
    if name not in sources:
        hint = "For your own images: folder (a folder per class, root=FOLDER) or csv (path=FILE)."
        raise unknown_name_error("data set", name, sources, f"{hint} {problems_with(name)}".strip())
    source: DatasetSource = sources[name]
    return source


def load_dataset(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """Return the data set `name`, read from `root` with `options` of its source; `Dataset.load` is the same.

    It raises UnknownNameError, SettingsError and DataError, as said there.
    """
    source, options = get_source(name), {key: plain_number(value) for key, value in options.items()}
    dropped = options.pop("drop_classes", ())
    if unknown := sorted(set(options) - set(source.options)):
        known = "; ".join(f"{key} ({text})" for key, text in {**source.options, "drop_classes": _DROPPED}.items())
        raise SettingsError(f"The data set {name!r} has no option {', '.join(map(repr, unknown))}. Known: {known}.")
    word = "path" if "path" in source.options else "root"
    if root is not None and "path" in options:
        raise SettingsError(f"root and path name the same file: pass one. Received: {root!r} and {options['path']!r}.")
    place = options.pop("path", None) if root is None and word == "path" else root
    if place is None and source.needs_root:
        raise SettingsError(
            f"The data set {name!r} is read from your disk: pass {word}=..., command line: --root PATH."
        )
    known_place = {} if place is None else {"root": str(user_path(place, word))}
    try:
        loaded = source.load(None if place is None else Path(place), **options)
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check its permissions.") from error
    dataset = loaded if isinstance(loaded, Dataset) else Dataset(*loaded)
    if wrong := differing_counts(dataset.table, dataset.info.declared):
        _log.warning("%s: not all that %s declares is there: %s", place, name, "; ".join(wrong))
    object.__setattr__(dataset, "source", {"name": name, **known_place, "options": options})
    return dataset.drop_classes(class_list(dropped)) if dropped else dataset


def list_datasets() -> list[str]:
    """Return the names that `Dataset.load` knows, sorted."""
    return [item.record.name for item in _provided()]


def dataset_table() -> pd.DataFrame:
    """Return a row per data set: name, title, classes, images, licence, citation, url, options, plugin, version."""
    rows = []
    for item in _provided():
        source, info = item.record, item.record.info
        classes = ", ".join(info.class_names) or "yours"
        images = dict(info.declared).get("images", "as many as asked for" if info.synthetic else "yours")
        options = ["root"] * (source.needs_root and "path" not in source.options) + list(source.options)
        texts = [info.licence, info.citation, info.url, ", ".join(options)]
        rows.append([source.name, info.title, classes, str(images), *texts, item.plugin, item.version])
    columns = ["name", "title", "classes", "images", "licence", "citation", "url", "options", "plugin", "version"]
    return pd.DataFrame(rows, columns=columns, dtype="str")


def _provided() -> Sequence[Provided]:
    return collect("leukemia_dl_datasets")


add_registry("leukemia_dl_datasets", DatasetSource, BUILTIN)
