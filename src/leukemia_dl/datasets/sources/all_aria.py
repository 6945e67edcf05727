"""The ALL data set of Aria et al. (2021): microscope fields of four classes, in JPEG files of 224 x 224 pixels.

Files are called `WBC-Benign-001.jpg` or `WBC-Malignant-Early-012.jpg` and lie in a folder per class. The same fields
are there a second time with the background taken out, in `Segmented/`: read together with `Original/`, each field would
be on two sides of a split. Nothing says which patient a field is of, and 40 groups of files are byte-identical.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from leukemia_dl.checks import choice
from leukemia_dl.datasets.folders import folders_in, listed, only_copy, require_folder
from leukemia_dl.datasets.info import DatasetInfo, DatasetSource, Table
from leukemia_dl.errors import DataError
from leukemia_dl.plugins import hookimpl
from leukemia_dl.preprocess.decode import warn_left_out

CLASS_NAMES = ("Benign", "Early", "Pre", "Pro")
VERSIONS = ("original", "segmented")
INFO = DatasetInfo(
    name="all_aria",
    title="ALL image data set (Aria et al.)",
    licence="see the Kaggle page",
    citation="Aria et al. (2021). ALL image data set. Kaggle, mehradaria/leukemia.",
    url="https://www.kaggle.com/datasets/mehradaria/leukemia",
    class_names=CLASS_NAMES,
    declared=(("images", 3_256), ("Benign", 504), ("Early", 985), ("Pre", 963), ("Pro", 804)),
)
_NAME = re.compile(r"WBC-(?:Malignant-(Early|Pre|Pro)|(Benign))-(\d{1,6})\.jpe?g", re.IGNORECASE | re.ASCII)
_LABELS = {name.lower(): name for name in CLASS_NAMES}
_WANTED = "a folder with Original/Benign/WBC-Benign-001.jpg, Original/Early/WBC-Malignant-Early-012.jpg and so on"


def parse_name(name: str) -> tuple[str, str] | None:
    """Return (class, number) of a file name: ("Early", "012") of `WBC-Malignant-Early-012.jpg`; None if it is none."""
    match = _NAME.fullmatch(name)
    return (_LABELS[(match[1] or match[2]).lower()], f"{int(match[3]):03d}") if match else None


def read_all_aria(root: Path, version: str = "original") -> Table:
    """Return the table of one version, "original" or "segmented", of the ALL data set of Aria et al., whole or in part.

    `root` is the folder that holds `Original` and `Segmented`, one of these, or one above or below. Four class folders
    without such a folder around them are taken for the original version. `sample` is like `Early/012`, in both
    versions, so that they cannot be merged by mistake.
    """
    choice("version", version, VERSIONS)
    root = require_folder(root, _WANTED)
    start = root.parent if root.name.lower() in _LABELS and not _classes(root) and _classes(root.parent) else root
    if (here := start.name.lower()) in VERSIONS and here != version and _classes(start):
        raise DataError(f"{start} is the {here} version: pass version={here!r}, or the root {start.parent}.")

    def find(place: Path) -> dict[Path, list[Path]]:
        bases = [place, *(inner for inner in folders_in(place) if inner.name.lower() in VERSIONS)]
        fitting = [base for base in bases if (base.name.lower() == "segmented") == (version == "segmented")]
        return {base: classes for base in fitting if (classes := _classes(base))}

    _, folders = only_copy(root, find, f"the {version} version of {INFO.title}", _WANTED, start)
    rows: dict[str, str] = {}
    others = []
    for folder, path in ((inner, path) for inner in folders for path in listed(inner)):
        name = parse_name(path.name) if path.is_file() else None
        if name is None:
            others.append(path.name)
            continue
        label, number = name
        if label.lower() != folder.name.lower():
            raise DataError(f"{path} says {label!r} in its name but lies in the folder {folder.name!r}. Move it.")
        if (first := rows.setdefault(f"{label}/{number}", str(path))) != str(path):
            raise DataError(f"{first} and {path} are both number {number} of {label}. Remove one of them.")
    warn_left_out(root, others, "names must be like WBC-Malignant-Early-012.jpg")
    table = [(sample, sample.split("/")[0], path) for sample, path in sorted(rows.items())]
    return pd.DataFrame(table, columns=["sample", "label", "path"]), CLASS_NAMES, INFO


def _classes(folder: Path) -> list[Path]:
    """Return the class folders in a folder; nothing if it has only one: `Pre` or `Early` alone may be anything."""
    found = [inner for inner in folders_in(folder) if inner.name.lower() in _LABELS]
    return found if len({inner.name.lower() for inner in found}) > 1 else []


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source."""
    options = {"version": "original (default) or segmented, the same fields without their background"}
    yield DatasetSource("all_aria", read_all_aria, INFO, options=options)
