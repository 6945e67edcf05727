"""The columns of a sample table: their types, and one rule for the names of classes and patients."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.errors import DataError
from leukemia_dl.text import UNKNOWN_NAMES, name_key

__all__ = ["COLUMNS", "SPLITS", "TEXT", "counted", "differing_counts", "one_spelling", "typed"]
__all__ += ["problem_of", "row_numbers"]

COLUMNS = ("sample", "path", "label", "subject", "group", "field", "cell", "fold", "split", "same_cell")
SPLITS = ("train", "val", "test", "preliminary", "final")
# Not "string", which depends on the version of pandas and on pyarrow; arrow cannot hold file names that are not UTF-8.
TEXT = pd.StringDtype("python")
_log = logging.getLogger(__name__)


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return exactly `COLUMNS`, with their dtypes, absolute paths, one spelling per patient, and `group` filled."""
    table = table.reindex(columns=list(COLUMNS)).reset_index(drop=True)
    for column in table.columns.drop("fold"):
        if table[column].dtype != TEXT:
            table[column] = table[column].convert_dtypes().astype(TEXT)
    try:
        table["fold"] = pd.to_numeric(table["fold"]).astype("Int64")
    except (TypeError, ValueError, OverflowError) as error:
        received = sorted(map(str, table["fold"].dropna().unique()))[:5]
        raise DataError(f"Folds are whole numbers. Received: {received}.") from error
    # Not resolve(), which follows links: two links to one file are two samples.
    paths = [path if path is pd.NA else os.path.abspath(path) for path in table["path"]]  # noqa: PTH100
    table["path"] = pd.array(paths, dtype=TEXT)
    table["subject"] = _known_patients(table["subject"])
    table["group"] = _known_patients(_known_patients(table["group"]).fillna(table["subject"]))
    return table


def problem_of(table: pd.DataFrame, names: tuple[str, ...], arrays: Mapping[str, Any]) -> str:
    """Return why a typed table, class names and arrays by sample id make no data set; "" if they do."""
    no_path = table["path"].isna() & ~table["sample"].isin(arrays)
    repeated = table["sample"][table["sample"].duplicated()]
    groups = table[["subject", "group"]].dropna().drop_duplicates()["subject"]
    if not len(table):
        return "has no samples. Check the root, or the rows that were chosen"
    if len(set(names)) != len(names) or len(names) < 2 or not all(isinstance(n, str) and n for n in names):
        return f"needs at least two different class names to tell apart. Received: {list(names)!r}"
    if not all(name.isprintable() for name in names):
        return f"has a class name that cannot be printed: {list(names)!a}. Rename it"
    for column, missing in (("sample", table["sample"].isna()), ("path", no_path)):
        if missing.any():
            return f"has no {column} in row {int(missing.argmax())}"
    if len(repeated):
        return f"has {len(repeated):,} sample ids twice, such as {repeated.iloc[0]!r}: each names one image"
    for column, allowed in (("label", names), ("split", SPLITS)):
        if unknown := sorted(set(table[column].dropna()) - set(allowed))[:5]:
            return f"has the unknown {column} {', '.join(map(repr, unknown))}. Allowed: {', '.join(allowed)}"
    if groups.duplicated().any():
        subject = groups[groups.duplicated()].iloc[0]
        return f"has the subject {subject!r} in two groups. A group is made of whole subjects"
    return ""


def counted(table: pd.DataFrame) -> dict[str, int]:
    """Return the numbers of a typed table as authors declare them: images, subjects, per class, fold and side."""
    counts = {"images": len(table), "subjects": int(table["subject"].nunique())}
    counts |= {f"fold {fold}": int(count) for fold, count in table["fold"].value_counts().items()}
    for column in ("label", "split"):
        counts |= {str(name): int(count) for name, count in table[column].value_counts().items()}
    return counts


def differing_counts(table: pd.DataFrame, declared: Iterable[tuple[str, int]]) -> list[str]:
    """Return a text for each declared number that a typed table does not have, such as "images: 60 of 15,114"."""
    found = counted(table)
    return [f"{name}: {found.get(name, 0):,} of {count:,}" for name, count in declared if found.get(name, 0) != count]


def row_numbers(rows: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return the numbers of the chosen ones of `count` rows, from a mask, in which NA means no, or from numbers."""
    chosen = np.asarray(rows)
    if chosen.dtype == object and pd.api.types.infer_dtype(chosen.ravel()) == "boolean":
        chosen = np.where(pd.isna(chosen), False, chosen).astype(bool)
    if isinstance(rows, pd.Series) and chosen.dtype == np.bool_:
        if set(rows.index) != set(range(count)):
            raise DataError(f"A Series as mask has the index of `table`, 0 to {count - 1}. Received: {rows.index}.")
        chosen = chosen[np.argsort(rows.index)]
    if chosen.dtype == np.bool_ and chosen.shape == (count,):
        return np.flatnonzero(chosen)
    numbers = chosen if chosen.size else chosen.astype(np.int64)
    fits = numbers.ndim == 1 and numbers.dtype.kind in "iu"
    if not fits or ((numbers < -count) | (numbers >= count)).any():
        received = f"Received: {chosen.dtype} {chosen.shape}."
        raise DataError(f"subset takes a bool mask of length {count} or row numbers below it. {received}")
    return numbers.astype(np.int64)


def one_spelling(names: pd.Series[Any], what: str, wanted: Sequence[str] = ()) -> pd.Series[Any]:
    """Return names with one spelling for each `name_key`, and warn where there were several.

    The spellings in `wanted` are kept, otherwise the most frequent one. If two of `wanted` have the same key, nothing
    is changed. `what` is the kind of the names for the warning, such as "classes".
    """
    chosen = {name_key(name): name for name in wanted}
    if len(chosen) < len(wanted):
        return names
    found: dict[str, list[str]] = {}
    for name in names.value_counts().sort_index().sort_values(ascending=False, kind="stable").index:
        found.setdefault(name_key(name), []).append(name)
    for key, spellings in found.items():
        chosen.setdefault(key, key if key.isdecimal() else spellings[0].strip())
    if several := [key for key, spellings in found.items() if len(spellings) > 1]:
        message = "%s with several spellings (in case, spaces or a trailing .0): %d, such as %s, which are taken for %r"
        example = ", ".join(map(repr, found[several[0]]))
        _log.warning(message, what.capitalize(), len(several), example, chosen[several[0]])
    return names.map(lambda name: chosen[name_key(name)], na_action="ignore")


def _known_patients(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return names of patients with NA for empty texts and words for unknown ones."""
    unknown = column.str.strip().str.lower().isin(UNKNOWN_NAMES)
    words = column[unknown & (column.str.strip() != "")]
    if len(words):
        shown = ", ".join(map(repr, sorted(set(words))))
        _log.warning("%d images name their patient %s: taken for not known", len(words), shown)
    return one_spelling(column.mask(unknown), "patients").astype(TEXT)
