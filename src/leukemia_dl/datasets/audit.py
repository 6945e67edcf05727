"""What is wrong with a data set: damaged, odd, blank and repeated images, thin classes, counts that differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from leukemia_dl.datasets.columns import SPLITS, TEXT
from leukemia_dl.datasets.hashes import array_hash, tried_hashes
from leukemia_dl.datasets.same_cells import CellKey, cell_key, likeness_of_rows, same_cells
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import FORMATS, IMAGE_SUFFIXES
from leukemia_dl.preprocess.quality import measure_quality
from leukemia_dl.progress import parallel_map
from leukemia_dl.text import printable

if TYPE_CHECKING:
    from leukemia_dl.datasets.dataset import Dataset

__all__ = ["SEVERITIES", "AuditReport", "audit"]

SEVERITIES = ("error", "warning", "note")
_MAJORITY = 0.9  # From this share on, one size or mode is the rule and others are odd.
_FEW_IMAGES = 10
_FEW_GROUPS = 5
_ALL_PAIRS = 20  # Of a larger set of equal images, each is paired with one of them only.
_SHOWN = 3
_COPIES = "copies of an image that were turned, mirrored, recoloured, resized or stored again with loss"
_SAME_CELL = "one cell in files that differ, where images are not single cells on exactly black background"
_FLAGS = ("single_cell", "empty_mask", "touches_border", "blank", "nearly_black")
_BLACK = 16  # The highest level that 12 bits reach in 16, as 8 bits.
_MEASURES = ("focus", "brightness", "dark", "saturated", "foreground")
_IMAGES = ("sample", "readable", "height", "width", "mode", "blank", "nearly_black", "single_cell", *_MEASURES)


@dataclass(frozen=True, eq=False, repr=False)
class AuditReport:
    """What `audit` found. `print(report)` tells it in short.

    Attributes:
        name: Of the data set.
        findings: A row per finding, the severest first: `kind`; `severity` ("error", "warning", "note"); `sample`,
            NA where it is about no single image; `other`, the second sample of a pair, else NA; `detail`, for people.
        images: A row per image, in row order: `sample`, `readable`, `height` and `width` in pixels, `mode` (Pillow's),
            `blank`, `nearly_black` (no level above 16 of 255), `single_cell` (cut out on black), the measures of
            `measure_quality`, `empty_mask`, `touches_border`, `sha256` of the file and `problem`; NA if not known.
        counts: `of` ("total", "class", "split", "fold", "subject"), `name`, `count`, `subjects`, `groups` and
            `declared`, NA where the authors give no number.
    """

    name: str
    findings: pd.DataFrame
    images: pd.DataFrame
    counts: pd.DataFrame

    @property
    def ok(self) -> bool:
        """Whether there is no finding of severity "error"."""
        return not (self.findings["severity"] == "error").any()

    @property
    def not_checked(self) -> tuple[str, ...]:
        """Problems that the audit does not look for in these images."""
        others = int((~self.images["single_cell"].fillna(False)).sum())
        return (_COPIES, f"{_SAME_CELL} ({others:,} of {len(self.images):,} images)") if others else (_COPIES,)

    def __repr__(self) -> str:
        return f"<AuditReport {self._headline()}>"

    def __str__(self) -> str:
        lines = [f"Audit of {self._headline()}"]
        for of, rows in self.counts[self.counts["of"].isin(["class", "split", "fold"])].groupby("of", sort=False):
            lines.append(
                f"  {of}: " + ", ".join(f"{name} {count:,}" for _, name, count in rows[["name", "count"]].itertuples())
            )
        for (severity, kind), rows in self.findings.groupby(["severity", "kind"], sort=False):
            lines.append(f"  {severity}: {kind}, {len(rows):,}")
            for row in rows.head(_SHOWN).itertuples():
                who = " = ".join(str(name) for name in (row.sample, row.other) if name is not pd.NA)
                lines.append(f"    {who}: {row.detail}" if who else f"    {row.detail}")
            if len(rows) > _SHOWN:
                lines.append(f"    and {len(rows) - _SHOWN:,} more")
        lines += [f"Not checked: {what}" for what in self.not_checked]
        # Names of files are a stranger's: nothing in them may steer a terminal.
        return "\n".join(printable(line, kept="") for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values for JSON: name, ok, not_checked, and a list of rows for each frame."""
        frames = {"findings": self.findings, "images": self.images, "counts": self.counts}
        return {
            "name": self.name,
            "ok": self.ok,
            "not_checked": list(self.not_checked),
            **{key: _plain(frame) for key, frame in frames.items()},
        }

    def _headline(self) -> str:
        found = self.findings["severity"].value_counts()
        numbers = ", ".join(f"{(n := int(found.get(s, 0))):,} {s}{'' if n == 1 else 's'}" for s in SEVERITIES)
        return f"{self.name!r}: {len(self.images):,} images, {numbers}"


def audit(
    dataset: Dataset, manifest: str | Path | None = None, show_progress: bool = True, partial: bool = False
) -> AuditReport:
    """Look at every image of a data set, and for what its samples share.

    Each file is hashed (unless its hash is remembered) and decoded once, by threads; those that may show the same cell
    are decoded again. An image that cannot be read is a finding and stops nothing.

    Kinds of findings: `unreadable`; `odd_size` (within its split), `mixed_sizes`, `odd_mode`; `blank`, `nearly_black`,
    `no_cell`;
    `identical_files`, byte for byte; `same_cell`, in files that differ, for single cells on exactly black background
    only (see `same_cells.likeness`); `few_images`, `few_subjects`, `no_subjects`, `subject_of_several_classes`,
    `count`, which differs from the declared one; `missing_file`, `other_content` and
    `not_in_manifest`.

    A pair of equal images is an error if their labels differ, or their sides or folds as the authors give them, and for
    the same cell also if their groups differ: splits keep identical files together, but not such cells. If it only
    joins subjects or groups it is a warning, else a note. Of n equal images all pairs are named up to n = 20,
    beyond that n - 1 of them.

    Args:
        dataset: Any data set.
        manifest: What there should be, for `datasets.manifest.read_manifest`; found by the ends of paths.
        show_progress: Whether to tell how far it is.
        partial: Whether files of the manifest may be missing: there is then no finding `missing_file`.

    Returns:
        The report; its `ok` says whether there is no error among the findings.

    Raises:
        DataError: If the manifest cannot be read or is none. It is looked at before the images.
    """
    from leukemia_dl.datasets.manifest import read_manifest

    expected = None if manifest is None else read_manifest(manifest)
    table = dataset.table
    paths: list[str | None] = [path if isinstance(path, str) else None for path in table["path"]]
    # First, so that files that are no images are still compared.
    of_files = [row for row, path in enumerate(paths) if path is not None]
    hashes = dict(zip(of_files, tried_hashes([str(paths[row]) for row in of_files], show_progress), strict=True))
    looks = parallel_map(
        lambda row: _look(dataset, row, paths[row], hashes.get(row)),
        list(range(len(paths))),
        "Auditing images",
        show=show_progress,
    )
    images, found = _image_frame(table, looks), _Findings(table)
    _single_images(found, table, images)
    contents = [look.values.get("sha256") for look in looks]
    for rows in _groups(contents):
        for one, two in _pairs(table, rows):
            found.pair("identical_files", one, two, f"one of {len(rows)} equal files" if len(rows) > 2 else "")
    for rows in same_cells([look.key for look in looks], contents, dataset.decode):
        for one, two in _pairs(table, rows):
            differ = contents[one] != contents[two]
            if differ and (like := likeness_of_rows(dataset.decode, one, two)) is not None:
                text = f"the masks overlap by {like.overlap:.4f}, the mean difference is {like.difference:.3f}"
                found.pair("same_cell", one, two, text)
    counts = _counts(dataset)
    _balance(found, table, counts)
    if expected is not None:
        _compare(found, expected, paths, contents, partial)
    return AuditReport(dataset.info.name, found.frame(), images, counts)


class _Look(NamedTuple):
    """What is kept of an image once its pixels are gone."""

    values: dict[str, Any]
    key: CellKey | None


def _look(dataset: Dataset, row: int, path: str | None, content: str | DataError | None) -> _Look:
    values: dict[str, Any] = {"readable": False, "problem": ""}
    try:
        if isinstance(content, DataError):
            raise content
        values["sha256"] = content
        pixels = dataset.decode(row)
        height, width = pixels.shape[:2]
        if path is None:
            values["sha256"] = array_hash(pixels)
        mode = "RGB" if path is None else _mode(path)
        key = cell_key(pixels)
        values |= {"height": height, "width": width, "mode": mode, **measure_quality(pixels)}
        values["nearly_black"] = bool(pixels.max() <= _BLACK)
        return _Look({**values, "readable": True, "single_cell": key is not None}, key)
    except DataError as error:
        return _Look({**values, "problem": str(error)}, None)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        return _Look({**values, "problem": f"Cannot read the image {path}: {reason}."}, None)


def _mode(path: str) -> str:
    with Image.open(path, formats=FORMATS) as image:
        return image.mode


def _image_frame(table: pd.DataFrame, looks: list[_Look]) -> pd.DataFrame:
    rows = [{"sample": name, **look.values} for name, look in zip(table["sample"], looks, strict=True)]
    frame = pd.DataFrame(rows, columns=[*_IMAGES, "empty_mask", "touches_border", "sha256", "problem"], dtype=object)
    types: dict[str, Any] = dict.fromkeys(_FLAGS, "boolean") | dict.fromkeys(_MEASURES, "float64")
    types |= {"readable": "bool", "height": "Int64", "width": "Int64"}
    return frame.astype(dict.fromkeys(frame.columns, TEXT) | types)


class _Findings:
    def __init__(self, table: pd.DataFrame) -> None:
        self._rows: list[tuple[str, str, Any, Any, str]] = []
        self._samples = list(table["sample"])
        known = table[["label", "split", "fold", "subject", "group"]].astype(object)
        self._known = known.where(known.notna(), None).to_dict("records")

    def add(self, kind: str, severity: str, detail: str, row: int | None = None) -> None:
        self._rows.append((kind, severity, pd.NA if row is None else self._samples[row], pd.NA, detail))

    def pair(self, kind: str, one: int, two: int, likeness: str) -> None:
        """Add two equal images, with what they cross."""
        first, second = self._known[one], self._known[two]
        crossed = {
            column: f"{column}s {first[column]} and {second[column]}"
            for column in first
            if first[column] is not None and second[column] is not None and first[column] != second[column]
        }
        severe = {"label", "split", "fold"} | ({"group"} if kind == "same_cell" else set())
        severity = "error" if severe & set(crossed) else "warning" if crossed else "note"
        if "subject" in crossed and crossed.get("group", "") == crossed["subject"].replace("subject", "group"):
            del crossed["group"]
        what = f"crosses {', '.join(crossed.values())}" if crossed else "crosses nothing that is known"
        detail = f"{what}; {likeness}" if likeness else what
        self._rows.append((kind, severity, self._samples[one], self._samples[two], detail))

    def frame(self) -> pd.DataFrame:
        frame = pd.DataFrame(self._rows, columns=["kind", "severity", "sample", "other", "detail"], dtype=TEXT)
        order = frame["severity"].map({name: rank for rank, name in enumerate(SEVERITIES)})
        return frame.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def _single_images(found: _Findings, table: pd.DataFrame, images: pd.DataFrame) -> None:
    for row in np.flatnonzero(~images["readable"]):
        found.add("unreadable", "error", str(images["problem"].iloc[row]), int(row))
    sizes = images["height"].astype(str) + " x " + images["width"].astype(str)
    splits = table["split"].fillna("")
    for split in splits.unique():
        inside = sizes[(splits == split) & images["readable"]]
        rule, others = _odd(inside)
        where = f" of {split}" if split else ""
        for odd in others:
            found.add("odd_size", "warning", f"{inside[odd]} (height x width); nearly all{where} are {rule}", odd)
        if rule is None and len(inside):
            most = inside.value_counts()
            share = f"{most.iloc[0]:,} of {len(inside):,} are {most.index[0]}"
            found.add("mixed_sizes", "note", f"the images{where} have {len(most):,} sizes (height x width): {share}")
    rule, others = _odd(images["mode"])
    for odd in others:
        found.add("odd_mode", "warning", f"stored as {images['mode'][odd]}; nearly all are {rule}", odd)
    for row in np.flatnonzero(images["blank"].fillna(False)):
        found.add("blank", "warning", "all of it is nearly one grey", int(row))
    for row in np.flatnonzero((images["nearly_black"] & ~images["blank"]).fillna(False)):
        found.add(
            "nearly_black", "warning", f"no level above {_BLACK} of 255, as of 12 bits in a 16-bit file", int(row)
        )
    for row in np.flatnonzero((images["empty_mask"] & ~images["blank"]).fillna(False)):
        found.add("no_cell", "note", "no cell is found in it; grey images have no colour to find one by", int(row))


def _odd(values: pd.Series[Any]) -> tuple[str | None, list[int]]:
    """Return the value that nearly all have, None if there is none, and the rows that have another."""
    values = values.dropna()
    shares = values.value_counts(normalize=True)
    if not len(shares) or shares.iloc[0] < _MAJORITY:
        return None, []
    rule = str(shares.index[0])
    return rule, [int(row) for row in values.index[values != rule]]


def _groups(hashes: list[str | None]) -> list[list[int]]:
    """Return the rows of each content that is there more than once."""
    rows: dict[str, list[int]] = {}
    for row, content in enumerate(hashes):
        if content is not None:
            rows.setdefault(content, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def _pairs(table: pd.DataFrame, rows: list[int]) -> Iterator[tuple[int, int]]:
    if len(rows) <= _ALL_PAIRS:
        return itertools.combinations(rows, 2)
    # Neighbours in this order: where labels, sides or folds differ within the set, two neighbours differ in something.
    order = table.iloc[rows].sort_values(["label", "split", "fold", "group"]).index
    return itertools.pairwise(int(row) for row in order)


def _counts(dataset: Dataset) -> pd.DataFrame:
    table = dataset.table
    declared = dict(dataset.info.declared)
    rows: list[tuple[Any, ...]] = []
    for name, part in (("images", table), ("subjects", table), ("unlabelled", table[table["label"].isna()])):
        own = [part[column].nunique() for column in ("subject", "group")]
        count = own[0] if name == "subjects" else len(part)
        rows.append(("total", name, count, declared.pop(name, pd.NA), *own))
    for of, column in (("class", "label"), ("split", "split"), ("fold", "fold"), ("subject", "subject")):
        grouped = table.groupby(column)
        numbers = grouped.size().to_frame("count").join(grouped[["subject", "group"]].nunique())
        if of == "class":
            numbers = numbers.reindex(list(dataset.class_names), fill_value=0)
        for name, count, *own in numbers.itertuples():
            key = f"fold {name}" if of == "fold" else str(name)
            rows.append((of, str(name), count, pd.NA if of == "subject" else declared.pop(key, pd.NA), *own))
    for key, number in declared.items():  # not there at all, or nothing that we count
        of, name = ("fold", key[5:]) if key.startswith("fold ") else ("split" if key in SPLITS else "other", key)
        rows.append((of, name, pd.NA if of == "other" else 0, number, 0, 0))
    columns = ["of", "name", "count", "declared", "subjects", "groups"]
    return pd.DataFrame(rows, columns=columns).astype({"count": "Int64", "declared": "Int64"})


def _balance(found: _Findings, table: pd.DataFrame, counts: pd.DataFrame) -> None:
    differs = (counts["count"] != counts["declared"]).fillna(False)
    for row in counts[differs].to_dict("records"):
        what = row["name"] if row["of"] in ("total", "split") else f"{row['of']} {row['name']}"
        found.add("count", "warning", f"{what}: {row['count']:,} are there, {row['declared']:,} are declared")
    for row in counts[counts["of"] == "class"].to_dict("records"):
        if row["count"] < _FEW_IMAGES:
            found.add("few_images", "warning", f"class {row['name']}: {row['count']} images, fewer than {_FEW_IMAGES}")
        if 0 < row["groups"] < _FEW_GROUPS:
            what = f"class {row['name']}: {row['groups']} groups of subjects, fewer than {_FEW_GROUPS}"
            found.add("few_subjects", "warning", f"{what}: no interval for it can be narrow")
    labelled = table[table["label"].notna()]
    alone = int(labelled["group"].isna().sum())
    if alone:
        text = f"{alone:,} of {len(labelled):,} labelled images have no subject: patients cannot be kept apart"
        found.add("no_subjects", "note", text)
    for subject, labels in labelled.groupby("subject")["label"]:
        if labels.nunique() > 1:
            numbers = ", ".join(f"{n:,} {label}" for label, n in labels.value_counts().items())
            found.add("subject_of_several_classes", "note", f"subject {subject} has {numbers}")


def _compare(
    found: _Findings, expected: pd.DataFrame, paths: list[str | None], contents: list[str | None], partial: bool
) -> None:
    """Find each file in the manifest by the end of its path; the manifest's outermost folder may have another name."""
    hashes: dict[str, str] = dict(zip(expected["path"], expected["sha256"], strict=True))
    top = next(iter(hashes)).split("/")[0] + "/"
    inner = {name: name for name in hashes}
    if all(name.startswith(top) for name in hashes):
        inner |= {name.removeprefix(top): name for name in hashes}
    missing = {name for name in hashes if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES}
    for row, path in enumerate(paths):
        if path is None:
            continue
        parts = Path(path).parts
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
        name = next((inner[end] for end in ends if end in inner), None)
        if name is None:
            found.add("not_in_manifest", "warning", "the manifest does not name this file", row)
            continue
        missing.discard(name)
        if contents[row] not in (None, hashes[name]):
            found.add("other_content", "error", f"its SHA-256 is not that of {name} in the manifest", row)
    for name in () if partial else sorted(missing):
        found.add("missing_file", "error", f"{name} is in the manifest, but not in the data set")


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    plain = frame.astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in plain.where(plain.notna(), None).to_dict("records")
    ]
