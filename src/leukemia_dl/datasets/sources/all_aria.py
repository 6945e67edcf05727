"""The ALL data set of Aria et al. (2021): microscope fields of four classes, in JPEG files of 224 x 224 pixels.

Files are called `WBC-Benign-001.jpg` or `WBC-Malignant-Early-012.jpg` and lie in a folder per class. The same fields
are there a second time with the background taken out, in `Segmented/`: read together with `Original/`, each field would
be on two sides of a split. Nothing says which patient a field is of, and 40 groups of files are byte-identical.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from leukemia_dl.checks import choice
from leukemia_dl.datasets.sources.folder import find_copy
from leukemia_dl.datasets.table import DatasetInfo, Table
from leukemia_dl.errors import DataError

CLASS_NAMES = ("Benign", "Early", "Pre", "Pro")
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
_VERSIONS = {"original": "(?<!segmented/)", "segmented": "(?<=segmented/)"}
_WANTED = "a folder with Original/Benign/WBC-Benign-001.jpg, Original/Early/WBC-Malignant-Early-012.jpg and so on"


def parse_name(name: str) -> tuple[str, str] | None:
    """Return (class, number) of a file name: ("Early", "012") of `WBC-Malignant-Early-012.jpg`; None if it is none."""
    match = _NAME.fullmatch(name)
    return ((match[1] or match[2]).capitalize(), f"{int(match[3]):03d}") if match else None


def read_all_aria(root: Path, version: str = "original") -> Table:
    """Return the table of one version, "original" or "segmented", of the ALL data set of Aria et al., whole or in part.

    `root` is the folder that holds `Original` and `Segmented`, one of these, or one above or below. Class folders that
    are in neither are taken for the original version. `sample` is like `Early/012` in both versions, so that they
    cannot be merged by mistake.
    """
    choice("version", version, _VERSIONS)
    classes = [name.lower() for name in CLASS_NAMES]
    start = root.parent if root.name.lower() in classes else root
    if (here := start.name.lower()) in _VERSIONS and here != version:
        raise DataError(f"{start} is the {here} version: pass version={here!r}, or the root {start.parent}.")
    pattern = rf"(?P<copy>(?:.*/)?{_VERSIONS[version]})(?P<folder>{'|'.join(classes)})/(?P<file>[^/]+)"
    place, matches = find_copy(
        root, re.compile(pattern, re.IGNORECASE | re.DOTALL), lambda match: parse_name(match["file"]),
        [*classes, *_VERSIONS], f"the {version} version of {INFO.title}", _WANTED,
    )  # fmt: skip
    rows = []
    for match in matches:
        label, number = parse_name(match["file"]) or ("", "")
        path = place / match["folder"] / match["file"]
        if label.lower() != match["folder"].lower():
            raise DataError(f"{path} says {label!r} in its name but lies in the folder {match['folder']!r}. Move it.")
        rows.append((f"{label}/{number}", label, str(path)))
    return pd.DataFrame(sorted(rows), columns=["sample", "label", "path"]), CLASS_NAMES, INFO
