"""Why some subjects of C-NMC 2019 are taken for one: their cells have the same bounding boxes."""

from __future__ import annotations

import pandas as pd

from leukemia_dl.datasets.sources.c_nmc_2019 import parse_name
from leukemia_dl.errors import DataError, SettingsError

__all__ = ["linked_by_boxes"]

_BOX = ["x", "y", "width", "height"]


def linked_by_boxes(boxes: pd.DataFrame, at_least: int = 3) -> pd.DataFrame:
    """Find subjects whose cells have identical bounding boxes and labels more often than chance brings about.

    Cells lie anywhere in a frame of 450 pixels and are 100 to 440 wide, so two cells with the same four numbers are
    rare: two subjects of C-NMC 2019 share one box at most, unless they share cells; then it is seven or more.

    Args:
        boxes: A row per training image, with `file_name` (such as `UID_11_10_1_all.bmp`), `x`, `y`, `width` and
            `height` in pixels.
        at_least: Pairs of subjects that share fewer boxes are left out.

    Returns:
        A row per pair of subjects: `subject` and `other` (str), `shared` (int64, the number of different boxes with
        the same label that both have), most first.

    Raises:
        DataError: If a column is missing, or a file name is none of C-NMC's.
        SettingsError: If `at_least` is below 1.
    """
    if at_least < 1:
        raise SettingsError(f"at_least must be 1 or more. Received: {at_least!r}.")
    missing = {"file_name", *_BOX} - set(boxes.columns)
    if missing:
        raise DataError(
            f"boxes needs the columns file_name, {', '.join(_BOX)}. Missing: {', '.join(sorted(missing))}. "
            f"Found: {', '.join(map(str, boxes.columns))}."
        )
    names = [parse_name(str(name)) for name in boxes["file_name"]]
    if None in names:
        wrong = boxes["file_name"].iloc[names.index(None)]
        raise DataError(f"file_name must be like UID_11_10_1_all.bmp. Received: {wrong!r}.")
    known = boxes[_BOX].reset_index(drop=True)
    known["label"] = [name.label for name in names if name is not None]
    known["subject"] = [name.subject for name in names if name is not None]
    known = known.drop_duplicates()
    both = known.merge(known, on=[*_BOX, "label"], suffixes=("", "_other"))
    both = both[both["subject"] < both["subject_other"]]
    pairs = both.groupby(["subject", "subject_other"]).size().rename("shared").reset_index()
    pairs = pairs[pairs["shared"] >= at_least].rename(columns={"subject_other": "other"})
    return pairs.sort_values(["shared", "subject", "other"], ascending=[False, True, True]).reset_index(drop=True)
