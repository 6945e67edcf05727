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
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from leukemia_dl.datasets.folders import folders_in, listed, only_copy, require_folder
from leukemia_dl.datasets.info import DatasetInfo, DatasetSource, Table
from leukemia_dl.datasets.tables import read_text_csv
from leukemia_dl.errors import DataError
from leukemia_dl.plugins import hookimpl
from leukemia_dl.preprocess.decode import warn_left_out

CLASS_NAMES = ("hem", "all")
LINKED_SUBJECTS = (("20", "21"), ("51", "75", "78"), ("H2", "H4", "H5", "H6", "H7"), ("H3", "H10"))
_FOLDS = (("fold 0", 3_527), ("fold 1", 3_581), ("fold 2", 3_553))
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
    declared=(("images", 15_114), ("subjects", 101), *_FOLDS, ("preliminary", 1_867), ("final", 2_586)),
)
_NAME = re.compile(r"UID_(H?\d+)_(\d+)_(\d+)_(all|hem)\.bmp", re.IGNORECASE | re.ASCII)
_PRELIMINARY = "c-nmc_test_prelim_phase_data"
_FINAL = "c-nmc_test_final_phase_data"
_OUTER = ("training_data", "c-nmc_training_data", "validation_data", "testing_data", _PRELIMINARY, _FINAL)
_LABELS = "c-nmc_test_prelim_phase_data_labels.csv"
_WANTED = (
    "the folder C-NMC_Leukemia with training_data/fold_0/all/UID_*.bmp and so on, or TCIA's C-NMC_training_data/..."
)
_log = logging.getLogger(__name__)


class _Name(NamedTuple):
    subject: str
    field: str
    cell: str
    label: str


def parse_name(name: str) -> _Name | None:
    """Return (subject, field, cell, label) of a name such as `UID_h3_1_2_HEM.bmp` (H3, hem); None if it is none."""
    match = _NAME.fullmatch(name)
    return _Name(match[1].upper(), match[2], match[3], match[4].lower()) if match else None


def read_c_nmc(root: Path, info: DatasetInfo = INFO, linked: Sequence[Sequence[str]] = LINKED_SUBJECTS) -> Table:
    """Return the table of C-NMC 2019 in the layout of Kaggle or of TCIA, whole or in part.

    `root` is the folder that holds the training, validation and test folders, or one above or below it; `linked` are
    sets of subjects that share cells: one group each. `sample` is the file's name without suffix for training images,
    `prelim/1` and `final/1` for the others. Images that the CSV does not name have no label.
    """
    root = top = require_folder(root, _WANTED)
    while top.name.lower() in _OUTER:
        top = top.parent
    _, parts = only_copy(root, _parts, info.title, _WANTED, start=top)
    rows = [row for name in sorted(parts) if name.startswith("fold_") for row in _training(int(name[5:]), parts[name])]
    if folder := parts.get(_PRELIMINARY):
        rows += _preliminary(folder, parts.get(_LABELS))
    if folder := parts.get(_FINAL):
        rows += [{"sample": f"final/{path.stem}", "path": str(path), "split": "final"} for path in _images(folder)]
    for folder in (parts[name] for name in (_PRELIMINARY, _FINAL) if name in parts):
        others = [path.name for path in listed(folder) if path.suffix.lower() != ".bmp" and path.is_file()]
        warn_left_out(folder, others, "only BMP files are read")
    frame = pd.DataFrame(rows, columns=["sample", "path", "label", "subject", "field", "cell", "fold", "split"])
    frame["group"] = frame["subject"].map({subject: "+".join(members) for members in linked for subject in members})
    frame["same_cell"] = frame["sample"].str.lower().map(_same_cells() if linked else {})
    return frame, CLASS_NAMES, info


def _same_cells() -> dict[str, str]:
    """Return, for the sample ids of images that show a cell that another one shows too (lower case), the first's id."""
    text = resources.files(__package__).joinpath("c_nmc_2019_same_cells.csv").read_text(encoding="ascii")
    pairs = list(csv.reader(text.splitlines()))[1:]
    return {sample.lower(): first for first, second in pairs for sample in (first, second)}


def _parts(base: Path) -> dict[Path, dict[str, Path]]:
    """Return the folders of images and the label file in `base`, of either layout, by their names in lower case."""
    parts: dict[str, Path] = {}
    outer = [base]
    for folder in outer:  # which grows
        for path in listed(folder):
            name = path.name.lower()
            if (name == _LABELS and path.is_file()) or (re.fullmatch(r"fold_\d", name) and _class_folders(path)):
                parts.setdefault(name, path)
            elif name in _OUTER and path.is_dir() and len(path.relative_to(base).parts) <= 3:
                outer.append(path)
        if folder.name.lower() in (_PRELIMINARY, _FINAL) and _images(folder):
            parts[folder.name.lower()] = folder
    return {base: parts} if parts.keys() - {_LABELS} else {}


def _training(fold: int, folder: Path) -> Iterator[dict[str, object]]:
    others = []
    for inner in _class_folders(folder):
        for path in filter(Path.is_file, listed(inner)):
            name = parse_name(path.name)
            if name is None:
                others.append(path.name)
            elif name.label != inner.name.lower():
                raise DataError(f"{path} says {name.label!r} in its name but lies in the folder {inner.name!r}.")
            else:
                yield {"sample": path.stem, "path": str(path), "fold": fold, "split": "train", **name._asdict()}
    warn_left_out(folder, others, "names must be like UID_<subject>_<field>_<cell>_<label>.bmp")


def _preliminary(folder: Path, labels: Path | None) -> Iterator[dict[str, object]]:
    names = {} if labels is None else _read_labels(labels)
    unknown = 0
    for path in _images(folder):
        name = names.get(path.name.lower())
        unknown += name is None
        known = {} if name is None else name._asdict()
        yield {"sample": f"prelim/{path.stem}", "path": str(path), "split": "preliminary", **known}
    if unknown:
        where = f"is not named in {labels}" if labels else f"has no {_LABELS} beside it"
        _log.warning("%d preliminary images have no label: the file %s", unknown, where)


def _read_labels(path: Path) -> dict[str, _Name]:
    """Return the parsed original name of each file that the CSV file names, in lower case."""
    frame = read_text_csv(path, "Take it from the original archive")
    columns = ["Patient_ID", "new_names", "labels"]
    if missing := sorted(set(columns) - set(frame.columns)):
        raise DataError(f"{path} has no column {', '.join(missing)}. It has: {list(frame.columns)}.")
    names: dict[str, _Name] = {}
    for row, (original, new, label) in enumerate(frame[columns].fillna("").itertuples(index=False), start=1):
        known, is_plain = parse_name(original), re.fullmatch(r"[\w-]+\.bmp", new, re.IGNORECASE | re.ASCII)
        if known is None or not is_plain or label != str(CLASS_NAMES.index(known.label)):
            wanted = "Wanted: such as UID_57_29_1_all.bmp, 1.bmp, 1; all is labelled 1, hem 0"
            raise DataError(f"{path}, row {row}: {original!r}, {new!r}, {label!r} contradict each other. {wanted}.")
        if names.setdefault(new.lower(), known) is not known:
            raise DataError(f"{path}, row {row}: {new} is named a second time.")
    return names


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [inner for inner in folders_in(folder) if inner.name.lower() in CLASS_NAMES]


def _images(folder: Path) -> list[Path]:
    return [path for path in listed(folder) if path.suffix.lower() == ".bmp" and path.is_file()]


@hookimpl
def leukemia_dl_datasets() -> Iterator[DatasetSource]:
    """Yield the source."""
    yield DatasetSource("c_nmc_2019", read_c_nmc, INFO)
