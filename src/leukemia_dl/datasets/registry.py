"""The data sets that can be loaded by name: our own sources and those of installed plugins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.sources import all_aria, c_nmc_2019, files, segmentation_wbc, synthetic
from leukemia_dl.datasets.table import DatasetInfo, class_list, differing_counts
from leukemia_dl.errors import DataError, PluginError, SettingsError, unknown_name_error
from leukemia_dl.identity import plain_number
from leukemia_dl.plugins import add_registry, collect, problems_with

__all__ = ["DatasetSource", "dataset_table", "get_source", "list_datasets", "load_dataset"]


@dataclass(frozen=True)
class DatasetSource:
    """A data set that can be loaded by name; a plugin yields these records from the hook `leukemia_dl_datasets`.

    A field of another kind is a PluginError on creation.

    Attributes:
        name: As in `Dataset.load(name)`.
        load: `load(root, **options)`; `root` is a Path, or None if none was given. It returns a `Dataset`, or the
            arguments of one: a frame, the class names and a `DatasetInfo`.
        info: Licence, citation and counts as the authors declare them.
        needs_root: False for a source that can do without a root, such as one that draws its images.
        options: The options of `load` beside the root: name to one line of help. One called `path` names a file that
            is passed in place of the root.
    """

    name: str
    load: Callable[..., Any]
    info: DatasetInfo
    needs_root: bool = True
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and callable(self.load) and isinstance(self.info, DatasetInfo)):
            raise PluginError(f"A DatasetSource has a name, a function, and a DatasetInfo. Received: {self!r}.")


_CANVAS = "side in pixels of one canvas for all images, if they are at one scale; default: each is padded to a square"
_SOURCES = (
    DatasetSource("all_aria", all_aria.read_all_aria, all_aria.INFO, options={
        "version": "original (default) or segmented, the same fields without their background",
    }),
    DatasetSource("c_nmc_2019", c_nmc_2019.read_c_nmc, c_nmc_2019.INFO),
    DatasetSource("csv", Dataset.from_csv, files.CSV_INFO, options={
        "path": "the CSV file (command line: --root)",
        "images_root": "folder that relative paths start from; default: that of the CSV file",
        "class_names": "labels in their order, separated by commas; default: those found, sorted",
        "canvas": _CANVAS,
    }),
    DatasetSource("folder", Dataset.from_folder, files.FOLDER_INFO, options={
        "class_names": "classes in label order, separated by commas; default: the folders' names, sorted",
        "canvas": _CANVAS,
    }),
    DatasetSource("segmentation_wbc", segmentation_wbc.read_segmentation_wbc, segmentation_wbc.INFO, options={
        "part": "1 or 2, where both are there",
    }),
    DatasetSource("synthetic", synthetic.read_synthetic, synthetic.INFO, needs_root=False, options={
        "subjects": "number of training subjects, default 73 as in C-NMC 2019",
        "images": "number of training images, default 360",
        "preliminary_images": "number of labelled test images of other subjects, default 60",
        "final_images": "number of images without label, default 12",
        "seed": "another seed is another data set, default 0",
        "workers": "threads that draw, default one per processor",
        "show_progress": "whether to show progress, default true",
    }),
)  # fmt: skip
_DROPPED = "classes to leave out, such as ['basophil']"
_HOOK = "leukemia_dl_datasets"
_log = logging.getLogger(__name__)


def leukemia_dl_datasets() -> Sequence[DatasetSource]:
    """Return the built-in sources, as a plugin's hook of this name returns its own."""
    return _SOURCES


add_registry(_HOOK, DatasetSource, [__name__])


def get_source(name: str) -> DatasetSource:
    """Return the source of the data set `name`; UnknownNameError suggests the near match."""
    sources: dict[str, DatasetSource] = {item.record.name: item.record for item in collect(_HOOK)}
    if name not in sources:
        hint = "For your own images: folder (a folder per class, root=FOLDER) or csv (path=FILE)."
        raise unknown_name_error("data set", name, sources, f"{hint} {problems_with(name)}".strip())
    return sources[name]


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
    place = options.pop("path", root)
    if place is None and source.needs_root:
        raise SettingsError(f"The data set {name!r} is on your disk: pass {word}=..., command line: --root PATH.")
    place = None if place is None else user_path(place, word)
    try:
        loaded = source.load(place, **options)
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check its permissions.") from error
    dataset = loaded if isinstance(loaded, Dataset) else Dataset(*loaded)
    if wrong := differing_counts(dataset.table, dataset.info.declared):
        _log.warning("%s: not all that %s declares is there: %s", place, name, "; ".join(wrong))
    known_place = {} if place is None else {"root": str(place)}
    object.__setattr__(dataset, "source", {"name": name, **known_place, "options": options})
    return dataset.drop_classes(class_list(dropped)) if dropped else dataset


def list_datasets() -> list[str]:
    """Return the names that `Dataset.load` knows, sorted."""
    return [item.record.name for item in collect(_HOOK)]


def dataset_table() -> pd.DataFrame:
    """Return a row per data set: name, title, classes, images, licence, citation, url, options, plugin, version."""
    rows = []
    for item in collect(_HOOK):
        source, info = item.record, item.record.info
        images = dict(info.declared).get("images", "as many as asked for" if info.synthetic else "yours")
        options = ["root"] * (source.needs_root and "path" not in source.options) + list(source.options)
        rows.append({
            "name": source.name, "title": info.title, "classes": ", ".join(info.class_names) or "yours",
            "images": str(images), "licence": info.licence, "citation": info.citation, "url": info.url,
            "options": ", ".join(options), "plugin": item.plugin, "version": item.version,
        })  # fmt: skip
    return pd.DataFrame(rows, dtype="str")
