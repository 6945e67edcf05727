"""A CSV file that names images, labels and, if known, patients and sides."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.info import CANVAS, DatasetInfo, DatasetSource, Table
from leukemia_dl.datasets.tables import frame_table, read_text_csv
from leukemia_dl.errors import DataError
from leukemia_dl.plugins import hookimpl

INFO = DatasetInfo("csv", "Images named by a CSV file", licence="yours", citation="yours")
_WANTED = "Wanted: a CSV file in UTF-8, separated by commas, with a header: path,label[,subject,group,fold,split]"


def read_csv(
    path: str | Path,
    images_root: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    canvas: int | None = None,
) -> Table:
    """Return the table of a CSV file; see `Dataset.from_csv`. Class names may also be one text, with commas."""
    info, path = replace(INFO, canvas=canvas), user_path(path, "path")
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"The CSV file {path} {state}. {_WANTED}. A folder per class is loaded by Dataset.from_folder.")
    if zipfile.is_zipfile(path):
        raise DataError(f"{path} is an archive, not a CSV file: unpack it first. {_WANTED}.")
    start = path.parent if images_root is None else user_path(images_root, "images_root")
    return frame_table(read_text_csv(path, _WANTED), info, start, class_names, str(path), all_labelled=True)


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source."""
    options = {
        "path": "the CSV file (command line: --root)",
        "images_root": "folder that relative paths start from; default: that of the CSV file",
        "class_names": "labels in their order, separated by commas; default: those found, sorted",
        "canvas": CANVAS,
    }
    yield DatasetSource("csv", read_csv, INFO, options=options)
