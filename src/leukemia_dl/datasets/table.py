"""The sample table: its columns, one rule for names, the check of a table, and the description of a data set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.checks import whole_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.preprocess.pipeline import MAX_SIZE
from leukemia_dl.text import UNKNOWN_NAMES, name_key

COLUMNS = ("sample", "path", "label", "subject", "group", "field", "cell", "fold", "split", "same_cell")
SPLITS = ("train", "val", "test", "preliminary", "final")
# Not "string", which depends on the version of pandas and on pyarrow; arrow cannot hold file names that are not UTF-8.
TEXT = pd.StringDtype("python")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetInfo:
    """Licence, citation and properties of a data set, as its authors state them.

    Attributes:
        name: As in `Dataset.load(name)`.
        title: For people.
        licence: As stated by the authors, or who says so.
        citation: To be quoted with results.
        url: Where it is described.
        class_names: In label order; empty if they depend on the files.
        canvas: Side in pixels, 1 to 4,472, of the canvas that keeps cells at one absolute scale; None: no common scale.
        test_fold: The official fold that published results test: protocols on official folds test it alone unless
            others are asked for. None: they test each in turn.
        synthetic: True if the images were drawn by a program; results say so wherever they appear.
        declared: Counts as the authors give them, such as `(("images", 15114), ("subjects", 101))`.
    """

    name: str
    title: str
    licence: str
    citation: str
    url: str = ""
    class_names: tuple[str, ...] = ()
    canvas: int | None = None
    test_fold: int | None = None
    synthetic: bool = False
    declared: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.canvas is not None:
            object.__setattr__(self, "canvas", whole_number("canvas", self.canvas, 1, MAX_SIZE))


Table = tuple[pd.DataFrame, tuple[str, ...], DatasetInfo]
"""A sample table, its class names in label order, and its description: the result of a reader."""


def joined_info(one: DatasetInfo, two: DatasetInfo, class_names: tuple[str, ...]) -> DatasetInfo:
    """Return the description of two data sets together, in which each text is named once."""
    marks = {"name": "+", "title": " + ", "licence": "; ", "citation": " "}
    both = (one, two)
    texts: Any = {name: mark.join(dict.fromkeys(getattr(info, name) for info in both)) for name, mark in marks.items()}
    canvas = one.canvas if one.canvas == two.canvas else None
    return DatasetInfo(**texts, class_names=class_names, canvas=canvas, synthetic=one.synthetic or two.synthetic)


def checked_table(
    table: pd.DataFrame, class_names: tuple[str, ...], arrays: Mapping[str, Any], name: str
) -> pd.DataFrame:
    """Return the clean table of the data set `name`; DataError if it is none. `arrays` are images by sample id."""
    table = _clean(table)
    if problem := _problem(table, class_names, arrays):
        raise DataError(f"The data set {name!r} {problem}.")
    return table


def _clean(table: pd.DataFrame) -> pd.DataFrame:
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


def _problem(table: pd.DataFrame, names: tuple[str, ...], arrays: Mapping[str, Any]) -> str:
    """Return why a clean table and class names make no data set; "" if they do."""
    if not len(table):
        return "has no samples. Check the root, or the rows that were chosen"
    printable = all(isinstance(name, str) and name and name.isprintable() for name in names)
    if len(set(names)) != len(names) or len(names) < 2 or not printable:
        return f"needs at least two different class names that can be printed. Received: {list(names)!a}"
    no_path = table["path"].isna() & ~table["sample"].isin(arrays)
    for column, missing in (("sample", table["sample"].isna()), ("path", no_path)):
        if missing.any():
            return f"has no {column} in row {int(missing.argmax())}"
    repeated = table["sample"][table["sample"].duplicated()]
    if len(repeated):
        return f"has {len(repeated):,} sample ids twice, such as {repeated.iloc[0]!r}: each names one image"
    for column, allowed in (("label", names), ("split", SPLITS)):
        if unknown := sorted(set(table[column].dropna()) - set(allowed))[:5]:
            return f"has the unknown {column} {', '.join(map(repr, unknown))}. Allowed: {', '.join(allowed)}"
    subjects = table[["subject", "group"]].dropna().drop_duplicates()["subject"]
    if subjects.duplicated().any():
        subject = subjects[subjects.duplicated()].iloc[0]
        return f"has the subject {subject!r} in two groups. A group is made of whole subjects"
    return ""


def counted(table: pd.DataFrame) -> dict[str, int]:
    """Return the numbers of a clean table as authors declare them: images, subjects, per class, fold and side."""
    counts = {"images": len(table), "subjects": int(table["subject"].nunique())}
    counts |= {f"fold {fold}": int(count) for fold, count in table["fold"].value_counts().items()}
    for column in ("label", "split"):
        counts |= {str(name): int(count) for name, count in table[column].value_counts().items()}
    return counts


def differing_counts(table: pd.DataFrame, declared: Iterable[tuple[str, int]]) -> list[str]:
    """Return a text for each declared number that a clean table does not have, such as "images: 60 of 15,114"."""
    found = counted(table)
    return [f"{name}: {found.get(name, 0):,} of {count:,}" for name, count in declared if found.get(name, 0) != count]


def row_numbers(rows: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return the numbers of the chosen ones of `count` rows, from a mask, in which NA means no, or from numbers."""
    chosen = pd.Series(np.asarray(rows).tolist())
    kind = pd.api.types.infer_dtype(chosen)
    if kind == "boolean" and len(chosen) == count:
        if isinstance(rows, pd.Series):
            if set(rows.index) != set(range(count)):
                raise DataError(f"A Series as mask has the index of `table`, 0 to {count - 1}. Received: {rows.index}.")
            chosen = chosen.set_axis(rows.index).sort_index()
        return np.flatnonzero(chosen.astype("boolean").fillna(False).to_numpy(bool))
    if kind not in ("integer", "empty") or not chosen.isin(range(-count, count)).all():
        received = f"Received: {kind}, {np.shape(rows)}."
        raise DataError(f"subset takes a bool mask of length {count} or row numbers below it. {received}")
    return chosen.to_numpy(np.int64)


def class_list(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names that came as a sequence, or as one text separated by commas; SettingsError for others."""
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(","))
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise SettingsError(f"class_names are texts in label order, such as ('hem', 'all'). Received: {names!r}.")
    return tuple(str(name) for name in names)


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
    renamed: dict[str, str] = {}
    for key, spellings in found.items():
        kept = chosen.get(key, key if key.isdecimal() else spellings[0].strip())
        renamed |= dict.fromkeys(spellings, kept)
    if several := [spellings for spellings in found.values() if len(spellings) > 1]:
        message = "%s with several spellings (in case, spaces or a trailing .0): %d, such as %s, which are taken for %r"
        example = ", ".join(map(repr, several[0]))
        _log.warning(message, what.capitalize(), len(several), example, renamed[several[0][0]])
    return names.map(renamed, na_action="ignore")


def _known_patients(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return names of patients with NA for empty texts and words for unknown ones."""
    unknown = column.str.strip().str.lower().isin(UNKNOWN_NAMES)
    words = column[unknown & (column.str.strip() != "")]
    if len(words):
        shown = ", ".join(map(repr, sorted(set(words))))
        _log.warning("%d images name their patient %s: taken for not known", len(words), shown)
    return one_spelling(column.mask(unknown), "patients").astype(TEXT)
