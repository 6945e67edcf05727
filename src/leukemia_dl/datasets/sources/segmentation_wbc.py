"""segmentation_WBC (Zheng et al. 2018): white blood cells of five classes, in two parts of 300 and 100 images.

The parts are from different laboratories and microscopes. In the public repository part 1 is `Dataset 1/001.bmp`, with
masks `001.png` beside, and `Class Labels of Dataset 1.csv` names the class of each number. Its README says what the
numbers mean (1 neutrophil, 2 lymphocyte, 3 monocyte, 4 eosinophil, 5 basophil), and that no expert checked them.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from leukemia_dl.checks import choice
from leukemia_dl.datasets.sources.csv_file import read_text_csv
from leukemia_dl.datasets.sources.folder import find_copy, listed
from leukemia_dl.datasets.table import DatasetInfo, Table
from leukemia_dl.errors import DataError

CLASS_NAMES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
INFO = DatasetInfo(
    name="segmentation_wbc",
    title="segmentation_WBC",
    licence="see its repository: the authors ask to be cited; the class labels were not checked by experts",
    citation=(
        "Zheng, X., Wang, Y., Wang, G., & Liu, J. (2018). Fast and robust segmentation of white blood cell images by "
        "self-supervised learning. Micron, 107, 55-71. https://doi.org/10.1016/j.micron.2018.01.010"
    ),
    url="https://github.com/zxaoyou/segmentation_WBC",
    class_names=CLASS_NAMES,
    declared=(("images", 400), ("part 1", 300), ("part 2", 100)),
)
_IMAGE = re.compile(r"\d{1,6}\.bmp", re.IGNORECASE | re.ASCII)
_PART = re.compile(r".*dataset[ _-]?([12])(?:\.csv)?", re.IGNORECASE | re.ASCII)
_WANTED = "a folder with 'Dataset 1/001.bmp' and so on and 'Class Labels of Dataset 1.csv', or with all of these in it"
_log = logging.getLogger(__name__)


def read_segmentation_wbc(root: Path, part: int | str | None = None) -> Table:
    """Return the table of part 1 or 2 of segmentation_WBC; None: of the one that is there.

    `root` is the folder with `Dataset 1` and its CSV file, one above it, `Dataset 1` itself, or a folder that holds
    images and their CSV file (part 1, unless the names or `part` say 2). `sample` is part and number, like `1/001`. An
    image that the CSV file does not name has no label.
    """
    part = None if part is None else choice("part", str(part), ("1", "2"))
    title = INFO.title if part is None else f"part {part} of {INFO.title}"
    other = {"1": "2", "2": "1"}.get(part or "", "0")
    # Neither the other part, if one was asked for, nor the masks.
    pattern = rf"(?P<copy>(?:.*/)?(?<!dataset.{other}/)(?<!dataset{other}/))(?!\d{{1,6}}\.png$)(?P<file>[^/]+)"
    layout = re.compile(pattern, re.IGNORECASE | re.DOTALL)
    folder, matches = find_copy(root, layout, lambda match: _IMAGE.fullmatch(match["file"]), (), title, _WANTED)
    images = sorted((int(Path(match["file"]).stem), folder / match["file"]) for match in matches)
    tables = listed(folder, ".csv") or listed(folder.parent, ".csv")
    number = _part(folder) or (_part(tables[0]) if len(tables) == 1 else None) or part or "1"
    fitting = [path for path in tables if _part(path) == number] or [path for path in tables if _part(path) is None]
    if part not in (None, number) or len(fitting) != 1:
        found = ", ".join(path.name for path in tables[:5]) or "none"
        wanted = f"need one CSV file with their classes, 'Class Labels of Dataset {part or number}.csv'"
        raise DataError(f"The images in {folder} {wanted}. CSV files that are there: {found}. Wanted: {_WANTED}.")
    labels = _read_labels(fitting[0])
    there = {image for image, _ in images}
    unknown, missing = sorted(there - labels.keys()), sorted(labels.keys() - there)
    if len(unknown) == len(there):
        raise DataError(f"{fitting[0]} names none of the {len(there):,} images in {folder}, as another part's would.")
    for numbers, text in ((unknown, "images have no row in it, so no label"), (missing, "rows name no image")):
        if numbers:
            _log.warning("%s: %d %s, such as number %d", fitting[0], len(numbers), text, numbers[0])
    rows = [(f"{number}/{image:03d}", str(path), labels.get(image)) for image, path in images]
    info = replace(INFO, declared=(("images", dict(INFO.declared)[f"part {number}"]),))
    return pd.DataFrame(rows, columns=["sample", "path", "label"]), CLASS_NAMES, info


def _part(path: Path) -> str | None:
    """Return the number of a part as the name of a folder or CSV file says."""
    match = _PART.fullmatch(path.name)
    return match[1] if match else None


def _read_labels(path: Path) -> dict[int, str]:
    """Return the class name of each image number that the CSV file names."""
    frame = read_text_csv(path, "Take it from the original repository").rename(columns=str.lower)
    frame = frame.rename(columns={"class": "class label"})  # as part 2 calls it
    if not {"image id", "class label"} <= set(frame):
        found = ", ".join(map(repr, frame.columns)) or "none"
        raise DataError(f"{path} needs the columns 'image ID' and 'class label' (or 'class'). It has: {found}.")
    labels: dict[int, str] = {}
    for row, number, label in frame[["image id", "class label"]].dropna(how="all").fillna("").itertuples():
        if not re.fullmatch("[0-9]{1,6}", number) or label not in ("1", "2", "3", "4", "5") or int(number) in labels:
            wanted = "Wanted: image ID, a whole number like 1 that no other row has, and a class from 1 to 5"
            raise DataError(f"{path}, row {row + 1}: {number[:100]!r}, {label[:100]!r}. {wanted}.")
        labels[int(number)] = CLASS_NAMES[int(label) - 1]
    return labels
