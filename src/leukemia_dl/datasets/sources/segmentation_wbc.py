"""segmentation_WBC (Zheng et al. 2018): white blood cells of five classes, in two parts of 300 and 100 images.

The parts are from different laboratories and microscopes. In the public repository part 1 is `Dataset 1/001.bmp`, with
masks `001.png` beside, and `Class Labels of Dataset 1.csv` names the class of each number. Its README says what the
numbers mean (1 neutrophil, 2 lymphocyte, 3 monocyte, 4 eosinophil, 5 basophil), and that no expert checked them.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from leukemia_dl.datasets.dataset import Dataset, DatasetInfo
from leukemia_dl.datasets.folders import folders_in, listed, require_folder, warn_left_out
from leukemia_dl.datasets.registry import DatasetSource
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.plugins import hookimpl

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
_LABEL_COLUMNS = ("class label", "class")  # part 1 has the first, part 2 the second
_MAX_CSV_BYTES = 1_000_000
_WANTED = (
    "a folder with 'Dataset 1/001.bmp' and so on and 'Class Labels of Dataset 1.csv', or one with 001.bmp and so on "
    "and their CSV file in it"
)
_log = logging.getLogger(__name__)


class _Part(NamedTuple):
    number: int | None
    images: Path


def read_segmentation_wbc(root: Path, part: int | str | None = None) -> Dataset:
    """Load one part of segmentation_WBC.

    Args:
        root: The folder with `Dataset 1` and its CSV file, one above it, `Dataset 1` itself, or a folder that holds
            images and their CSV file (part 1, unless the names or `part` say 2).
        part: 1 or 2; None for the one that is there.

    Returns:
        The data set, with `class_names` in the order of the authors' numbers 1 to 5. `sample` is part and number, like
        `1/001`. `subject` is NA. An image that the CSV file does not name has no label.

    Raises:
        SettingsError: If `part` is neither 1 nor 2.
        DataError: If the part is not there, both are and `part` is None, or the CSV file is missing, malformed, names
            an image twice, a class outside 1 to 5 or no image that is there.
    """
    if part is not None and (isinstance(part, bool) or str(part) not in ("1", "2")):
        raise SettingsError(f"part must be 1 or 2. Received: {part!r}.")
    root = require_folder(Path(root), _WANTED)
    try:
        chosen = _choose(root, None if part is None else int(part))
        images, others = _images(chosen.images)
        number = chosen.number or int(part or 1)
        label_file = _label_file(chosen.images, number)
        labels = _read_labels(label_file)
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check its permissions.") from error
    matched = images.keys() & labels.keys()
    if not matched:
        raise DataError(
            f"{label_file} names none of the {len(images):,} images in {chosen.images}. Put the CSV file of these "
            "images beside them."
        )
    warn_left_out(chosen.images, others, "are not called 001.bmp or the like")
    if len(matched) < len(images):
        _log.warning(
            "%d images in %s have no label: %s has no row for them, such as %s",
            *(len(images) - len(matched), chosen.images, label_file, images[min(images.keys() - matched)].name),
        )
    if len(matched) < len(labels):
        _log.warning(
            "%d rows of %s name images that are not in %s, such as number %d",
            *(len(labels) - len(matched), label_file, chosen.images, min(labels.keys() - matched)),
        )
    declared = dict(INFO.declared)[f"part {number}"]
    if len(images) > declared:
        raise DataError(
            f"{chosen.images} holds {len(images):,} images, and part {number} has {declared}: it is the other part. "
            f"Pass part={3 - number}."
        )
    if len(images) < declared:
        _log.warning("%s: %d of the %d images of part %d are there", chosen.images, len(images), declared, number)
    info = replace(INFO, declared=(("images", declared),))
    rows = [(f"{number}/{image:03d}", str(path), labels.get(image)) for image, path in sorted(images.items())]
    return Dataset(pd.DataFrame(rows, columns=["sample", "path", "label"]), CLASS_NAMES, info)


def _choose(root: Path, part: int | None) -> _Part:
    """Return the wanted part, in `root` or one level below it."""
    for places in ([root], folders_in(root)):
        parts = [found for place in places for found in _parts(place)]
        fitting = [found for found in parts if part is None or found.number in (None, part)]
        if len(fitting) == 1:
            return fitting[0]
        there = ", ".join(str(found.images) for found in parts)
        if part is None and sorted(str(found.number) for found in fitting) == ["1", "2"]:
            raise DataError(f"There are two parts in {root}, which are not one data set: pass part=1 or part=2.")
        if fitting:
            raise DataError(f"There are several copies of segmentation_WBC in {root}: {there}. Pass one of them.")
        if parts:
            raise DataError(f"Part {part} is not in {root}. Found: {there}. Wanted: {_WANTED}.")
    inside = ", ".join(path.name for path in listed(root)[:8]) or "nothing"
    raise DataError(f"{root} does not look like segmentation_WBC. Wanted: {_WANTED}. Found in it: {inside}.")


def _parts(place: Path) -> list[_Part]:
    """Return the parts in a folder: the folder itself, if images lie in it, or `Dataset 1` and `Dataset 2` in it."""
    found = []
    for folder in [place, *(inner for inner in folders_in(place) if _FOLDER.fullmatch(inner.name))]:
        if not any(_IMAGE.fullmatch(path.name) and path.is_file() for path in listed(folder)):
            continue
        names = [_LABEL_FILE.fullmatch(path.name) for path in _csv_files(folder)]
        number = _FOLDER.fullmatch(folder.name) or (names[0] if len(names) == 1 else None)
        found.append(_Part(int(number[1]) if number else None, folder))
    return found


def _label_file(folder: Path, number: int) -> Path:
    """Return the CSV file of the images of a part: by its name, in their folder or beside it, or the only one there."""
    files = _csv_files(folder)
    beside = _csv_files(folder.parent) if _FOLDER.fullmatch(folder.name) else []
    named = [(path, match[1]) for path in [*files, *beside] if (match := _LABEL_FILE.fullmatch(path.name))]
    fitting = [path for path, of_part in named if of_part == str(number)]
    if fitting:
        return fitting[0]
    unnamed = [path for path in files if path not in dict(named)]
    if len(unnamed) == 1:
        return unnamed[0]
    there = ", ".join(path.name for path in [*files, *beside][:5]) or "none"
    raise DataError(
        f"The images in {folder} need one CSV file with their classes, 'Class Labels of Dataset {number}.csv'. CSV "
        f"files that are there: {there}. Wanted: {_WANTED}."
    )


def _images(folder: Path) -> tuple[dict[int, Path], list[str]]:
    """Return the images by number, and the other files. PNG files are masks, never images."""
    images: dict[int, Path] = {}
    others = []
    for path in listed(folder):
        match = _IMAGE.fullmatch(path.name) if path.is_file() else None
        if match is None:
            if path.suffix.lower() != ".png" and not path.is_dir():
                others.append(path.name)
        elif images.setdefault(int(match[1]), path) != path:
            raise DataError(f"{images[int(match[1])]} and {path} have the same number. Remove one of them.")
    return images, others


def _read_labels(path: Path) -> dict[int, str]:
    """Return the class name of each image number that the CSV file names."""
    if path.stat().st_size > _MAX_CSV_BYTES:
        raise DataError(
            f"{path} has {path.stat().st_size:,} bytes: no label file of this data set has more than "
            f"{_MAX_CSV_BYTES:,}. Take it from the original repository."
        )
    labels: dict[int, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip().lower() for name in next(reader, [])]
            column = next((header.index(name) for name in _LABEL_COLUMNS if name in header), None)
            if "image id" not in header or column is None:
                raise DataError(
                    f"{path} needs the columns 'image ID' and 'class label' (or 'class'). "
                    f"It has: {', '.join(map(repr, header)) or 'none'}."
                )
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                where = f"{path}, line {reader.line_num}"
                number, label = (row[i].strip() if i < len(row) else "" for i in (header.index("image id"), column))
                if not re.fullmatch(r"\d{1,6}", number, re.ASCII):
                    raise DataError(f"{where}: image ID must be a whole number like 1. Received: {number!r}.")
                if label not in ("1", "2", "3", "4", "5"):
                    raise DataError(f"{where}: the class must be 1 to 5. Received: {label!r}.")
                if int(number) in labels:
                    raise DataError(f"{where}: image {number} is named a second time. Remove one of the rows.")
                labels[int(number)] = CLASS_NAMES[int(label) - 1]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}. Take it from the original repository.") from error
    return labels


def _csv_files(folder: Path) -> list[Path]:
    return [path for path in listed(folder) if path.suffix.lower() == ".csv" and path.is_file()]


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source."""
    yield DatasetSource(
        "segmentation_wbc", read_segmentation_wbc, INFO, options={"part": "1 or 2, where both are there"}
    )
