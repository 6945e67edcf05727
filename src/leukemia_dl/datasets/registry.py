"""The data sets that can be loaded by name: our own sources and those of installed plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.dataset import Dataset, DatasetInfo
from leukemia_dl.datasets.frames import class_list
from leukemia_dl.errors import PluginError, SettingsError, unknown_name_error
from leukemia_dl.identity import plain_number
from leukemia_dl.plugins import Provided, add_registry, collect, problems_with

__all__ = ["BUILTIN", "DatasetSource", "dataset_table", "get_source", "list_datasets", "load_dataset"]

BUILTIN = tuple(
    f"leukemia_dl.datasets.sources.{name}"
    for name in ("all_aria", "c_nmc_2019", "csv_file", "folder", "segmentation_wbc", "synthetic")
)


_DROPPED = "classes to leave out, such as ['basophil']"
_UNDECLARED = {False: "yours", True: "as many as asked for"}  # images, by whether they are drawn


@dataclass(frozen=True)
class DatasetSource:
    """What a plugin yields from the hook `leukemia_dl_datasets`.

    Attributes:
        name: As in `Dataset.load(name)`.
        load: `load(root, **options) -> Dataset`; `root` is a Path, or None if none was given.
        info: Licence, citation and counts as the authors declare them.
        needs_root: False if the source does without a root, as one that draws its images.
        options: What may be passed beside the root: name to one line of help.

    Raises:
        PluginError: On creation, if a field is of another kind.
    """

    name: str
    load: Callable[..., Dataset]
    info: DatasetInfo
    needs_root: bool = True
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a record that no table could show."""
        if not isinstance(self.name, str) or not callable(self.load) or not isinstance(self.info, DatasetInfo):
            raise PluginError(
                "A DatasetSource has a name, a function that loads it, and a DatasetInfo. "
                f"Received: name={self.name!r}, load={self.load!r}, info={self.info!r}."
            )


def get_source(name: str) -> DatasetSource:
    """Return the source of the data set `name`.

    Raises:
        UnknownNameError: If there is none; it suggests the near match.
    """
    sources = {item.record.name: item.record for item in _provided()}
    if name not in sources:
        hint = "Images of your own: folder (a folder per class) or csv, each with root=PATH."
        raise unknown_name_error("data set", name, sources, f"{hint} {problems_with(name)}".strip())
    source: DatasetSource = sources[name]
    return source


def load_dataset(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """Return the data set `name`, read from `root` with a source's `options`; `Dataset.load` is the same.

    It raises UnknownNameError, SettingsError and DataError, as said there.
    """
    source, options = get_source(name), {key: plain_number(value) for key, value in options.items()}
    dropped = options.pop("drop_classes", ())
    unknown = sorted(set(options) - set(source.options))
    if unknown:
        known = "; ".join(f"{key} ({text})" for key, text in {**source.options, "drop_classes": _DROPPED}.items())
        raise SettingsError(f"The data set {name!r} has no option {', '.join(map(repr, unknown))}. Known: {known}.")
    if root is None and source.needs_root:
        raise SettingsError(
            f"The data set {name!r} is read from a place of yours: pass root=PATH (command line: --root PATH)."
        )
    place = {} if root is None else {"root": str(user_path(root, "root"))}
    dataset = source.load(None if root is None else Path(root), **options)
    object.__setattr__(dataset, "source", {"name": name, **place, "options": options})
    return dataset.drop_classes(class_list(dropped)) if dropped else dataset


def list_datasets() -> list[str]:
    """Return the names that `Dataset.load` knows, sorted."""
    return [item.record.name for item in _provided()]


def dataset_table() -> pd.DataFrame:
    """Return a row per data set: name, title, classes, images, licence, citation, url, options, plugin, version."""
    rows = [
        {
            "name": item.record.name,
            "title": item.record.info.title,
            "classes": ", ".join(item.record.info.class_names) or "yours",
            "images": str(dict(item.record.info.declared).get("images", _UNDECLARED[item.record.info.synthetic])),
            "licence": item.record.info.licence,
            "citation": item.record.info.citation,
            "url": item.record.info.url,
            "options": ", ".join(["root"] * item.record.needs_root + list(item.record.options)),
            "plugin": item.plugin,
            "version": item.version,
        }
        for item in _provided()
    ]
    return pd.DataFrame(rows, dtype="str")


def _provided() -> Sequence[Provided]:
    return collect("leukemia_dl_datasets")


add_registry("leukemia_dl_datasets", DatasetSource, BUILTIN)
