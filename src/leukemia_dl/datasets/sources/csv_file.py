"""A CSV file that names images, labels and, if known, patients and sides."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.dataset import Dataset, DatasetInfo
from leukemia_dl.datasets.frames import CANVAS, on_canvas, read_frame
from leukemia_dl.datasets.registry import DatasetSource
from leukemia_dl.errors import DataError
from leukemia_dl.plugins import hookimpl

INFO = DatasetInfo("csv", "Images named by a CSV file", licence="yours", citation="yours")
_FORM = "Wanted: a CSV file in UTF-8, separated by commas, with a header: path,label[,subject,group,fold,split]"


def read_csv(
    root: str | Path,
    files: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    canvas: int | None = None,
) -> Dataset:
    """Do what `Dataset.from_csv` says, `files` being its root; class names may also be one text, with commas."""
    info, path = on_canvas(INFO, canvas), user_path(root, "path")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"The CSV file {path} {what}. {_FORM}. A folder per class is loaded by Dataset.from_folder.")
    if zipfile.is_zipfile(path):
        raise DataError(f"{path} is an archive, not a CSV file: unpack it first. {_FORM}.")
    reading: Any = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "skipinitialspace": True}
    try:
        with warnings.catch_warnings():
            # Without index_col pandas would take the surplus of a long row for an index, and shift all columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, compression=None, index_col=False, **reading)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it as such. {_FORM}."
        ) from error
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path} is empty. {_FORM}.") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}. {_FORM}.") from error
    frame = frame.apply(lambda column: column.str.strip()).mask(lambda cells: cells == "")
    labels = [name for name in frame.columns if str(name).strip().lower() == "label"]
    for name in labels:
        if frame[name].isna().any():
            row = int(frame[name].isna().to_numpy().argmax()) + 1
            raise DataError(
                f"{path} has no label in row {row}. Give each row one of the labels, or remove the row; "
                "images without a label are loaded with Dataset.from_dataframe."
            )
    start = path.parent if files is None else user_path(files)
    return read_frame(frame, root=start, class_names=class_names, info=info, where=str(path))


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source."""
    options = {
        "files": "folder that relative paths start from; default: that of the CSV file (root)",
        "class_names": "labels in their order, separated by commas; default: those found, sorted",
        "canvas": CANVAS,
    }
    yield DatasetSource("csv", read_csv, INFO, options=options)
