"""Problems of a data set: damaged, odd, blank and repeated images, small classes, counts that differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from PIL import Image

from leukemia_dl.datasets.hashes import array_hash, tried_hashes
from leukemia_dl.datasets.pixels import Images
from leukemia_dl.datasets.same_cells import CellKey, cell_key, likeness_of_rows, same_cells
from leukemia_dl.datasets.table import SPLITS, TEXT, DatasetInfo
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import FORMATS, IMAGE_SUFFIXES
from leukemia_dl.preprocess.quality import MEASURES, measure_quality
from leukemia_dl.progress import parallel_map
from leukemia_dl.text import printable

__all__ = ["SEVERITIES", "AuditReport", "audit"]

SEVERITIES = ("error", "warning", "note")
_MAJORITY = 0.9  # from this share on, one size or mode is the rule and others are odd
_FEW_IMAGES, _FEW_GROUPS = 10, 5
_ALL_PAIRS = 20  # of a larger set of equal images, each is paired with one of them only
_SHOWN = 3
_BLACK = 16  # the highest level that 12 bits reach in 16, as 8 bits
_COPIES = "copies of an image that were turned, mirrored, recoloured, resized or stored again with loss"
_SAME_CELL = "one cell in files that differ, where images are not single cells on exactly black background"
_IMAGE_TYPES: dict[str, Any] = {
    "sample": TEXT, "readable": "bool", "height": "Int64", "width": "Int64", "mode": TEXT, "nearly_black": "boolean",
    "single_cell": "boolean", **MEASURES, "sha256": TEXT, "problem": TEXT,
}  # fmt: skip


class AuditedImages(Images, Protocol):
    """The part of a `Dataset` that is audited."""

    @property
    def info(self) -> DatasetInfo: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...


class _Finding(NamedTuple):
    kind: str
    severity: str
    detail: str
    sample: int | None = None  # the row of an image, and of the other one of a pair
    other: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class AuditReport:
    """The result of `audit`. `print(report)` gives a summary.

    Attributes:
        name: Of the data set.
        findings: A row per finding, the severest first: `kind`; `severity` ("error", "warning", "note"); `sample`,
            NA where it is about no single image; `other`, the second sample of a pair, else NA; `detail`.
        images: A row per image, in row order: `sample`, `readable`, `height` and `width` in pixels, `mode` (Pillow's),
            `nearly_black` (no level above 16 of 255), `single_cell` (cut out on black), the columns of
            `measure_quality`, `sha256` of the file and `problem`; NA if not known.
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
        others = len(self.images) - self.images["single_cell"].sum()
        return (_COPIES, f"{_SAME_CELL} ({others:,} of {len(self.images):,} images)") if others else (_COPIES,)

    def __repr__(self) -> str:
        return f"<AuditReport {self._headline()}>"

    def __str__(self) -> str:
        lines = [f"Audit of {self._headline()}"]
        for of, rows in self.counts[self.counts["of"].isin(["class", "split", "fold"])].groupby("of", sort=False):
            numbers = (f"{name} {count:,}" for name, count in zip(rows["name"], rows["count"], strict=True))
            lines.append(f"  {of}: {', '.join(numbers)}")
        for (severity, kind), rows in self.findings.groupby(["severity", "kind"], sort=False):
            lines.append(f"  {severity}: {kind}, {len(rows):,}")
            for row in rows.head(_SHOWN).itertuples():
                samples = " = ".join(str(name) for name in (row.sample, row.other) if name is not pd.NA)
                lines.append(f"    {samples}: {row.detail}" if samples else f"    {row.detail}")
            if len(rows) > _SHOWN:
                lines.append(f"    and {len(rows) - _SHOWN:,} more")
        lines += [f"Not checked: {what}" for what in self.not_checked]
        # Names of files come from strangers: nothing in them may steer a terminal.
        return "\n".join(printable(line, kept="") for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values for JSON: name, ok, not_checked, and a list of rows for each frame."""
        plain: dict[str, Any] = {"name": self.name, "ok": self.ok, "not_checked": list(self.not_checked)}
        for key in ("findings", "images", "counts"):
            frame = getattr(self, key).astype(object)
            plain[key] = frame.where(frame.notna(), None).to_dict("records")
        return plain

    def _headline(self) -> str:
        found = self.findings["severity"].value_counts()
        numbers = ", ".join(f"{(n := int(found.get(s, 0))):,} {s}{'' if n == 1 else 's'}" for s in SEVERITIES)
        return f"{self.name!r}: {len(self.images):,} images, {numbers}"


def audit(
    dataset: AuditedImages, manifest: str | Path | None = None, show_progress: bool = True, partial: bool = False
) -> AuditReport:
    """Check every image of a data set, and what its samples share.

    Each file is hashed and decoded once, by threads; those that may show the same cell are decoded again. An image that
    cannot be read is a finding and stops nothing. The guide "Audit" lists the kinds of findings and their severity. Of
    n equal images all pairs are named up to n = 20, beyond that n - 1 of them.

    Args:
        dataset: Any data set.
        manifest: The files that there should be, for `datasets.verify.read_manifest`; found by the ends of paths.
        show_progress: Whether to show progress.
        partial: Whether files of the manifest may be missing: there is then no finding `missing_file`.

    Returns:
        The report; its `ok` says whether there is no error among the findings.

    Raises:
        DataError: If the manifest cannot be read or is none. It is read before the images.
    """
    from leukemia_dl.datasets.verify import read_manifest

    expected = None if manifest is None else read_manifest(manifest)
    table = dataset.table
    paths: list[str | None] = [path if isinstance(path, str) else None for path in table["path"]]
    # First, so that files that are no images are still compared.
    of_files = [row for row, path in enumerate(paths) if path is not None]
    hashes = dict(zip(of_files, tried_hashes([str(paths[row]) for row in of_files], show_progress), strict=True))
    looks = parallel_map(
        lambda row: _look(dataset, row, paths[row], hashes.get(row)), range(len(paths)), "Auditing images",
        show=show_progress,
    )  # fmt: skip
    rows = [{"sample": name, **values} for name, (values, _) in zip(table["sample"], looks, strict=True)]
    images = pd.DataFrame(rows, columns=list(_IMAGE_TYPES), dtype=object).astype(_IMAGE_TYPES)
    contents = [values.get("sha256") for values, _ in looks]
    counts = _counts(dataset)
    found = [*_single_images(table, images), *_equal_images(dataset, table, contents, [key for _, key in looks])]
    found += _balance(table, counts)
    if expected is not None:
        found += _compare(dict(zip(expected["path"], expected["sha256"], strict=True)), paths, contents, partial)
    found.sort(key=lambda one: SEVERITIES.index(one.severity))
    findings = pd.DataFrame(found, columns=list(_Finding._fields), dtype=object)
    for column in ("sample", "other"):
        findings[column] = findings[column].map(table["sample"].to_dict())
    columns = ["kind", "severity", "sample", "other", "detail"]
    return AuditReport(dataset.info.name, findings[columns].astype(TEXT), images, counts)


def _look(
    dataset: AuditedImages, row: int, path: str | None, content: str | DataError | None
) -> tuple[dict[str, Any], CellKey | None]:
    """Return the values of an image for the frame, and the key of its cell."""
    values: dict[str, Any] = {"readable": False, "problem": ""}
    try:
        if isinstance(content, DataError):
            raise content
        values["sha256"] = content
        pixels = dataset.decode(row)
        values["mode"] = "RGB"
        if path is None:
            values["sha256"] = array_hash(pixels)
        else:
            with Image.open(path, formats=FORMATS) as image:
                values["mode"] = image.mode
        key = cell_key(pixels)
        values |= {"height": pixels.shape[0], "width": pixels.shape[1], **measure_quality(pixels), "readable": True}
        values |= {"nearly_black": bool(pixels.max() <= _BLACK), "single_cell": key is not None}
        return values, key
    except DataError as error:
        reason = str(error)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = f"Cannot read the image {path}: {getattr(error, 'strerror', None) or error}."
    return {**values, "mode": pd.NA, "problem": reason}, None


def _single_images(table: pd.DataFrame, images: pd.DataFrame) -> Iterator[_Finding]:
    for row in np.flatnonzero(~images["readable"]):
        yield _Finding("unreadable", "error", str(images["problem"].iloc[row]), int(row))
    sizes = images["height"].astype(str) + " x " + images["width"].astype(str)
    splits = table["split"].fillna("")
    for split in splits.unique():
        inside = sizes[(splits == split) & images["readable"]]
        where = f" of {split}" if split else ""
        rule, others = _odd(inside)
        for odd in others:
            yield _Finding("odd_size", "warning", f"{inside[odd]} (height x width); nearly all{where} are {rule}", odd)
        if rule is None and len(inside):
            most = inside.value_counts()
            share = f"{most.iloc[0]:,} of {len(inside):,} are {most.index[0]}"
            text = f"the images{where} have {len(most):,} sizes (height x width): {share}"
            yield _Finding("mixed_sizes", "note", text)
    rule, others = _odd(images["mode"])
    for odd in others:
        yield _Finding("odd_mode", "warning", f"stored as {images['mode'][odd]}; nearly all are {rule}", odd)
    visible = ~images["blank"]
    for kind, severity, flagged, text in (
        ("blank", "warning", images["blank"], "all of it is nearly one grey"),
        ("nearly_black", "warning", images["nearly_black"] & visible,
         f"no level above {_BLACK} of 255, as of 12 bits in a 16-bit file"),
        ("no_cell", "note", images["empty_mask"] & visible,
         "no cell is found in it; grey images have no colour to find one by"),
    ):  # fmt: skip
        for row in np.flatnonzero(flagged.fillna(False)):
            yield _Finding(kind, severity, text, int(row))


def _odd(values: pd.Series[Any]) -> tuple[str | None, list[int]]:
    """Return the value that nearly all have, None if there is none, and the rows that have another."""
    values = values.dropna()
    shares = values.value_counts(normalize=True)
    if not len(shares) or shares.iloc[0] < _MAJORITY:
        return None, []
    rule = str(shares.index[0])
    return rule, [int(row) for row in values.index[values != rule]]


def _equal_images(
    dataset: AuditedImages, table: pd.DataFrame, contents: list[str | None], keys: list[CellKey | None]
) -> Iterator[_Finding]:
    """Yield the pairs of identical files, and of files that differ and show the same cell."""
    known = table[["label", "split", "fold", "subject", "group"]].astype(object)
    values = known.where(known.notna(), None).to_dict("records")
    of_content: dict[str, list[int]] = {}
    for row, content in enumerate(contents):
        if content is not None:
            of_content.setdefault(content, []).append(row)
    for rows in of_content.values():
        for one, two in _pairs(table, rows):
            text = f"one of {len(rows)} equal files" if len(rows) > 2 else ""
            yield _pair("identical_files", one, two, values, text)
    for same in same_cells(keys, contents, dataset.decode):
        for one, two in _pairs(table, same):
            if contents[one] != contents[two] and (like := likeness_of_rows(dataset.decode, one, two)) is not None:
                text = f"the masks overlap by {like.overlap:.4f}, the mean difference is {like.difference:.3f}"
                yield _pair("same_cell", one, two, values, text)


def _pairs(table: pd.DataFrame, rows: list[int]) -> Iterator[tuple[int, int]]:
    if len(rows) <= _ALL_PAIRS:
        return itertools.combinations(rows, 2)
    # Neighbours in this order: where labels, sides or folds differ within the set, two neighbours differ in something.
    order = table.iloc[rows].sort_values(["label", "split", "fold", "group"]).index
    return itertools.pairwise(int(row) for row in order)


def _pair(kind: str, one: int, two: int, known: list[dict[Any, Any]], likeness: str) -> _Finding:
    """Return the finding of two equal images, with the boundaries that they cross."""
    first, second = known[one], known[two]
    crossed = {
        column: f"{column}s {first[column]} and {second[column]}"
        for column in first
        if first[column] is not None and second[column] is not None and first[column] != second[column]
    }
    severe = {"label", "split", "fold"} | ({"group"} if kind == "same_cell" else set())
    severity = "error" if severe & set(crossed) else "warning" if crossed else "note"
    if "subject" in crossed and crossed.get("group", "") == crossed["subject"].replace("subject", "group"):
        del crossed["group"]
    detail = f"crosses {', '.join(crossed.values())}" if crossed else "no known difference of label, side or patient"
    return _Finding(kind, severity, f"{detail}; {likeness}" if likeness else detail, one, two)


def _counts(dataset: AuditedImages) -> pd.DataFrame:
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
    for key, number in declared.items():  # absent from the data, or nothing that is counted
        of, name = ("fold", key[5:]) if key.startswith("fold ") else ("split" if key in SPLITS else "other", key)
        rows.append((of, name, pd.NA if of == "other" else 0, number, 0, 0))
    columns = ["of", "name", "count", "declared", "subjects", "groups"]
    return pd.DataFrame(rows, columns=columns).astype({"count": "Int64", "declared": "Int64"})


def _balance(table: pd.DataFrame, counts: pd.DataFrame) -> Iterator[_Finding]:
    differs = (counts["count"] != counts["declared"]).fillna(False)
    for row in counts[differs].to_dict("records"):
        what = row["name"] if row["of"] in ("total", "split") else f"{row['of']} {row['name']}"
        yield _Finding("count", "warning", f"{what}: {row['count']:,} are there, {row['declared']:,} are declared")
    for row in counts[counts["of"] == "class"].to_dict("records"):
        name, images, groups = row["name"], row["count"], row["groups"]
        if images < _FEW_IMAGES:
            yield _Finding("few_images", "warning", f"class {name}: {images} images, fewer than {_FEW_IMAGES}")
        if 0 < groups < _FEW_GROUPS:
            text = f"class {name}: {groups} groups of subjects, fewer than {_FEW_GROUPS}: no interval can be narrow"
            yield _Finding("few_subjects", "warning", text)
    labelled = table[table["label"].notna()]
    alone = int(labelled["group"].isna().sum())
    if alone:
        text = f"{alone:,} of {len(labelled):,} labelled images have no subject: patients cannot be kept apart"
        yield _Finding("no_subjects", "note", text)
    for subject, labels in labelled.groupby("subject")["label"]:
        if labels.nunique() > 1:
            numbers = ", ".join(f"{n:,} {label}" for label, n in labels.value_counts().items())
            yield _Finding("subject_of_several_classes", "note", f"subject {subject} has {numbers}")


def _compare(
    hashes: Mapping[str, str], paths: list[str | None], contents: list[str | None], partial: bool
) -> Iterator[_Finding]:
    """Find each file in the manifest by the end of its path; the manifest's outermost folder may have another name."""
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
            yield _Finding("not_in_manifest", "warning", "the manifest does not name this file", row)
            continue
        missing.discard(name)
        if contents[row] not in (None, hashes[name]):
            yield _Finding("other_content", "error", f"its SHA-256 is not that of {name} in the manifest", row)
    for name in () if partial else sorted(missing):
        yield _Finding("missing_file", "error", f"{name} is in the manifest, but not in the data set")
