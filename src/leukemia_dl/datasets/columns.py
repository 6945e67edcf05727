"""The columns of a sample table: their types, and one rule for the names of classes and patients."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import pandas as pd

from leukemia_dl.errors import DataError

__all__ = ["COLUMNS", "SPLITS", "TEXT", "UNKNOWN_PATIENTS", "counted", "name_key", "one_spelling", "typed"]

COLUMNS = ("sample", "path", "label", "subject", "group", "field", "cell", "fold", "split", "same_cell")
SPLITS = ("train", "val", "test", "preliminary", "final")
# Named in full: what "string" means depends on the version of pandas and on whether pyarrow is installed, and arrow
# cannot hold file names that are not UTF-8.
TEXT = pd.StringDtype("python")
UNKNOWN_PATIENTS = frozenset({"-", "?", "#n/a", "<na>", "n/a", "na", "nan", "none", "null", "unknown"})
"""Words, in lower case, for an unknown patient. Taken as names, they would make all unknown patients one."""
_POINT_ZERO = re.compile(r"(\d+)\.0+", re.ASCII)
_log = logging.getLogger(__name__)


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return exactly `COLUMNS`, with their dtypes, absolute paths, one spelling per patient, and `group` filled.

    Raises:
        DataError: If a fold is no whole number.
    """
    table = table.reindex(columns=list(COLUMNS)).reset_index(drop=True)
    for column in COLUMNS:
        if column == "fold":
            table[column] = _whole_numbers(table[column])
        elif table[column].dtype != TEXT:
            table[column] = table[column].convert_dtypes().astype(TEXT)
    # Not resolve(), which follows links: two links to one file are two samples.
    paths = [path if path is pd.NA else os.path.abspath(path) for path in table["path"]]  # noqa: PTH100
    table["path"] = pd.array(paths, dtype=TEXT)
    table["subject"] = _known_patients(table["subject"])
    table["group"] = _known_patients(table["group"].fillna(table["subject"]))
    return table


def counted(table: pd.DataFrame) -> dict[str, int]:
    """Return the numbers of a typed table as authors declare them: images, subjects, per class, fold and side."""
    counts = {"images": len(table), "subjects": int(table["subject"].nunique())}
    counts |= {f"fold {fold}": int(count) for fold, count in table["fold"].value_counts().items()}
    for column in ("label", "split"):
        counts |= {str(name): int(count) for name, count in table[column].value_counts().items()}
    return counts


def name_key(name: str) -> str:
    """Return a key that is equal for spellings of a name that differ only in case, spaces or a trailing `.0`."""
    text = " ".join(unicodedata.normalize("NFC", name).casefold().split())
    return found[1] if (found := _POINT_ZERO.fullmatch(text)) else text


def one_spelling(names: pd.Series[Any], what: str, wanted: Sequence[str] = ()) -> pd.Series[Any]:
    """Return names with one spelling for each `name_key`, and warn where there were several.

    Args:
        names: Text; NA stays.
        what: The kind of the names, for the warning: "classes".
        wanted: Spellings that are kept; for other keys the most frequent spelling is kept. If two of `wanted` have the
            same key, nothing is changed.
    """
    chosen = {name_key(name): name for name in wanted}
    if len(chosen) < len(wanted):
        return names
    found: dict[str, list[str]] = {}
    for name in names.value_counts().sort_index().sort_values(ascending=False, kind="stable").index:
        found.setdefault(name_key(name), []).append(name)
    for key, spellings in found.items():
        number = _POINT_ZERO.fullmatch(spellings[0].strip())
        chosen.setdefault(key, number[1] if number else spellings[0].strip())
    if several := [key for key, spellings in found.items() if len(spellings) > 1]:
        example = ", ".join(map(repr, found[several[0]]))
        _log.warning(
            "%s with several spellings: %d, such as %s, which are taken for one (%r). Spellings that differ in case, "
            "spaces or a trailing .0 only are one name", *(what.capitalize(), len(several), example, chosen[several[0]])
        )  # fmt: skip
    return names.map(lambda name: chosen[name_key(name)], na_action="ignore")


def _known_patients(column: pd.Series[Any]) -> pd.Series[Any]:
    column = column.mask(column.str.strip() == "")
    unknown = column.str.strip().str.lower().isin(UNKNOWN_PATIENTS)
    if unknown.any():
        shown = ", ".join(map(repr, sorted(set(column[unknown]))))
        _log.warning("%d images name their patient %s: taken for not known", unknown.sum(), shown)
    return one_spelling(column.mask(unknown), "patients").astype(TEXT)


def _whole_numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    try:
        return pd.to_numeric(column).astype("Int64")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"Folds are whole numbers. Received: {sorted(map(str, column.dropna().unique()))[:5]}."
        ) from error
