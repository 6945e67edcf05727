"""The sample table: which images there are, of which class and patient. Immutable and checked on creation."""

from __future__ import annotations

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
from leukemia_dl.datasets.cache import array_hash, tried_hashes, user_path
from leukemia_dl.datasets.pixels import PixelStore, decode_all
from leukemia_dl.datasets.sources import files
from leukemia_dl.datasets.table import TEXT, DatasetInfo, class_list, clean_table, count_rows, one_spelling, problem_of
from leukemia_dl.errors import DataError, unknown_name_error
from leukemia_dl.preprocess import Pipeline, decode_image
from leukemia_dl.preprocess.decode import check_image

FilePath = str | Path
OptionalPath = str | Path | None
Names = Sequence[str] | None


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """An immutable table of images with labels and patients, made by `Dataset.load`, `from_folder`, `from_csv` etc.

    The columns are text, but for `fold` (Int64), and NA means: not known. `sample` is a stable id, independent of where
    the files lie; `path` is absolute, NA for an array. `label` is a class name, `subject` the patient. `group` joins
    subjects known to share cells and is otherwise the subject; splits and intervals use it. `field` (of view) and
    `cell` are names. `split` is the side that the authors give: train, val, test, preliminary or final. `same_cell` is
    equal for images known to show one cell. DataError if a table contradicts itself, or has no samples or fewer than
    two classes.

    Methods that make a data set take `class_names` in label order (None: those found, sorted) and `images_root`, where
    relative paths start. `canvas` is the side in pixels of one canvas for images at one scale (None: each is padded).

    Attributes:
        class_names: In label order: class i has label i.
        info: Licence, citation and counts as declared.
        source: The arguments of `Dataset.load` to load it again: name, root (absolute) and options; None for a data set
            that was made otherwise, or of parts.
    """

    _table: pd.DataFrame
    class_names: tuple[str, ...]
    info: DatasetInfo
    _arrays: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        table, names = clean_table(self._table), class_list(self.class_names)
        if problem := problem_of(table, names, self._arrays):
            raise DataError(f"The data set {self.info.name!r} {problem}.")
        object.__setattr__(self, "class_names", names)
        object.__setattr__(self, "_table", table)

    @classmethod
    def load(cls, name: str, root: OptionalPath = None, **options: Any) -> Dataset:
        """Return a data set by its name, such as `Dataset.load("c_nmc_2019", root="data/C-NMC_Leukemia")`.

        `name` is one of `leukemia_dl.list_datasets()`, `root` its folder or file ("synthetic" uses the cache folder);
        `options` are those of the source: see the column `options` of `leukemia_dl.dataset_table()`.
        """
        # The registry collects sources, also of plugins that use Dataset.
        from leukemia_dl.datasets.registry import load_dataset

        return load_dataset(name, root, **options)

    @classmethod
    def from_folder(cls, root: FilePath, class_names: Names = None, canvas: int | None = None) -> Dataset:
        """Return the data set of a folder per class in `root`, without patients; folders of sides or folds too."""
        return cls(*files.read_folder(root, replace(files.FOLDER_INFO, canvas=canvas), class_names))

    @classmethod
    def from_csv(
        cls, path: FilePath, images_root: OptionalPath = None, class_names: Names = None, canvas: int | None = None
    ) -> Dataset:
        """Return the data set of a CSV file `path`: UTF-8, commas, a header `path,label[,subject,group,fold,split]`."""
        info, path = replace(files.CSV_INFO, canvas=canvas), user_path(path, "path")
        start = path.parent if images_root is None else images_root
        return cls(*files.read_frame(files.read_text_csv(path), info, start, class_names, str(path)))

    @classmethod
    def from_dataframe(
        cls, frame: pd.DataFrame, images_root: OptionalPath = None, class_names: Names = None, canvas: int | None = None
    ) -> Dataset:
        """Return the data set of a `frame` with the columns `path`, `label` (NA: not known) and others."""
        info = DatasetInfo("dataframe", "Images named by a table", licence="yours", citation="yours", canvas=canvas)
        return cls(*files.read_frame(frame, info, images_root or ".", class_names))

    @classmethod
    def from_arrays(
        cls, images: NDArray[np.uint8], labels: ArrayLike, class_names: Sequence[str], info: DatasetInfo | None = None,
        samples: Names = None, subjects: Names = None, splits: Names = None, canvas: int | None = None,
    ) -> Dataset:  # fmt: skip
        """Return the data set of images in memory.

        `images`: uint8 (n, height, width, 3), RGB; do not change them. `labels`: class indices (n,) or (n, 1), with
        -1 for not known. `info` has licence, citation and canvas. `samples` are ids (n,), by default 0, 1, 2 and so on;
        `subjects` are patients (n,), `splits` sides as the authors give them. DataError if these do not fit together.
        """
        codes, names, count = np.asarray(labels), class_list(class_names), len(check_image(images, batch=True))
        fits = images.ndim == 4 and codes.shape in ((count,), (count, 1)) and codes.dtype.kind in "iu"
        if not fits or not np.isin(codes, range(-1, len(names))).all():
            raise DataError(
                f"Images are uint8 (n, height, width, 3), labels n class indices from 0 to {len(names) - 1} (-1: not "
                f"known). Received: images {images.shape}, labels {codes.dtype} {codes.shape}, {np.unique(codes)[:9]}."
            )
        given = {"sample": range(count) if samples is None else samples, "subject": subjects, "split": splits}
        # As lists: pandas would align Series by their index.
        columns: dict[str, list[Any]] = {name: list(values) for name, values in given.items() if values is not None}
        table = pd.DataFrame({"label": pd.Series([*names, None], dtype=object).to_numpy()[codes.ravel()], **columns})
        info = info or DatasetInfo("arrays", "Images in memory", "yours", "yours")
        info = info if canvas is None else replace(info, canvas=canvas)
        return cls(table, names, info, dict(zip(table["sample"].astype(str), images, strict=True)))

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
        hashes = dict(zip(of_files.index, tried_hashes(list(of_files)), strict=True))
        for problem in (content for content in hashes.values() if isinstance(content, DataError)):
            raise problem
        rows = enumerate(self._table["sample"])
        return tuple(str(hashes[row]) if row in hashes else array_hash(self._arrays[sample]) for row, sample in rows)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of class names, rows (in any order) and file contents (in any place)."""
        columns = ["sample", "label", "subject", "group", "fold", "split", "same_cell"]
        plain = self._table[columns].astype(object)
        rows = plain.where(plain.notna(), None).values.tolist()
        entries = sorted([*row, content] for row, content in zip(rows, self.content_hashes, strict=True))
        return identity.digest({"class_names": self.class_names, "samples": entries})

    def subset(self, rows: ArrayLike, class_names: Names = None) -> Dataset:
        """Return the data set of some rows.

        `rows` is a bool mask (n,), NA meaning no, or int row numbers in the wanted order; a Series as mask goes by its
        index. `class_names` are given if classes are left out: `ds.subset(ds.labels != 2, ("a", "b"))`.
        """
        chosen = _row_numbers(rows, len(self))
        table, info = self._table.iloc[chosen], self.info
        if info.declared:  # counts of the whole data set do not hold for a part
            whole, left = count_rows(self._table), count_rows(table)
            info = replace(info, declared=tuple(i for i in info.declared if whole.get(i[0]) == left.get(i[0])))
        part = Dataset(table, self.class_names if class_names is None else tuple(class_names), info, self._arrays)
        if "content_hashes" in self.__dict__:
            part.__dict__["content_hashes"] = tuple(self.content_hashes[row] for row in chosen)
        return part

    def drop_classes(self, names: Sequence[str]) -> Dataset:
        """Return the data set without the images of the classes `names`; images without a label stay.

        `source` keeps the names, so that settings load the same data again. UnknownNameError if there is no such class.
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
        here is not patient 1 there. Classes of `other` come after those of this one. `label_map` maps labels of both to
        classes of the result, like `{"Early": "all", "Benign": "hem"}`. DataError if neither has such a label.
        """
        known, renamed = dict.fromkeys([*self.class_names, *other.class_names]), dict(label_map or {})
        if unknown := sorted(set(renamed) - set(known)):
            raise DataError(f"label_map names {', '.join(map(repr, unknown))}; the labels are {', '.join(known)}.")
        kept = pd.Series([name for name in known if name not in renamed], dtype=object)
        renamed |= dict(zip(kept, one_spelling(kept, "classes", self.class_names), strict=True))
        class_names = tuple(dict.fromkeys(renamed[name] for name in known))
        tables, arrays = list[pd.DataFrame](), dict[str, NDArray[np.uint8]]()
        for data in (self, other):
            prefix = "" if self.info.name == other.info.name else f"{data.info.name}/"
            table = data._table.assign(label=data._table["label"].map(renamed, na_action="ignore"))
            for column in ("sample", "subject", "group", "same_cell"):
                table[column] = prefix + table[column]
            tables.append(table)
            arrays |= {prefix + sample: pixels for sample, pixels in data._arrays.items()}
        info, one, two = self.info, self.info, other.info
        if one != two or class_names != self.class_names:
            marks = (("name", "+"), ("title", " + "), ("licence", "; "), ("citation", " "))
            text: Any = {name: sep.join(dict.fromkeys([getattr(one, name), getattr(two, name)])) for name, sep in marks}
            canvas = one.canvas if one.canvas == two.canvas else None
            info = DatasetInfo(**text, class_names=class_names, canvas=canvas, synthetic=one.synthetic or two.synthetic)
        return Dataset(pd.concat(tables, ignore_index=True), class_names, info, arrays)

    def audit(self, show_progress: bool = True) -> AuditReport:
        """Return an audit; see `datasets.audit.audit`, also for `show_progress`."""
        return audit(self, show_progress)

    def default_pipeline(self, size: int) -> Pipeline:
        """Return the pipeline of benchmarks to `size` pixels: on the canvas of the data set, if any, or padded."""
        return Pipeline.default(size, self.info.canvas)

    def pixel_store(self, pipeline: Pipeline, folder: OptionalPath = None, show_progress: bool = True) -> PixelStore:
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
        for label, name in enumerate(self.class_names):
            counts[f"class {name}" if name in ("images", "unlabelled", "subjects", "groups") else name] = (
                self.labels == label
            ).astype(np.int64)
        counts["unlabelled"] = (self.labels < 0).astype(np.int64)
        people = self._table[["subject", "group"]].rename(columns={"subject": "subjects", "group": "groups"})
        return counts.groupby(sides).sum().join(people.groupby(sides).nunique().astype("int64"))


def _row_numbers(rows: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return the numbers of the chosen ones of `count` rows, from a mask, in which NA means no, or from numbers."""
    chosen = pd.Series(rows).convert_dtypes()
    mask = chosen.dtype == "boolean"
    if mask and sorted(chosen.index) == list(range(count)):
        return np.flatnonzero(chosen.sort_index().fillna(False).to_numpy(bool))
    if mask or not chosen.isin(range(-count, count)).all():
        wanted = f"a bool mask of length {count} (a Series: with the index of `table`) or row numbers below it"
        raise DataError(f"subset takes {wanted}. Received: {rows!r}.")
    return np.asarray(chosen, np.int64)
