"""The ALL data set of Aria et al. (2021): microscope fields of four classes, in JPEG files of 224 x 224 pixels."""

from pathlib import Path

import pandas as pd

from leukemia_dl.checks import choice
from leukemia_dl.datasets.sources.files import find_copy
from leukemia_dl.datasets.table import DatasetInfo, Table
from leukemia_dl.errors import DataError

CLASS_NAMES = ("Benign", "Early", "Pre", "Pro")
INFO = DatasetInfo(
    "all_aria", "ALL image data set (Aria et al.)", "see the Kaggle page",
    "Aria et al. (2021). ALL image data set. Kaggle, mehradaria/leukemia.",
    url="https://www.kaggle.com/datasets/mehradaria/leukemia", class_names=CLASS_NAMES,
    declared=(("images", 3_256), ("Benign", 504), ("Early", 985), ("Pre", 963), ("Pro", 804)),
)  # fmt: skip
_CLASSES = "|".join(CLASS_NAMES).lower()
_IMAGE = rf"WBC-(?:malignant-)?(?P<label>{_CLASSES})-(?P<number>\d{{1,6}})\.jpe?g"
_VERSIONS = {"original": "(?<!segmented/)", "segmented": "(?<=segmented/)"}
_WANTED = "a folder with Original/Benign/WBC-Benign-001.jpg, Original/Early/WBC-Malignant-Early-012.jpg and so on"


def read_all_aria(root: Path, version: str = "original") -> Table:
    """Return the table of one version, "original" or "segmented"; class folders in neither are taken for the original.

    `sample` is like `Early/012` in both versions, so that they cannot be merged by mistake.
    """
    choice("version", version, _VERSIONS)
    inner = [*_CLASSES.split("|"), *_VERSIONS]
    start = root.parent if root.name.lower() in _CLASSES.split("|") else root
    if (here := start.name.lower()) in _VERSIONS and here != version:
        raise DataError(f"{start} is the {here} version: pass version={here!r}, or the root {start.parent}.")
    layout = rf"(?P<copy>(?:.*/)?{_VERSIONS[version]})(?P<folder>{_CLASSES})/(?:(?P<image>{_IMAGE})|[^/]+)"
    place, matches = find_copy(root, layout, inner, f"the {version} version of {INFO.title}", _WANTED)
    rows = []
    for match in matches:
        label, path = match["label"].capitalize(), place / match["folder"] / match["image"]
        if label.lower() != match["folder"].lower():
            raise DataError(f"{path} says {label!r} in its name but lies in the folder {match['folder']!r}. Move it.")
        rows.append((f"{label}/{int(match['number']):03d}", label, str(path)))
    return pd.DataFrame(sorted(rows), columns=["sample", "label", "path"]), CLASS_NAMES, INFO
