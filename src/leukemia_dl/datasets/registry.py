"""The data sets that can be loaded by name: our own sources and those of installed plugins; one can be downloaded."""

import importlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.sources import all_aria, c_nmc_2019, files, segmentation_wbc, synthetic
from leukemia_dl.datasets.table import DatasetInfo, class_list, differing_counts
from leukemia_dl.errors import DataError, LeukemiaDLError, PluginError, SettingsError, unknown_name_error
from leukemia_dl.identity import plain_number
from leukemia_dl.plugins import collect, problem_hint, registries


@dataclass(frozen=True)
class DatasetSource:
    """A data set that can be loaded by name; a plugin yields these records from the hook `leukemia_dl_datasets`.

    Attributes:
        name: As in `Dataset.load(name)`.
        load: `load(root, **options)`; `root` is a Path, or None if none was given. It returns a `Dataset`, or the
            arguments of one: a frame, the class names and a `DatasetInfo`.
        info: Licence, citation and counts as the authors declare them. A field of another kind is a PluginError.
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


_NAMED = {"class_names": "labels in their order, separated by commas", "canvas": "side of one canvas for all images"}
_CSV = {"path": "the CSV file (command line: --root)", "images_root": "folder that relative paths start from"}
_DRAWN = {
    "subjects": "number of training subjects", "images": "number of training images", "preliminary_images": "of others",
    "final_images": "without label", "seed": "default 0", "workers": "threads", "show_progress": "true or false",
}  # fmt: skip
_PART = {"part": "1 or 2, where both are there"}
_SOURCES = (
    DatasetSource("all_aria", all_aria.read_all_aria, all_aria.INFO, options={"version": "original or segmented"}),
    DatasetSource("c_nmc_2019", c_nmc_2019.read_c_nmc, c_nmc_2019.INFO),
    DatasetSource("csv", Dataset.from_csv, files.CSV_INFO, options=_CSV | _NAMED),
    DatasetSource("folder", Dataset.from_folder, files.FOLDER_INFO, options=_NAMED),
    DatasetSource("segmentation_wbc", segmentation_wbc.read_segmentation_wbc, segmentation_wbc.INFO, options=_PART),
    DatasetSource("synthetic", synthetic.read_synthetic, synthetic.INFO, needs_root=False, options=_DRAWN),
)
_HOOK = "leukemia_dl_datasets"
DOWNLOADS = {"c_nmc_2019": "andrewmvd/leukemia-classification"}  # owner and name on Kaggle
_log = logging.getLogger(__name__)


registries[_HOOK] = ((DatasetSource,), _SOURCES)


def get_source(name: str) -> DatasetSource:
    """Return the source of the data set `name`; UnknownNameError suggests the near match."""
    sources: dict[str, DatasetSource] = {item.record.name: item.record for item in collect(_HOOK)}
    if name not in sources:
        hint = "For your own images: folder (a folder per class, root=FOLDER) or csv (path=FILE)."
        raise unknown_name_error("data set", name, sources, f"{hint} {problem_hint()}".strip())
    return sources[name]


def load_dataset(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """Return the data set `name`, read from `root` with `options`, as `Dataset.load`; SettingsError for a wrong one."""
    source, options = get_source(name), {key: plain_number(value) for key, value in options.items()}
    dropped = options.pop("drop_classes", ())
    if unknown := sorted(set(options) - set(source.options)):
        texts = {**source.options, "drop_classes": "classes to leave out, such as ['basophil']"}
        known = "; ".join(f"{key} ({text})" for key, text in texts.items())
        raise SettingsError(f"The data set {name!r} has no option {', '.join(map(repr, unknown))}. Known: {known}.")
    word = "path" if "path" in source.options else "root"
    if root is not None and "path" in options:
        raise SettingsError(f"root and path name the same file: pass one. Received: {root!r}, {options['path']!r}.")
    place = options.pop("path", root)
    if place is None and source.needs_root:
        raise SettingsError(f"The data set {name!r} is on your disk: pass {word}=..., command line: --root PATH.")
    place = None if place is None else user_path(place, word)
    loaded = source.load(place, **options)
    dataset = loaded if isinstance(loaded, Dataset) else Dataset(*loaded)
    if wrong := differing_counts(dataset.table, dataset.info.declared):
        _log.warning("%s: not all that %s declares is there: %s", place, name, "; ".join(wrong))
    root_of = {} if place is None else {"root": str(place)}
    object.__setattr__(dataset, "source", {"name": name, **root_of, "options": options})
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


def download(name: str, to: str | Path) -> Dataset:
    """Fetch a data set of `DOWNLOADS` into the folder `to`, unless it is there, and check its counts."""
    if name not in DOWNLOADS:
        raise unknown_name_error("data set to download", name, DOWNLOADS, "Others are read from a folder of yours.")
    root = user_path(to, "to")
    partial = root / ".kagglehub"  # its cache: files that are not complete yet
    if not root.exists() or (root.is_dir() and all(path == partial for path in root.iterdir())):
        # kagglehub takes settings from the environment alone. On Kaggle and Colab it would not fetch into the folder.
        before = dict(os.environ)
        os.environ.update(KAGGLEHUB_CACHE=str(partial), DISABLE_KAGGLE_CACHE="1", DISABLE_COLAB_CACHE="1")
        try:
            fetched = Path(importlib.import_module("kagglehub").dataset_download(DOWNLOADS[name]))
        except Exception as error:  # kagglehub, its client and requests each have their own
            raise LeukemiaDLError(
                f"{name} could not be downloaded ({type(error).__name__}: {str(error)[:200]}). Needed: pip install "
                "'leukemia-dl[kaggle]', a network (HTTPS_PROXY), 20.8 GB of space and, if Kaggle asks who you are, a "
                "token in ~/.kaggle/kaggle.json; the same command goes on where it was. By hand: unpack the archive of "
                f"https://www.kaggle.com/datasets/{DOWNLOADS[name]} into {root}, and repeat the command."
            ) from error
        finally:
            os.environ.clear()
            os.environ.update(before)
        for entry in sorted(fetched.iterdir()):
            entry.replace(root / entry.name)
        shutil.rmtree(partial, ignore_errors=True)
    dataset = Dataset.load(name, root=root)
    if wrong := differing_counts(dataset.table, dataset.info.declared):
        raise DataError(f"{dataset.info.title} is not complete, or not the published one: {'; '.join(wrong)}.")
    return dataset
