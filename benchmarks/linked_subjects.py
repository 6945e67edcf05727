"""Why some subjects of C-NMC 2019 are taken for one: their cells have the same bounding boxes.

    python benchmarks/linked_subjects.py bounding_boxes.csv

The file has a row per training image: file_name, x, y, width, height. Cells lie anywhere in a frame of 450 pixels and
are 100 to 440 wide, so two cells with the same four numbers are rare: two subjects share one box at most, unless they
share cells; then it is seven or more.
"""

import argparse
from pathlib import Path

import pandas as pd

from leukemia_dl.datasets.sources.c_nmc_2019 import NAME
from leukemia_dl.datasets.sources.files import FLAGS
from leukemia_dl.errors import DataError

_BOX = ["x", "y", "width", "height"]


def linked_by_boxes(boxes: pd.DataFrame, at_least: int = 3) -> pd.DataFrame:
    """Return the pairs of subjects that share boxes with the same label, and how many: subject, other, shared."""
    names = boxes["file_name"].astype(str).str.extract(rf"\A{NAME}\Z", FLAGS)
    if names["label"].isna().any():
        wrong = boxes["file_name"][names["label"].isna()].iloc[0]
        raise DataError(f"file_name must be like UID_11_10_1_all.bmp. Received: {wrong!r}.")
    known = boxes[_BOX].assign(label=names["label"].str.lower(), subject=names["subject"].str.upper()).drop_duplicates()
    both = known.merge(known, on=[*_BOX, "label"], suffixes=("", "_other"))
    both = both[both["subject"] < both["subject_other"]]
    pairs = both.groupby(["subject", "subject_other"]).size().rename("shared").reset_index()
    pairs = pairs[pairs["shared"] >= at_least].rename(columns={"subject_other": "other"})
    return pairs.sort_values(["shared", "subject", "other"], ascending=[False, True, True]).reset_index(drop=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boxes", type=Path)
    print(linked_by_boxes(pd.read_csv(parser.parse_args().boxes)).to_string(index=False))
