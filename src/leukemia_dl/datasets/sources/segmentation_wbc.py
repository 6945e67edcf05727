"""segmentation_WBC (Zheng et al. 2018): white blood cells of five classes, in two parts of 300 and 100 images.

The parts are from different laboratories and microscopes. In the public repository part 1 is `Dataset 1/001.bmp`, with
masks `001.png` beside, and `Class Labels of Dataset 1.csv` names the class of each number, from 1 for neutrophils.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from leukemia_dl.checks import choice
from leukemia_dl.datasets.sources.files import find_copy, listed, read_text_csv
from leukemia_dl.datasets.table import DatasetInfo, Table
from leukemia_dl.errors import DataError

CLASS_NAMES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
INFO = DatasetInfo(
    "segmentation_wbc", "segmentation_WBC",
    "see its repository: the authors ask to be cited; the class labels were not checked by experts",
    "Zheng, X., Wang, Y., Wang, G., & Liu, J. (2018). Fast and robust segmentation of white blood cell images by "
    "self-supervised learning. Micron, 107, 55-71. https://doi.org/10.1016/j.micron.2018.01.010",
    url="https://github.com/zxaoyou/segmentation_WBC", class_names=CLASS_NAMES,
    declared=(("images", 400), ("part 1", 300), ("part 2", 100)),
)  # fmt: skip
_WANTED = "a folder with 'Dataset 1/001.bmp' and so on and 'Class Labels of Dataset 1.csv', or with all of these in it"
_log = logging.getLogger(__name__)


def read_segmentation_wbc(root: Path, part: int | str | None = None) -> Table:
    """Return the table of part 1 or 2; None: of the one that is there.

    Images and their CSV file in one folder are part 1, unless a name or `part` says 2. `sample` is part and number,
    like `1/001`. An image that the CSV file does not name has no label.
    """
    part = None if part is None else choice("part", str(part), ("1", "2"))
    title = INFO.title if part is None else f"part {part} of {INFO.title}"
    other = {"1": "2", "2": "1"}.get(part or "", "0")
    # Neither the other part, if one was asked for, nor the masks.
    image = r"(?P<image>(?P<number>\d{1,6})\.bmp)|(?!\d{1,6}\.png$)[^/]+"
    layout = rf"(?P<copy>(?:.*/)?(?<!dataset.{other}/)(?<!dataset{other}/))(?:{image})"
    folder, matches = find_copy(root, layout, (), title, _WANTED)
    tables = listed(folder, ".csv") or listed(folder.parent, ".csv")
    number = _part(folder) or (_part(tables[0]) if len(tables) == 1 else None) or part or "1"
    fitting = [path for path in tables if _part(path) == number] or [path for path in tables if _part(path) is None]
    if part not in (None, number) or len(fitting) != 1:
        found = ", ".join(path.name for path in tables[:5]) or "none"
        wanted = f"need one CSV file with their classes, 'Class Labels of Dataset {part or number}.csv'"
        raise DataError(f"The images in {folder} {wanted}. CSV files that are there: {found}. Wanted: {_WANTED}.")
    table = read_text_csv(fitting[0], "the file of the original repository").iloc[:, :2].dropna(how="all").fillna("")
    if "id" not in str(table.columns[0]).lower():
        raise DataError(f"{fitting[0]} has no header of an image ID and a class: {', '.join(map(str, table))}.")
    labels: dict[int, str] = {}
    for row, *cells in table.itertuples():
        text, label = (*cells, "")[:2]
        if not re.fullmatch("[0-9]{1,6}", text) or label not in ("1", "2", "3", "4", "5") or int(text) in labels:
            wanted = "Wanted: image ID, a whole number like 1 that no other row has, and a class from 1 to 5"
            raise DataError(f"{fitting[0]}, row {row + 1}: {text[:100]!r}, {label[:100]!r}. {wanted}.")
        labels[int(text)] = CLASS_NAMES[int(label) - 1]
    images = sorted((int(match["number"]), str(folder / match["image"])) for match in matches)
    numbers = {image_number for image_number, _ in images}
    if not numbers & labels.keys():
        raise DataError(f"{fitting[0]} names none of the {len(images):,} images in {folder}, as another part's would.")
    if differing := sorted(numbers ^ labels.keys()):
        message = "%s: %d numbers have an image and no row, so no label, or a row and no image: %s"
        _log.warning(message, fitting[0], len(differing), ", ".join(map(str, differing[:5])))
    rows = [(f"{number}/{image_number:03d}", path, labels.get(image_number)) for image_number, path in images]
    info = replace(INFO, declared=(("images", dict(INFO.declared)[f"part {number}"]),))
    return pd.DataFrame(rows, columns=["sample", "path", "label"]), CLASS_NAMES, info


def _part(path: Path) -> str | None:
    match = re.fullmatch(r".*dataset[ _-]?([12])(?:\.csv)?", path.name.lower(), re.DOTALL)
    return match[1] if match else None
