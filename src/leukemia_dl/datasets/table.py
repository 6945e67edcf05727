"""The sample table: its columns, one rule for names, the check of a table, and the description of a data set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leukemia_dl.errors import DataError
from leukemia_dl.identity import UNKNOWN_NAMES, name_key

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
        canvas: Side in pixels of the canvas that keeps cells at one absolute scale; None: no common scale.
        test_fold: The official fold that published results test, and protocols on official folds by default.
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


Table = tuple[pd.DataFrame, tuple[str, ...], DatasetInfo]  # a sample table, its class names, its description


def clean_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return exactly `COLUMNS`, with their dtypes, absolute paths, one spelling per patient, and `group` filled."""
    table = table.reindex(columns=list(COLUMNS)).reset_index(drop=True)
    for column in table.columns.drop("fold"):
        if table[column].dtype != TEXT:
            table[column] = table[column].convert_dtypes().astype(TEXT)
    try:
        table["fold"] = pd.to_numeric(table["fold"]).astype("Int64")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"Folds are whole numbers. Received: {table['fold'].dropna().unique()[:5]}.") from error
    # Not resolve(), which follows links: two links to one file are two samples.
    table["path"] = table["path"].map(os.path.abspath, na_action="ignore").astype(TEXT)
    names = _known_patients(pd.concat([table["subject"], table["group"]], ignore_index=True))
    table["subject"], group = names.iloc[: len(table)], names.iloc[len(table) :].set_axis(table.index)
    table["group"] = group.fillna(table["subject"])
    return table


def problem_of(table: pd.DataFrame, names: tuple[str, ...], arrays: Iterable[str] = ()) -> str:
    """Return why a clean table, class names and sample ids of `arrays` make no data set, "" if they do."""
    if not len(table):
        return "has no samples. Check the root, or the rows that were chosen"
    if len(set(names)) != len(names) or len(names) < 2 or not all(name and name.isprintable() for name in names):
        return f"needs at least two different class names that can be printed. Received: {list(names)!a}"
    for column in ("sample", "path"):
        if (missing := table[column].isna() & ~table["sample"].isin(arrays)).any():
            return f"has no {column} in row {int(missing.argmax())}"
    if len(repeated := table["sample"][table["sample"].duplicated()]):
        return f"has {len(repeated):,} sample ids twice, such as {repeated.iloc[0]!r}: each names one image"
    for column, allowed in (("label", names), ("split", SPLITS)):
        if unknown := sorted(set(table[column].dropna()) - set(allowed))[:5]:
            return f"has the unknown {column} {', '.join(map(repr, unknown))}. Allowed: {', '.join(allowed)}"
    subjects = table[["subject", "group"]].dropna().drop_duplicates()["subject"]
    if len(twice := subjects[subjects.duplicated()]):
        return f"has the subject {twice.iloc[0]!r} in two groups. A group is made of whole subjects"
    return ""


def count_rows(table: pd.DataFrame) -> dict[str, int]:
    """Return the numbers of a clean table as authors declare them: images, subjects, per class, fold and side."""
    counts = {"images": len(table), "subjects": int(table["subject"].nunique())}
    for column, prefix in (("fold", "fold "), ("label", ""), ("split", "")):
        counts |= {f"{prefix}{name}": int(count) for name, count in table[column].value_counts().sort_index().items()}
    return counts


def differing_counts(table: pd.DataFrame, declared: Iterable[tuple[str, int]]) -> list[str]:
    """Return a text for each declared number that a clean table does not have, such as "images: 60 of 15,114"."""
    found = count_rows(table)
    return [f"{name}: {found.get(name, 0):,} of {count:,}" for name, count in declared if found.get(name, 0) != count]


def class_list(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names that came as a sequence, or as one text separated by commas."""
    return tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(map(str, names))


def one_spelling(names: pd.Series[Any], what: str, wanted: Sequence[str] = ()) -> pd.Series[Any]:
    """Return names with one spelling for each `name_key`; a warning about `what` says where there were several.

    The spellings in `wanted` are kept, otherwise the most frequent one. If two of `wanted` have one key, all stay.
    """
    chosen, found = {name_key(name): name for name in wanted}, dict[str, list[str]]()
    if len(chosen) < len(wanted):
        return names
    for name in names.value_counts().sort_index().sort_values(ascending=False, kind="stable").index:
        found.setdefault(name_key(name), []).append(name)
    kept = {key: chosen.get(key, key if key.isdecimal() else spellings[0].strip()) for key, spellings in found.items()}
    if several := [key for key, spellings in found.items() if len(spellings) > 1]:
        message = "%s with several spellings (in case, spaces or a trailing .0): %d, such as %s, which are taken for %r"
        example = ", ".join(map(repr, found[several[0]]))
        _log.warning(message, what.capitalize(), len(several), example, kept[several[0]])
    renamed = {name: kept[key] for key, spellings in found.items() for name in spellings}
    return names.map(renamed, na_action="ignore")


def _known_patients(column: pd.Series[Any]) -> pd.Series[Any]:
    unknown = column.str.strip().str.lower().isin(UNKNOWN_NAMES)
    if len(words := column[unknown & (column.str.strip() != "")]):
        shown = ", ".join(map(repr, sorted(set(words))))
        _log.warning("%d images name their patient %s: taken for not known", len(words), shown)
    return one_spelling(column.mask(unknown), "patients").astype(TEXT)
