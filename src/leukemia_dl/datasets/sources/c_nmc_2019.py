"""C-NMC 2019 (ISBI 2019 challenge): leukemic B-lymphoblasts, `all`, against normal precursors, `hem`.

Training files are called `UID_<subject>_<field>_<cell>_<all|hem>.bmp`, preliminary ones `1.bmp` and so on; the original
names of these, so subjects and labels, are in a CSV file. The labels of the final test set were never released.

Some subjects are one patient under two names, or were given each other's cells. Evidence:

- byte-identical files: 20 = 21 71 pairs, 51 = 78 11, 51 = 75 10, H2 = H4 3, H2 = H5 2, H2 = H6 1, H3 = H10 1;
- cells with identical bounding box and label, whose field numbers rise together: 51 = 78 86, 20 = 21 71, 51 = 75 59,
  H3 = H10 27, H2 = H5 17, H2 = H6 10, H2 = H7 9, H2 = H4 7. Any other two subjects share at most one box.

So the 73 names of the training part are 65 groups. The 352 pairs of images of one cell (66 of them inside H10, whose
fields from 165 on repeat those from 132 on) are listed in `c_nmc_2019_same_cells.csv` here, derived from public
annotations of the challenge: same linked set, same label, same box to the pixel. They contain all 104 byte-identical
pairs of the training part.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from leukemia_dl.datasets.dataset import Dataset, DatasetInfo
from leukemia_dl.datasets.folders import folders_in, listed, require_folder, warn_left_out
from leukemia_dl.datasets.registry import DatasetSource
from leukemia_dl.errors import DataError
from leukemia_dl.plugins import hookimpl

CLASS_NAMES = ("hem", "all")
LINKED_SUBJECTS = (("20", "21"), ("51", "75", "78"), ("H2", "H4", "H5", "H6", "H7"), ("H3", "H10"))
INFO = DatasetInfo(
    name="c_nmc_2019",
    title="C-NMC 2019",
    licence="CC BY 3.0 (as stated in a public dataset note)",
    citation=(
        "Gupta, A., & Gupta, R. (2019). ALL Challenge dataset of ISBI 2019 [Data set]. The Cancer Imaging Archive. "
        "https://doi.org/10.7937/tcia.2019.dc64i46r"
    ),
    url="https://doi.org/10.7937/tcia.2019.dc64i46r",
    class_names=CLASS_NAMES,
    canvas=450,
    test_fold=2,
    declared=(
        ("images", 15_114),
        ("subjects", 101),
        ("fold 0", 3_527),
        ("fold 1", 3_581),
        ("fold 2", 3_553),
        ("preliminary", 1_867),
        ("final", 2_586),
    ),
)
_NAME = re.compile(r"UID_(H?\d+)_(\d+)_(\d+)_(all|hem)\.bmp", re.IGNORECASE | re.ASCII)
_TRAINING = ("training_data", "c-nmc_training_data")
_PRELIMINARY = "c-nmc_test_prelim_phase_data"
_FINAL = "c-nmc_test_final_phase_data"
_OUTER = (*_TRAINING, "validation_data", "testing_data", _PRELIMINARY, _FINAL)
_CSV = "c-nmc_test_prelim_phase_data_labels.csv"
_WANTED = (
    "the folder C-NMC_Leukemia with training_data/fold_0/all/UID_*.bmp and so on, or TCIA's C-NMC_training_data/..."
)
_log = logging.getLogger(__name__)


class _Name(NamedTuple):
    subject: str
    field: str
    cell: str
    label: str


class _Parts(NamedTuple):
    folds: dict[int, Path]
    preliminary: Path | None
    labels: Path | None
    final: Path | None


def parse_name(name: str) -> _Name | None:
    """Return (subject, field, cell, label) of a file name such as `UID_H3_1_2_hem.bmp`, or None if it is none.

    The subject and the label are normalised: `h3` is the subject `H3`.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    subject, field, cell, label = match.groups()
    return _Name(subject.upper(), field, cell, label.lower())


def read_c_nmc(root: Path, info: DatasetInfo = INFO, linked: Sequence[Sequence[str]] = LINKED_SUBJECTS) -> Dataset:
    """Load C-NMC 2019 from the layout of Kaggle or of TCIA, whole or in part.

    Args:
        root: The folder that holds the training, validation and test folders, or one above or below it.
        info: What to say about it.
        linked: Sets of subjects that share cells: one group each.

    Returns:
        The data set, with `class_names` ("hem", "all"), so ALL = 1. `sample` is the file's name without suffix for
        training images, `prelim/1` and `final/1` for the others; `split` is train, preliminary or final; final images,
        and preliminary ones that the CSV does not name, have no label.

    Raises:
        DataError: If nothing of it is there, or names and labels contradict each other.
    """
    root = require_folder(Path(root), _WANTED)
    try:
        parts = _find(root)
        rows = [row for fold, folder in sorted(parts.folds.items()) for row in _training(fold, folder)]
        rows += _preliminary(parts)
        rows += [{"sample": f"final/{path.stem}", "path": str(path), "split": "final"} for path in _images(parts.final)]
        for folder in filter(None, (parts.preliminary, parts.final)):
            others = [path.name for path in listed(folder) if path.suffix.lower() != ".bmp" and path.is_file()]
            warn_left_out(folder, others, "are not BMP files")
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check its permissions.") from error
    if not rows:
        raise DataError(f"The folders of C-NMC in {root} hold no images. Wanted: {_WANTED}.")
    frame = pd.DataFrame(rows, columns=["sample", "path", "label", "subject", "field", "cell", "fold", "split"])
    groups = {subject: "+".join(members) for members in linked for subject in members}
    frame["group"] = frame["subject"].map(groups)
    frame["same_cell"] = frame["sample"].str.lower().map(_same_cells() if linked else {})
    declared = dict(info.declared).get("images")
    if declared is not None and len(frame) != declared:
        _log.warning("%s: %d of the %d images of %s are there", root, len(frame), declared, info.title)
    return Dataset(frame, CLASS_NAMES, info)


def _same_cells() -> dict[str, str]:
    """Return, for the sample ids of images that show a cell that another one shows too (lower case), the first's id."""
    text = resources.files(__package__).joinpath("c_nmc_2019_same_cells.csv").read_text(encoding="ascii")
    pairs = list(csv.reader(text.splitlines()))[1:]
    return {sample.lower(): first for first, second in pairs for sample in (first, second)}


def _find(root: Path) -> _Parts:
    """Return the parts of the data set in `root`, one level below it, or around it."""
    top = root
    while top.name.lower() in _OUTER:
        top = top.parent
    for bases in ([top], [root], folders_in(root)):
        found = {base: parts for base in bases if any(parts := _parts(base))}
        if len(found) > 1:
            raise DataError(
                f"There are several copies of C-NMC in {root}: {', '.join(map(str, found))}. Pass one of them."
            )
        if found:
            return next(iter(found.values()))
    inside = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
    raise DataError(f"{root} does not look like C-NMC 2019. Wanted: {_WANTED}. Found in it: {inside}.")


def _parts(base: Path) -> _Parts:
    """Look for the parts in `base`: folders of either layout, and twins nested in a folder of the same name."""
    folds: dict[int, Path] = {}
    preliminary = labels = final = None
    waiting = [base]
    while waiting:
        folder = waiting.pop(0)
        labels = labels or next((path for path in listed(folder) if path.name.lower() == _CSV and path.is_file()), None)
        for inner in folders_in(folder):
            name = inner.name.lower()
            if (match := re.fullmatch(r"fold_(\d)", name)) is not None and _classes(inner):
                folds.setdefault(int(match[1]), inner)
            elif name in _OUTER and len(inner.relative_to(base).parts) <= 3:
                waiting.append(inner)
        if folder.name.lower() == _PRELIMINARY and _images(folder):
            preliminary = folder
        if folder.name.lower() == _FINAL and _images(folder):
            final = folder
    return _Parts(folds, preliminary, labels if preliminary else None, final)


def _training(fold: int, folder: Path) -> Iterable[dict[str, object]]:
    others = []
    for inner in _classes(folder):
        for path in filter(Path.is_file, listed(inner)):
            name = parse_name(path.name)
            if name is None:
                others.append(path.name)
                continue
            if name.label != inner.name.lower():
                raise DataError(f"{path} says {name.label!r} in its name but lies in the folder {inner.name!r}.")
            yield {"sample": path.stem, "path": str(path), "fold": fold, "split": "train", **name._asdict()}
    warn_left_out(folder, others, "are not called UID_<subject>_<field>_<cell>_<label>.bmp")


def _preliminary(parts: _Parts) -> Iterable[dict[str, object]]:
    names = {} if parts.labels is None else _read_labels(parts.labels)
    unknown = 0
    for path in _images(parts.preliminary):
        row = {"sample": f"prelim/{path.stem}", "path": str(path), "split": "preliminary"}
        name = names.get(path.name.lower())
        unknown += name is None
        yield {**row, **({} if name is None else name._asdict())}
    if unknown:
        where = f"is not named in {parts.labels}" if parts.labels else f"has no {_CSV} beside it"
        _log.warning("%d preliminary images have no label: the file %s", unknown, where)


def _read_labels(path: Path) -> dict[str, _Name]:
    """Return what the CSV file says of each file name, in lower case."""
    names: dict[str, _Name] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"Patient_ID", "new_names", "labels"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path} has no column {', '.join(sorted(missing))}. It has: {reader.fieldnames}.")
            for row in reader:
                known, new = parse_name((row["Patient_ID"] or "").strip()), (row["new_names"] or "").strip()
                where = f"{path}, line {reader.line_num}"
                if known is None:
                    raise DataError(
                        f"{where}: Patient_ID must be like UID_57_29_1_all.bmp. Received: {row['Patient_ID']!r}."
                    )
                if not re.fullmatch(r"[\w-]+\.bmp", new, re.IGNORECASE | re.ASCII):
                    raise DataError(f"{where}: new_names must be a plain file name like 1.bmp. Received: {new!r}.")
                if row["labels"] is None or row["labels"].strip() != str(CLASS_NAMES.index(known.label)):
                    raise DataError(f"{where}: {known.label} is labelled {row['labels']!r}; 1 is ALL, 0 is HEM.")
                if names.setdefault(new.lower(), known) is not known:
                    raise DataError(f"{where}: {new} is named a second time.")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}. Take it from the original archive.") from error
    return names


def _classes(folder: Path) -> list[Path]:
    return [inner for inner in folders_in(folder) if inner.name.lower() in CLASS_NAMES]


def _images(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return [path for path in listed(folder) if path.suffix.lower() == ".bmp" and path.is_file()]


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source."""
    yield DatasetSource("c_nmc_2019", read_c_nmc, INFO)
