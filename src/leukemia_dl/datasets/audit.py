"""Problems of a data set: damaged, odd, blank and repeated images, small classes, counts that differ."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl.datasets.cache import array_hash, tried_hashes
from leukemia_dl.datasets.pixels import Images
from leukemia_dl.datasets.same_cells import CellKey, cell_key, likeness, same_cells
from leukemia_dl.datasets.table import SPLITS, TEXT
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import FORMATS
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
        found = [(severity, int((self.findings["severity"] == severity).sum())) for severity in SEVERITIES]
        numbers = ", ".join(f"{number:,} {severity}{'' if number == 1 else 's'}" for severity, number in found)
        return f"{self.name!r}: {len(self.images):,} images, {numbers}"


def audit(dataset: Images, show_progress: bool = True) -> AuditReport:
    """Check every image of a data set, and what its samples share.

    Each file is hashed and decoded once, by threads; those that may show the same cell are decoded again. An image that
    cannot be read is a finding and stops nothing. The guide "Audit" lists the kinds of findings and their severity. Of
    n equal images all pairs are named up to n = 20, beyond that n - 1 of them.

    Args:
        dataset: Any data set.
        show_progress: Whether to show progress.

    Returns:
        The report; its `ok` says whether there is no error among the findings.
    """
    table = dataset.table
    of_files = table["path"].dropna()
    hashes = dict(zip(of_files.index, tried_hashes(list(of_files), show_progress), strict=True))
    inspected = parallel_map(
        lambda row: _inspect(dataset, row, of_files.get(row), hashes.get(row)), range(len(table)), "Auditing images",
        show=show_progress,
    )  # fmt: skip
    rows = [{"sample": name, **values} for name, (values, _) in zip(table["sample"], inspected, strict=True)]
    images = pd.DataFrame(rows, columns=list(_IMAGE_TYPES), dtype=object).astype(_IMAGE_TYPES)
    keys, decode = [key for _, key in inspected], dataset.decode
    data = images.join(table[["label", "split", "fold", "subject", "group"]].astype(object))
    counts = _counts(dataset, table)
    found = [*_flagged(data), *_odd_sizes(data), *_odd("odd_mode", "stored as " + data["mode"].dropna())]
    found += [*_equal_images(data, keys, decode), *_other_counts(counts), *_small_classes(counts), *_subjects(data)]
    found.sort(key=lambda one: SEVERITIES.index(one.severity))
    findings = pd.DataFrame(found, columns=list(_Finding._fields), dtype=object)
    for column in ("sample", "other"):
        findings[column] = findings[column].map(table["sample"].to_dict())
    columns = ["kind", "severity", "sample", "other", "detail"]
    return AuditReport(dataset.info.name, findings[columns].astype(TEXT), images, counts)


def _inspect(
    dataset: Images, row: int, path: str | None, content: str | DataError | None
) -> tuple[dict[str, Any], CellKey | None]:
    """Return the values of an image for the frame, and the key of its cell."""
    values: dict[str, Any] = {"readable": False, "problem": ""}
    try:
        if isinstance(content, DataError):
            raise content
        values["sha256"] = content  # first, so that files that are no images are still compared
        pixels, mode = dataset.decode(row), "RGB"
        if path is None:
            values["sha256"] = array_hash(pixels)
        else:
            with Image.open(path, formats=FORMATS) as image:
                mode = image.mode
    except (DataError, OSError) as error:
        return values | {"problem": str(error)}, None
    key = cell_key(pixels)
    values |= {"readable": True, "height": pixels.shape[0], "width": pixels.shape[1], "mode": mode}
    values |= {"nearly_black": bool(pixels.max() <= _BLACK), "single_cell": key is not None}
    return values | measure_quality(pixels), key


def _counts(dataset: Images, table: pd.DataFrame) -> pd.DataFrame:
    """Return how many images, subjects and groups there are of everything that authors may declare."""
    declared, nothing = dict(dataset.info.declared), table.iloc[:0]
    parts = {("total", name): table for name in ("images", "subjects")}
    parts |= {("total", "unlabelled"): table[table["label"].isna()]}
    parts |= {("class", name): nothing for name in dataset.class_names}
    for of, column in (("class", "label"), ("split", "split"), ("fold", "fold"), ("subject", "subject")):
        parts |= {(of, str(name)): part for name, part in table.groupby(column)}
    for key in declared:  # absent from the data
        if key.startswith("fold ") or key in SPLITS:
            parts.setdefault(("fold", key[5:]) if key.startswith("fold ") else ("split", key), nothing)
    rows = []
    for (of, name), part in parts.items():
        people = {"subjects": part["subject"].nunique(), "groups": part["group"].nunique()}
        count = people["subjects"] if (of, name) == ("total", "subjects") else len(part)
        number = pd.NA if of == "subject" else declared.get(f"fold {name}" if of == "fold" else name, pd.NA)
        rows.append({"of": of, "name": name, "count": count, "declared": number, **people})
    return pd.DataFrame(rows).astype({"count": "Int64", "declared": "Int64"})


def _flagged(data: pd.DataFrame) -> Iterator[_Finding]:
    visible = ~data["blank"]
    for kind, severity, flagged, text in (
        ("unreadable", "error", ~data["readable"], ""),
        ("blank", "warning", data["blank"], "all of it is nearly one grey"),
        ("nearly_black", "warning", data["nearly_black"] & visible,
         f"no level above {_BLACK} of 255, as of 12 bits in a 16-bit file"),
        ("no_cell", "note", data["empty_mask"] & visible,
         "no cell is found in it; grey images have no colour to find one by"),
    ):  # fmt: skip
        for row in np.flatnonzero(flagged.fillna(False)):
            yield _Finding(kind, severity, text or str(data["problem"].iloc[row]), int(row))


def _odd_sizes(data: pd.DataFrame) -> Iterator[_Finding]:
    data = data[data["readable"]]
    sizes = data["height"].astype(str) + " x " + data["width"].astype(str) + " (height x width)"
    for split, inside in sizes.groupby(data["split"].fillna(""), sort=False):
        yield from _odd("odd_size", inside, f" of {split}" if split else "")


def _odd(kind: str, values: pd.Series[Any], where: str = "") -> Iterator[_Finding]:
    """Yield a finding for each image that has another value than nearly all."""
    most = values.value_counts()
    if len(most) and most.iloc[0] / len(values) >= _MAJORITY:
        for row in values.index[values != most.index[0]]:
            yield _Finding(kind, "warning", f"{values[row]}; nearly all{where} are {most.index[0]}", int(row))
    elif len(most) and kind == "odd_size":
        share = f"{most.iloc[0]:,} of {len(values):,} are {most.index[0]}"
        yield _Finding("mixed_sizes", "note", f"the images{where} have {len(most):,} sizes: {share}")


def _equal_images(
    data: pd.DataFrame, keys: list[CellKey | None], decode: Callable[[int], NDArray[np.uint8]]
) -> Iterator[_Finding]:
    """Yield the pairs of identical files, and of files that differ and show the same cell."""
    known = data[["label", "split", "fold", "subject", "group"]].to_dict("records")
    contents = data["sha256"]
    repeated = data[contents.duplicated(keep=False)].groupby("sha256", sort=False)
    for _, same in repeated:
        for one, two in _pairs(same):
            yield _pair("identical_files", one, two, known, f"one of {len(same)} equal files" if len(same) > 2 else "")
    for rows in same_cells(keys, list(contents), decode):
        for one, two in _pairs(data.iloc[rows]):
            like = None if contents[one] == contents[two] else likeness(decode(one), decode(two))
            if like is not None:
                text = f"the masks overlap by {like[0]:.4f}, the mean difference is {like[1]:.3f}"
                yield _pair("same_cell", one, two, known, text)


def _pairs(same: pd.DataFrame) -> Iterable[tuple[int, int]]:
    if len(same) <= _ALL_PAIRS:
        return itertools.combinations(same.index, 2)
    # Neighbours in this order: where labels, sides or folds differ within the set, two neighbours differ in something.
    return itertools.pairwise(same.sort_values(["label", "split", "fold", "group"]).index)


def _pair(kind: str, one: int, two: int, known: list[dict[Any, Any]], likeness: str) -> _Finding:
    """Return the finding of two equal images, with the boundaries that they cross."""
    first, second = known[one], known[two]
    crossed = {
        column: f"{column}s {first[column]} and {second[column]}"
        for column in first
        if not pd.isna(first[column]) and not pd.isna(second[column]) and first[column] != second[column]
    }
    severe = {"label", "split", "fold"} | ({"group"} if kind == "same_cell" else set())
    severity = "error" if severe & set(crossed) else "warning" if crossed else "note"
    if "subject" in crossed and crossed.get("group", "") == crossed["subject"].replace("subject", "group"):
        del crossed["group"]
    detail = f"crosses {', '.join(crossed.values())}" if crossed else "no known difference of label, side or patient"
    return _Finding(kind, severity, f"{detail}; {likeness}" if likeness else detail, int(one), int(two))


def _other_counts(counts: pd.DataFrame) -> Iterator[_Finding]:
    differs = (counts["count"] != counts["declared"]).fillna(False)
    for row in counts[differs].to_dict("records"):
        what = row["name"] if row["of"] in ("total", "split") else f"{row['of']} {row['name']}"
        yield _Finding("count", "warning", f"{what}: {row['count']:,} are there, {row['declared']:,} are declared")


def _small_classes(counts: pd.DataFrame) -> Iterator[_Finding]:
    for row in counts[counts["of"] == "class"].to_dict("records"):
        name, images, groups = row["name"], row["count"], row["groups"]
        if images < _FEW_IMAGES:
            yield _Finding("few_images", "warning", f"class {name}: {images} images, fewer than {_FEW_IMAGES}")
        if 0 < groups < _FEW_GROUPS:
            text = f"class {name}: {groups} groups of subjects, fewer than {_FEW_GROUPS}: no interval can be narrow"
            yield _Finding("few_subjects", "warning", text)


def _subjects(data: pd.DataFrame) -> Iterator[_Finding]:
    labelled = data[data["label"].notna()]
    alone = int(labelled["group"].isna().sum())
    if alone:
        text = f"{alone:,} of {len(labelled):,} labelled images have no subject: patients cannot be kept apart"
        yield _Finding("no_subjects", "note", text)
    for subject, labels in labelled.groupby("subject")["label"]:
        if labels.nunique() > 1:
            numbers = ", ".join(f"{n:,} {label}" for label, n in labels.value_counts().items())
            yield _Finding("subject_of_several_classes", "note", f"subject {subject} has {numbers}")
