"""C-NMC 2019 (ISBI 2019 challenge): leukemic B-lymphoblasts, `all`, against normal precursors, `hem`.

Training files are called `UID_<subject>_<field>_<cell>_<all|hem>.bmp`, preliminary ones `1.bmp` and so on; the original
names of these, so subjects and labels, are in a CSV file. The labels of the final test set were never released.

Some subjects are one patient under two names, or were given each other's cells. Files that are identical byte for byte:
20 = 21 71 pairs, 51 = 78 11, 51 = 75 10, H2 = H4 3, H2 = H5 2, H2 = H6 1, H3 = H10 1. Cells of one bounding box and
label, with field numbers that rise together: 51 = 78 86, 20 = 21 71, 51 = 75 59, H3 = H10 27, H2 = H5 17, H2 = H6 10,
H2 = H7 9, H2 = H4 7; any other two subjects share at most one box. So the 73 names of the training part are 65 groups.
The 352 pairs of images of one cell are in `c_nmc_2019_same_cells.csv` here, derived from public annotations of the
challenge; 66 are inside H10, whose fields from 165 on repeat those from 132 on. All 104 identical pairs are among them.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from leukemia_dl.datasets.sources.csv_file import read_text_csv
from leukemia_dl.datasets.sources.folder import find_copy, listed
from leukemia_dl.datasets.table import DatasetInfo, Table
from leukemia_dl.errors import DataError

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
_SIDES = {"c-nmc_test_prelim_phase_data": "preliminary", "c-nmc_test_final_phase_data": "final"}
_OUTER = ("training_data", "c-nmc_training_data", "validation_data", "testing_data", *_SIDES)
_LAYOUT = re.compile(
    rf"(?P<copy>(?:[^/]+/)*?)(?P<folders>(?:(?:{'|'.join(_OUTER)})/)*"
    rf"(?:fold_(?P<fold>\d)/(?P<label>all|hem)|(?P<side>{'|'.join(_SIDES)})))/(?P<file>[^/]+)",
    re.IGNORECASE | re.ASCII,
)
_LABELS = "c-nmc_test_prelim_phase_data_labels.csv"
_WANTED = "the folder C-NMC_Leukemia with training_data/fold_0/all/UID_1_1_1_all.bmp and so on, or TCIA's folders"
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
    place, matches = find_copy(root, _LAYOUT, _is_image, _OUTER, info.title, _WANTED)
    preliminary = {place / match["folders"] for match in matches if _side(match) == "preliminary"}
    labels = _read_labels(place, preliminary)
    frame = pd.DataFrame([_row(place, match, labels) for match in matches])
    frame = frame.sort_values("split", ascending=False, kind="stable", ignore_index=True)  # training images first
    missing = (frame["split"] == "preliminary") & frame["label"].isna()
    if missing.any():
        where = f"{_LABELS} does not name them" if labels else f"there is no {_LABELS} beside them"
        _log.warning("%d preliminary images have no label: %s", missing.sum(), where)
    frame["group"] = frame["subject"].map({subject: "+".join(members) for members in linked for subject in members})
    frame["same_cell"] = frame["sample"].str.lower().map(_same_cells() if linked else {})
    return frame, CLASS_NAMES, info


def _side(match: re.Match[str]) -> str:
    return _SIDES[match["side"].lower()] if match["side"] else "train"


def _is_image(match: re.Match[str]) -> object:
    return match["file"].lower().endswith(".bmp") if match["side"] else parse_name(match["file"])


def _row(place: Path, match: re.Match[str], labels: dict[str, _Name]) -> dict[str, object]:
    """Return the row of an image; `labels` are the original names of the preliminary ones."""
    path, side = place / match["folders"] / match["file"], _side(match)
    name = {"train": parse_name(path.name), "preliminary": labels.get(path.name.lower())}.get(side)
    if side == "train" and name and name.label != match["label"].lower():
        raise DataError(f"{path} says {name.label!r} in its name but lies in the folder {match['label']!r}.")
    known = name._asdict() if name else dict.fromkeys(_Name._fields)
    sample = {"preliminary": "prelim/", "final": "final/"}.get(side, "") + path.stem
    return {"sample": sample, "path": str(path), "split": side, "fold": match["fold"], **known}


def _same_cells() -> dict[str, str]:
    """Return, for the sample ids of images that show a cell that another one shows too (lower case), the first's id."""
    text = resources.files(__package__).joinpath("c_nmc_2019_same_cells.csv").read_text(encoding="ascii")
    pairs = list(csv.reader(text.splitlines()))[1:]
    return {sample.lower(): first for first, second in pairs for sample in (first, second)}


def _read_labels(top: Path, folders: set[Path]) -> dict[str, _Name]:
    """Return the original names by file name, in lower case, of the CSV file in or above the folders, up to `top`."""
    above = {place for folder in folders for place in folder.parents if place.is_relative_to(top)}
    places = folders | {folder.parent for folder in folders} | above
    tables = [path for place in sorted(places) for path in listed(place, ".csv")]
    path = next((path for path in tables if path.name.lower() == _LABELS), None)
    if path is None:
        return {}
    frame = read_text_csv(path, "Take it from the original archive")
    columns = ["Patient_ID", "new_names", "labels"]
    if missing := sorted(set(columns) - set(frame.columns)):
        raise DataError(f"{path} has no column {', '.join(missing)}. It has: {list(frame.columns)}.")
    names: dict[str, _Name] = {}
    for row, (original, new, label) in enumerate(frame[columns].fillna("").itertuples(index=False), start=1):
        known = parse_name(original)
        if known is None or label != str(CLASS_NAMES.index(known.label)) or new.lower() in names:
            wanted = "Wanted: such as UID_57_29_1_all.bmp, 1.bmp, 1; all is labelled 1, hem 0; each file once"
            raise DataError(f"{path}, row {row}: {original!r}, {new!r}, {label!r}. {wanted}.")
        names[new.lower()] = known
    return names
