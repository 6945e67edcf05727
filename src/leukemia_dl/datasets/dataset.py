"""The sample table: which images there are, of which class and patient. Immutable and checked on creation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from leukemia_dl import identity
from leukemia_dl.datasets.audit import AuditReport, audit
from leukemia_dl.datasets.cache import array_hash, file_hashes, user_path
from leukemia_dl.datasets.pixels import PixelStore, decode_all
from leukemia_dl.datasets.sources import files
from leukemia_dl.datasets.table import TEXT, DatasetInfo, checked_table, class_list, counted, joined_info, row_numbers
from leukemia_dl.errors import DataError, unknown_name_error
from leukemia_dl.preprocess import Pipeline, decode_image
from leukemia_dl.preprocess.decode import check_image
from leukemia_dl.text import name_key

__all__ = ["Dataset"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """An immutable table of images with labels and patients, made by `Dataset.load`, `from_folder`, `from_csv` etc.

    The columns are text, but for `fold` (Int64), and NA means: not known. `sample` is a stable id, independent of where
    the files lie; `path` is absolute, NA for an image that is an array; `label` is a class name, `subject` the patient;
    `group` joins subjects known to share cells and is otherwise the subject: splits and intervals use it; `field` (of
    view) and `cell`; `split`: the side that the authors give, train, val, test, preliminary or final; `same_cell` is
    equal for images known to show one and the same cell.

    Attributes:
        class_names: In label order: class i has label i.
        info: Licence, citation and counts as declared.
        source: The arguments of `Dataset.load` to load it again: name, root (absolute) and options; None for a data set
            that was made otherwise, or of parts.

    Raises:
        DataError: On creation, if samples repeat, a label is no class, a subject is in two groups, a split is unknown,
            there are no samples, or fewer than two classes; also if a file or column is missing or named twice.
    """

    _table: pd.DataFrame
    class_names: tuple[str, ...]
    info: DatasetInfo
    _arrays: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        names = tuple(self.class_names)
        object.__setattr__(self, "class_names", names)
        object.__setattr__(self, "_table", checked_table(self._table, names, self._arrays, self.info.name))

    @classmethod
    def load(cls, name: str, root: str | Path | None = None, **options: Any) -> Dataset:
        """Return a data set by its name, such as `Dataset.load("c_nmc_2019", root="data/C-NMC_Leukemia")`.

        Args:
            name: One of `leukemia_dl.list_datasets()`.
            root: Its folder. "csv" takes `path`, its file, instead; "synthetic" uses the cache folder by default.
            options: The source's own, see the column `options` of `leukemia_dl.dataset_table()`.
        """
        # The one import of a module above this one: the registry collects sources, also of plugins that use Dataset.
        from leukemia_dl.datasets.registry import load_dataset

        return load_dataset(name, root, **options)

    @classmethod
    def from_folder(
        cls, root: str | Path, class_names: Sequence[str] | None = None, canvas: int | None = None
    ) -> Dataset:
        """Return the data set of a folder per class, without patients.

        Args:
            root: The folder. Folders of sides (`train`) or folds (`fold_0`) may hold a folder per class, or be in each.
            class_names: In label order, or to choose between outer and inner folders; None: the folders' names, sorted.
            canvas: Side in pixels of one canvas for all images, if they are at one scale; None pads each to a square.
        """
        return cls(*files.read_folder(root, replace(files.FOLDER_INFO, canvas=canvas), class_names))

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        images_root: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        canvas: int | None = None,
    ) -> Dataset:
        """Return the data set of a CSV file: UTF-8, commas, a header `path,label[,subject,group,fold,split]`.

        Args:
            path: The file; each row needs a label. Cells are text, `007` is not `7`; an empty or NA subject: unknown.
            images_root: Folder that relative paths start from; None for the folder of the file.
            class_names: In label order; None for the labels found, sorted.
            canvas: As in `from_folder`.
        """
        info, path = replace(files.CSV_INFO, canvas=canvas), user_path(path, "path")
        start = path.parent if images_root is None else images_root
        return cls(*files.read_frame(files.read_text_csv(path), info, start, class_names, str(path)))

    @classmethod
    def from_dataframe(
        cls,
        frame: pd.DataFrame,
        images_root: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        canvas: int | None = None,
    ) -> Dataset:
        """Return the data set of a table.

        Args:
            frame: Columns `path` and `label` (NA: not known), and others of a data set, in upper or lower case. Without
                `sample` the ids are the paths below `images_root`, with `/`.
            images_root: Folder that relative paths start from; None for the working directory.
            class_names: As in `from_csv`.
            canvas: As in `from_folder`.
        """
        info = DatasetInfo("dataframe", "Images named by a table", licence="yours", citation="yours", canvas=canvas)
        return cls(*files.read_frame(frame, info, "." if images_root is None else images_root, class_names))

    @classmethod
    def from_arrays(
        cls,
        images: NDArray[np.uint8],
        labels: ArrayLike,
        class_names: Sequence[str],
        info: DatasetInfo | None = None,
        samples: Sequence[str] | None = None,
        subjects: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        canvas: int | None = None,
    ) -> Dataset:
        """Return the data set of images in memory.

        Args:
            images: uint8, (n, height, width, 3), RGB 0..255. Neither copied nor changed; do not change it either.
            labels: int, (n,) or (n, 1): class indices; -1 means: not known.
            class_names: In label order.
            info: Licence, citation, a common canvas.
            samples: Ids (n,), each once; None for 0, 1, 2, ...
            subjects: Patients (n,), if known.
            splits: Sides (n,) as the authors give them, if they do.
            canvas: As in `from_folder`; None for the one of `info`.
        """
        check_image(images, batch=True)
        codes, names, count = np.asarray(labels), class_list(class_names), len(images)
        fits = images.ndim == 4 and codes.shape in ((count,), (count, 1)) and codes.dtype.kind in "iu"
        if not fits or not np.isin(codes, range(-1, len(names))).all():
            raise DataError(
                f"Images are uint8 (n, height, width, 3), labels n class indices from 0 to {len(names) - 1} (-1: not "
                f"known). Received: images {images.shape}, labels {codes.dtype} {codes.shape}, {np.unique(codes)[:9]}."
            )
        given = {"sample": range(count) if samples is None else samples, "subject": subjects, "split": splits}
        columns: dict[str, list[Any]] = {name: list(values) for name, values in given.items() if values is not None}
        if wrong := [name for name, values in columns.items() if len(values) != count]:
            raise DataError(f"There are {count:,} images, and another number of entries for {', '.join(wrong)}.")
        table = pd.DataFrame({"label": [None if code < 0 else names[code] for code in codes.ravel()], **columns})
        info = info or DatasetInfo("arrays", "Images in memory", "yours", "yours")
        info = info if canvas is None else replace(info, canvas=canvas)
        return cls(table, names, info, dict(zip(map(str, columns["sample"]), images, strict=True)))

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        subjects = f", {self._table['subject'].nunique():,} subjects" if self._table["subject"].notna().any() else ""
        return f"<Dataset {self.info.name!r}: {len(self):,} images{subjects}, classes {', '.join(self.class_names)}>"

    @property
    def table(self) -> pd.DataFrame:
        """A copy of the table, with a row per sample."""
        return self._table.copy()

    @property
    def paths(self) -> list[Path]:
        """The files, in row order; DataError if there are images that are no files (`decode` reads them all)."""
        if self._table["path"].isna().any():
            raise DataError(f"The data set {self.info.name!r} has images that are arrays, not files. Use decode(row).")
        return [Path(path) for path in self._table["path"]]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, int64 (n,), read-only; -1 where the label is not known."""
        codes = pd.Index(self.class_names).get_indexer(pd.Index(self._table["label"].astype(object))).astype(np.int64)
        codes.flags.writeable = False
        return codes

    @property
    def has_subjects(self) -> bool:
        """Whether each labelled sample has a subject (or a group), so that patients can be kept apart."""
        labelled = self.labels >= 0
        return bool(labelled.any() and self._table["group"][labelled].notna().all())

    @cached_property
    def content_hashes(self) -> tuple[str, ...]:
        """SHA-256 of each file's bytes (or array's shape and bytes), 64 hexadecimal digits, in row order."""
        of_files = self._table["path"].dropna()
        hashes = dict(zip(of_files.index, file_hashes(list(of_files)), strict=True))
        samples = self._table["sample"]
        return tuple(hashes[i] if i in hashes else array_hash(self._arrays[samples[i]]) for i in range(len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of class names, rows and file contents, whatever the order of the rows and the place of the files."""
        columns = ["sample", "label", "subject", "group", "fold", "split", "same_cell"]
        plain = self._table[columns].astype(object)
        rows = plain.where(plain.notna(), None).values.tolist()
        entries = sorted([*row, content] for row, content in zip(rows, self.content_hashes, strict=True))
        return identity.digest({"class_names": self.class_names, "samples": entries})

    def subset(self, rows: ArrayLike, class_names: Sequence[str] | None = None) -> Dataset:
        """Return the data set of some rows.

        Args:
            rows: bool mask (n,), NA meaning no, or int row numbers in the wanted order. A Series is taken by its index.
            class_names: In label order, if classes are left out: `ds.subset(ds.labels != 2, ("a", "b"))`.
        """
        chosen = row_numbers(rows, len(self))
        table, info = self._table.iloc[chosen], self.info
        if info.declared:  # counts of the whole data set do not hold for a part
            whole, left = counted(self._table), counted(table)
            info = replace(info, declared=tuple(i for i in info.declared if whole.get(i[0]) == left.get(i[0])))
        part = Dataset(table, self.class_names if class_names is None else tuple(class_names), info, self._arrays)
        if "content_hashes" in self.__dict__:
            part.__dict__["content_hashes"] = tuple(self.content_hashes[row] for row in chosen)
        return part

    def drop_classes(self, names: Sequence[str]) -> Dataset:
        """Return the data set without the images of the classes `names`; images without a label stay.

        `source` keeps the names, so that settings load the same data again. UnknownNameError: there is no such class.
        """
        if unknown := [name for name in names if name not in self.class_names]:
            raise unknown_name_error("class", unknown[0], self.class_names)
        kept = tuple(name for name in self.class_names if name not in names)
        part = self.subset(~self._table["label"].isin(names).to_numpy(bool), kept)
        if self.source is not None:
            options = dict(self.source["options"])
            options["drop_classes"] = [*options.get("drop_classes", ()), *names]
            object.__setattr__(part, "source", {**self.source, "options": options})
        return part

    def merge(self, other: Dataset, label_map: Mapping[str, str] | None = None) -> Dataset:
        """Return one data set: every row of this one and of another, once, with the licence and citation of both.

        Ids, subjects and groups of data sets with different names are prefixed by these (`c_nmc_2019/H3`): patient 1
        here is not patient 1 there. Parts of one data set (equal names) come together as they are.

        Args:
            other: The data set that is added; its classes come after those of this one.
            label_map: Labels of either to classes of the result, such as `{"Early": "all", "Benign": "hem"}`; a label
                that is not in it stays as it is.
        """
        known, renamed = dict.fromkeys([*self.class_names, *other.class_names]), dict(label_map or {})
        if unknown := sorted(set(renamed) - set(known)):
            raise DataError(f"label_map names {', '.join(map(repr, unknown))}; the labels are {', '.join(known)}.")
        spelled = {name_key(name): name for name in self.class_names}
        alike = {name: spelled.get(name_key(name), name) for name in other.class_names if name not in renamed}
        if alike := {name: own for name, own in alike.items() if name != own}:
            _log.warning("Classes that differ in case or spaces only are taken for one: %s", alike)
        renamed |= alike
        class_names = tuple(dict.fromkeys(renamed.get(name, name) for name in known))
        tables: list[pd.DataFrame] = []
        arrays: dict[str, NDArray[np.uint8]] = {}
        for data in (self, other):
            prefix = "" if self.info.name == other.info.name else f"{data.info.name}/"
            table = data._table.assign(label=data._table["label"].replace(renamed))
            for column in ("sample", "subject", "group", "same_cell"):
                table[column] = prefix + table[column]
            tables.append(table)
            arrays |= {prefix + sample: pixels for sample, pixels in data._arrays.items()}
        same = self.info == other.info and class_names == self.class_names
        info = self.info if same else joined_info(self.info, other.info, class_names)
        return Dataset(pd.concat(tables, ignore_index=True), class_names, info, arrays)

    def audit(self, show_progress: bool = True) -> AuditReport:
        """Return an audit; see `datasets.audit.audit`, also for `show_progress`."""
        return audit(self, show_progress)

    def default_pipeline(self, size: int) -> Pipeline:
        """Return the pipeline of benchmarks to `size` pixels: on the canvas of the data set, if any, or padded."""
        return Pipeline.default(size, self.info.canvas)

    def pixel_store(
        self, pipeline: Pipeline, folder: str | Path | None = None, show_progress: bool = True
    ) -> PixelStore:
        """Return the images after `pipeline`; see `PixelStore.open`, also for `folder` and `show_progress`."""
        return PixelStore.open(self, pipeline, folder, show_progress)

    def decode(self, row: int) -> NDArray[np.uint8]:
        """Return the pixels of the row number `row` as they are in its file: uint8 (height, width, 3), RGB."""
        path = self._table["path"].iloc[row]
        return self._arrays[self._table["sample"].iloc[row]].copy() if path is pd.NA else decode_image(path)

    def to_numpy(self, pipeline: Pipeline, show_progress: bool = True) -> NDArray[np.uint8]:
        """Return all images after `pipeline` in row order, uint8 (n, height, width, 3); `show_progress` shows a bar."""
        return decode_all(self, pipeline, show_progress)

    def summary(self) -> pd.DataFrame:
        """Return a row per split and fold: images, one column per class, unlabelled, subjects, groups (all int64)."""
        sides = [self._table["split"].fillna("-"), self._table["fold"].astype(TEXT).fillna("-")]
        counts = pd.DataFrame({"images": 1}, self._table.index)
        own = ("images", "unlabelled", "subjects", "groups")
        for label, name in enumerate(self.class_names):
            counts[f"class {name}" if name in own else name] = (self.labels == label).astype(np.int64)
        counts["unlabelled"] = (self.labels < 0).astype(np.int64)
        people = self._table[["subject", "group"]].rename(columns={"subject": "subjects", "group": "groups"})
        return counts.groupby(sides).sum().join(people.groupby(sides).nunique().astype("int64"))
