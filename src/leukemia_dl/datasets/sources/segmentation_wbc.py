"""segmentation_WBC (Zheng et al. 2018): white blood cells of five classes, in two parts of 300 and 100 images.

The parts are from different laboratories and microscopes. In the public repository part 1 is `Dataset 1/001.bmp`, with
masks `001.png` beside, and `Class Labels of Dataset 1.csv` names the class of each number. Its README says what the
numbers mean (1 neutrophil, 2 lymphocyte, 3 monocyte, 4 eosinophil, 5 basophil), and that no expert checked them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from leukemia_dl.datasets.folders import folders_in, listed, only_copy, require_folder
from leukemia_dl.datasets.info import DatasetInfo, DatasetSource, Table
from leukemia_dl.datasets.tables import read_text_csv
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.plugins import hookimpl
from leukemia_dl.preprocess.decode import warn_left_out

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
_IMAGE = re.compile(r"(\d{1,6})\.bmp", re.IGNORECASE | re.ASCII)
_FOLDER = re.compile(r"dataset[ _-]?([12])", re.IGNORECASE | re.ASCII)
_LABEL_FILE = re.compile(r"class[ _-]?labels?(?: of dataset |_of_dataset_)([12])\.csv", re.IGNORECASE | re.ASCII)
_WANTED = "a folder with 'Dataset 1/001.bmp' and so on and 'Class Labels of Dataset 1.csv', or with all of these in it"
_log = logging.getLogger(__name__)


def read_segmentation_wbc(root: Path, part: int | str | None = None) -> Table:
    """Return the table of part 1 or 2 of segmentation_WBC; None: of the one that is there.

    `root` is the folder with `Dataset 1` and its CSV file, one above it, `Dataset 1` itself, or a folder that holds
    images and their CSV file (part 1, unless the names or `part` say 2). `sample` is part and number, like `1/001`. An
    image that the CSV file does not name has no label.
    """
    if part is not None and (isinstance(part, bool) or str(part) not in ("1", "2")):
        raise SettingsError(f"part must be 1 or 2. Received: {part!r}.")
    root = require_folder(root, _WANTED)

    def find(place: Path) -> dict[Path, int | None]:
        inner = [folder for folder in folders_in(place) if _FOLDER.fullmatch(folder.name)]
        numbers = {folder: _number(folder) for folder in (place, *inner) if _images(folder)}
        return {folder: n for folder, n in numbers.items() if part is None or n in (None, int(part))}

    title = INFO.title if part is None else f"part {part} of {INFO.title}"
    folder, found = only_copy(root, find, title, _WANTED, choose="Pass one of them as root, or part=1 or part=2.")
    number = found or int(part or 1)
    images, label_file = _images(folder), _label_file(folder, number)
    labels = _read_labels(label_file)
    unknown, missing = sorted(images.keys() - labels.keys()), sorted(labels.keys() - images.keys())
    if len(unknown) == len(images):
        raise DataError(f"{label_file} names none of the {len(images):,} images in {folder}, as another part's would.")
    for numbers, text in ((unknown, "images have no row in it, so no label"), (missing, "rows name no image")):
        if numbers:
            _log.warning("%s: %d %s, such as number %d", label_file, len(numbers), text, numbers[0])
    others = {path.name for path in listed(folder) if path.suffix.lower() != ".png" and not path.is_dir()}
    others -= {path.name for path in images.values()}
    warn_left_out(folder, sorted(others), "names must be like 001.bmp")
    rows = [(f"{number}/{image:03d}", str(path), labels.get(image)) for image, path in sorted(images.items())]
    info = replace(INFO, declared=(("images", dict(INFO.declared)[f"part {number}"]),))
    return pd.DataFrame(rows, columns=["sample", "path", "label"]), CLASS_NAMES, info


def _images(folder: Path) -> dict[int, Path]:
    """Return the images in a folder by number. PNG files are masks, never images."""
    images: dict[int, Path] = {}
    for path in listed(folder):
        match = _IMAGE.fullmatch(path.name)
        if match and path.is_file() and images.setdefault(int(match[1]), path) != path:
            raise DataError(f"{images[int(match[1])]} and {path} have the same number. Remove one of them.")
    return images


def _number(folder: Path) -> int | None:
    """Return the number of a part as the name of the folder, or of the only CSV file in it, says."""
    names = [_LABEL_FILE.fullmatch(path.name) for path in _csv_files(folder)]
    match = _FOLDER.fullmatch(folder.name) or (names[0] if len(names) == 1 else None)
    return int(match[1]) if match else None


def _label_file(folder: Path, number: int) -> Path:
    """Return the CSV file of the images of a part: by its name, in their folder or beside it, or the only one there."""
    files = _csv_files(folder)
    beside = _csv_files(folder.parent) if _FOLDER.fullmatch(folder.name) else []
    numbers = {path: match[1] for path in [*files, *beside] if (match := _LABEL_FILE.fullmatch(path.name))}
    fitting = [path for path, of_part in numbers.items() if of_part == str(number)]
    unnamed = [path for path in files if path not in numbers]
    if fitting or len(unnamed) == 1:
        return (fitting or unnamed)[0]
    there = ", ".join(path.name for path in [*files, *beside][:5]) or "none"
    wanted = f"need one CSV file with their classes, 'Class Labels of Dataset {number}.csv'"
    raise DataError(f"The images in {folder} {wanted}. CSV files that are there: {there}. Wanted: {_WANTED}.")


def _csv_files(folder: Path) -> list[Path]:
    return [path for path in listed(folder) if path.suffix.lower() == ".csv" and path.is_file()]


def _read_labels(path: Path) -> dict[int, str]:
    """Return the class name of each image number that the CSV file names."""
    frame = read_text_csv(path, "Take it from the original repository").rename(columns=str.lower)
    columns = [name for name in ("image id", "class label", "class") if name in frame]  # part 2 has "class"
    if len(columns) < 2 or columns[0] != "image id":
        found = ", ".join(map(repr, frame.columns)) or "none"
        raise DataError(f"{path} needs the columns 'image ID' and 'class label' (or 'class'). It has: {found}.")
    labels: dict[int, str] = {}
    for row, (number, label) in enumerate(frame[columns[:2]].fillna("").itertuples(index=False), start=1):
        received = f"{path}, row {row}: {number[:100]!r}, {label[:100]!r}"
        if number or label:
            if not re.fullmatch(r"\d{1,6}", number, re.ASCII) or label not in ("1", "2", "3", "4", "5"):
                raise DataError(f"{received}. Wanted: image ID, a whole number like 1, and a class from 1 to 5.")
            if int(number) in labels:
                raise DataError(f"{received}: the image is named a second time. Remove one of the rows.")
            labels[int(number)] = CLASS_NAMES[int(label) - 1]
    return labels


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source."""
    options = {"part": "1 or 2, where both are there"}
    yield DatasetSource("segmentation_wbc", read_segmentation_wbc, INFO, options=options)
