"""The ALL data set of Aria et al. (2021): microscope fields of four classes, in JPEG files of 224 x 224 pixels.

Files are called `WBC-Benign-001.jpg` or `WBC-Malignant-Early-012.jpg` and lie in a folder per class. The same fields
are there a second time with the background taken out, in `Segmented/`: read together with `Original/`, each field would
be on two sides of a split. Nothing says which patient a field is of, and 40 groups of files are byte-identical.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from leukemia_dl.datasets.dataset import Dataset, DatasetInfo
from leukemia_dl.datasets.folders import folders_in, listed, require_folder, warn_left_out
from leukemia_dl.datasets.registry import DatasetSource
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.plugins import hookimpl

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
_WANTED = (
    "a folder with Original/Benign/WBC-Benign-001.jpg, Original/Early/WBC-Malignant-Early-012.jpg and so on "
    "(classes Benign, Early, Pre, Pro)"
)
_log = logging.getLogger(__name__)


def parse_name(name: str) -> tuple[str, str] | None:
    """Return (class, number) of a file name: ("Early", "012") of `WBC-Malignant-Early-012.jpg`; None if it is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return _LABELS[(match[1] or match[2]).lower()], f"{int(match[3]):03d}"


def read_all_aria(root: Path, version: str = "original") -> Dataset:
    """Load one version of the ALL data set of Aria et al., whole or in part.

    Args:
        root: The folder that holds `Original` and `Segmented`, one of these, or one above or below. Four class folders
            without such a folder around them are taken for the original version.
        version: "original" or "segmented".

    Returns:
        The data set, with `class_names` ("Benign", "Early", "Pre", "Pro"). `sample` is like `Early/012`, in both
        versions, so that they cannot be merged by mistake. `subject` is NA: a grouped protocol is not possible.

    Raises:
        SettingsError: If there is no such version.
        DataError: If that version is not in `root`, a name contradicts its folder, or two files have one number.
    """
    if version not in VERSIONS:
        raise SettingsError(f"version must be one of {', '.join(VERSIONS)}. Received: {version!r}.")
    root = require_folder(Path(root), _WANTED)
    try:
        rows, others = _rows(_find(root, version))
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check its permissions.") from error
    warn_left_out(root, others, "are not called WBC-Malignant-Early-012.jpg or the like")
    if not rows:
        raise DataError(f"The class folders in {root} hold no images of this data set. Wanted: {_WANTED}.")
    frame = pd.DataFrame([{"sample": sample, **row} for sample, row in sorted(rows.items())])
    for name, declared in dict(INFO.declared).items():
        found = len(frame) if name == "images" else int((frame["label"] == name).sum())
        if found != declared:
            _log.warning("%s: %d of the %d declared for %s are there", root, found, declared, name)
    return Dataset(frame, CLASS_NAMES, INFO)


def _rows(folders: list[Path]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return label and path per sample id, and the files whose names have another form."""
    rows: dict[str, dict[str, str]] = {}
    others = []
    for folder in folders:
        for path in listed(folder):
            name = parse_name(path.name) if path.is_file() else None
            if name is None:
                others.append(path.name)
                continue
            label, number = name
            if label.lower() != folder.name.lower():
                raise DataError(
                    f"{path} says {label!r} in its name but lies in the folder {folder.name!r}. Move it to the folder "
                    "of its class, or unpack the original archive again."
                )
            row = rows.setdefault(f"{label}/{number}", {"label": label, "path": str(path)})
            if row["path"] != str(path):
                raise DataError(f"{row['path']} and {path} are both number {number} of {label}. Remove one of them.")
    return rows, others


def _find(root: Path, version: str) -> list[Path]:
    """Return the class folders of that version: around `root`, in it, or one level below it."""
    start = root
    if root.name.lower() in _LABELS and not _classes(root) and _classes(root.parent):
        start = root.parent
    here = start.name.lower()
    if here in VERSIONS and here != version and _classes(start):
        raise DataError(
            f"{start} is the {here} version, and version is {version!r}. Pass version={here!r}, or the root of the "
            f"other one: {start.parent}."
        )
    for places in ([start], folders_in(start)):
        found: dict[Path, list[Path]] = {}
        for place in places:
            for base in [place, *(inner for inner in folders_in(place) if inner.name.lower() in VERSIONS)]:
                is_segmented = base.name.lower() == "segmented"
                if is_segmented == (version == "segmented") and (classes := _classes(base)):
                    found[base] = classes
        if len(found) > 1:
            raise DataError(
                f"There are several copies of the {version} version in {root}: {', '.join(map(str, sorted(found)))}. "
                "Pass one of them as root."
            )
        if found:
            return next(iter(found.values()))
    inside = ", ".join(path.name for path in listed(start)[:8]) or "nothing"
    raise DataError(f"{root} does not hold the {version} version of {INFO.title}. Wanted: {_WANTED}. Found: {inside}.")


def _classes(folder: Path) -> list[Path]:
    """Return the class folders in a folder; nothing if it has only one: `Pre` or `Early` alone may be anything."""
    found = [inner for inner in folders_in(folder) if inner.name.lower() in _LABELS]
    return found if len({inner.name.lower() for inner in found}) > 1 else []


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source."""
    options = {"version": "original (default) or segmented, the same fields without their background"}
    yield DatasetSource("all_aria", read_all_aria, INFO, options=options)
