"""Problems of a data set: damaged, odd, blank and repeated images, counts that differ, unknown patients."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl.datasets.cache import array_hash, tried_hashes
from leukemia_dl.datasets.pixels import Images
from leukemia_dl.datasets.table import SPLITS, TEXT, count_rows, differing_counts
from leukemia_dl.errors import DataError
from leukemia_dl.preprocess.decode import FORMATS
from leukemia_dl.preprocess.foreground import bounding_box, foreground_mask, is_single_cell
from leukemia_dl.preprocess.quality import MEASURES, measure_quality
from leukemia_dl.progress import parallel_map
from leukemia_dl.text import counted, printable

__all__ = ["AuditReport", "audit"]

_SEVERITIES = ("error", "warning", "note")
_SHOWN, _ALL_PAIRS = 3, 20
_BLACK = 16  # the highest level that 12 bits reach in 16, as 8 bits
_COPIES = "copies of an image that were turned, mirrored, recoloured, resized or stored again with loss"
_OTHERS = "one cell in files that differ, where images are not single cells on exactly black background"
_IMAGE_TYPES: dict[str, Any] = {
    "sample": TEXT, "readable": "bool", "height": "Int64", "width": "Int64", "mode": TEXT, "nearly_black": "boolean",
    "single_cell": "boolean", **MEASURES, "sha256": TEXT, "problem": TEXT,
}  # fmt: skip
# One cell in two files: intersection over union of the masks, mean difference of the pixels in both masks. The colours
# on a grid then differ by less than 1 inside both masks, by at most 255 in the 0.5% outside one, and by rounding.
_OVERLAP, _DIFFERENCE, _GRID, _GRID_DIFFERENCE = 0.995, 1.0, 8, 4.0


class _Finding(NamedTuple):
    kind: str
    severity: str
    sample: int | None  # the row of an image, and of the other one of a pair
    other: int | None
    detail: str


class _CellKey(NamedTuple):
    height: int  # of the cell's box, in pixels
    width: int
    area: int
    colours: NDArray[np.uint8]  # on a grid, (192,)


@dataclass(frozen=True, eq=False, repr=False)
class AuditReport:
    """The result of `audit`. `print(report)` gives a summary.

    Attributes:
        name: Of the data set.
        findings: A row per finding, the severest first: `kind`; `severity` ("error", "warning", "note"); `sample`,
            NA where it is about no single image; `other`, the second sample of a pair, else NA; `detail`.
        images: A row per image, in row order: `sample`, `readable`, `height` and `width` in pixels, `mode` (Pillow's),
            `nearly_black` (no level above 16 of 255), `single_cell` (cut out on black); the columns of
            `measure_quality`, `sha256` of the file and `problem`; NA if not known.
        counts: `of` ("total", "class", "split", "fold"), `name`, `count`, `declared` (NA: authors give no number).
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
        return (_COPIES, f"{_OTHERS} ({others:,} of {len(self.images):,} images)") if others else (_COPIES,)

    def __str__(self) -> str:
        numbers = [counted(int((self.findings["severity"] == severity).sum()), severity) for severity in _SEVERITIES]
        lines = [f"Audit of {self.name!r}: {len(self.images):,} images, {', '.join(numbers)}"]
        for (severity, kind), rows in self.findings.groupby(["severity", "kind"], sort=False):
            lines.append(f"  {severity}: {kind}, {len(rows):,}")
            for row in rows.head(_SHOWN).itertuples():
                samples = " = ".join(str(name) for name in (row.sample, row.other) if name is not pd.NA)
                lines.append(f"    {samples}: {row.detail}" if samples else f"    {row.detail}")
            lines += [f"    and {len(rows) - _SHOWN:,} more"] * (len(rows) > _SHOWN)
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


def audit(dataset: Images, show_progress: bool = True) -> AuditReport:
    """Return the problems of every image of a `dataset`, and of what its samples share; `show_progress` shows a bar.

    Each file is hashed and decoded once, by threads; those that may show the same cell are decoded again. An image that
    cannot be read is a finding and stops nothing. Of up to 20 equal images all pairs are named, of more n - 1.
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
    data = images.join(table[["label", "split", "fold", "subject", "group"]].astype(object))
    same = same_cells([key for _, key in inspected], list(data["sha256"]), dataset.decode)
    found = [*_flagged(data), *_odd("odd_mode", "stored as " + data["mode"].dropna())]
    sizes = (data["height"].astype(str) + " x " + data["width"].astype(str) + " (height x width)")[data["readable"]]
    for split, inside in sizes.groupby(data["split"].fillna(""), sort=False):
        found += _odd("odd_size", inside, f" of {split}" if split else "")
    found += [*_pairs(data, same), *_subjects(data)]
    found += [_Finding("count", "warning", None, None, text) for text in differing_counts(table, dataset.info.declared)]
    found.sort(key=lambda one: _SEVERITIES.index(one.severity))
    findings = pd.DataFrame(found, columns=list(_Finding._fields), dtype=object)
    for column in ("sample", "other"):
        findings[column] = findings[column].map(table["sample"].to_dict())
    return AuditReport(dataset.info.name, findings.astype(TEXT), images, _counts(dataset))


def _inspect(
    dataset: Images, row: int, path: str | None, content: str | DataError | None
) -> tuple[dict[str, Any], _CellKey | None]:
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


def _counts(dataset: Images) -> pd.DataFrame:
    table, declared = dataset.table, dict(dataset.info.declared)
    found = count_rows(table) | {"unlabelled": int(table["label"].isna().sum())}
    rows = []
    for name in dict.fromkeys(["images", "subjects", "unlabelled", *dataset.class_names, *found, *declared]):
        of = "class" if name in dataset.class_names else "split" if name in SPLITS else "total"
        of = "fold" if name.startswith("fold ") else of
        rows.append((of, name.removeprefix("fold "), found.get(name, 0), declared.get(name, pd.NA)))
    counts = pd.DataFrame(rows, columns=["of", "name", "count", "declared"])
    return counts.astype({"count": "Int64", "declared": "Int64"})


def _flagged(data: pd.DataFrame) -> Iterator[_Finding]:
    visible = ~data["blank"]
    grey = "no cell is found in it; grey images have no colour to find one by"
    dark = f"no level above {_BLACK} of 255, as of 12 bits in a 16-bit file"
    for kind, severity, flagged, text in (
        ("unreadable", "error", ~data["readable"], ""),
        ("blank", "warning", data["blank"], "all of it is nearly one grey"),
        ("nearly_black", "warning", data["nearly_black"] & visible, dark),
        ("no_cell", "note", data["empty_mask"] & visible, grey),
    ):
        for row in np.flatnonzero(flagged.fillna(False)):
            yield _Finding(kind, severity, int(row), None, text or str(data["problem"].iloc[row]))


def _odd(kind: str, values: pd.Series[Any], where: str = "") -> Iterator[_Finding]:
    most = values.value_counts()
    if len(most) and most.iloc[0] / len(values) >= 0.9:
        for row in values.index[values != most.index[0]]:
            text = f"{values[row]}; nearly all{where} are {most.index[0]}"
            yield _Finding(kind, "warning", int(row), None, text)
    elif len(most) and kind == "odd_size":
        share = f"{most.iloc[0]:,} of {len(values):,} are {most.index[0]}"
        yield _Finding("mixed_sizes", "note", None, None, f"the images{where} have {len(most):,} sizes: {share}")


def _pairs(data: pd.DataFrame, same: list[list[int]]) -> Iterator[_Finding]:
    known = data[["label", "split", "fold", "subject", "group"]].astype(object)
    rows_of = known.where(known.notna(), None).to_dict("records")
    repeated = data[data["sha256"].duplicated(keep=False)].groupby("sha256", sort=False)
    sets = [("identical_files", rows) for _, rows in repeated] + [("same_cell", data.iloc[rows]) for rows in same]
    for kind, rows in sets:
        # Of a large set only neighbours: where labels, sides or folds differ, two neighbours differ in something.
        ordered = rows.sort_values(["label", "split", "fold", "group"]).index
        paired = itertools.combinations(ordered, 2) if len(rows) <= _ALL_PAIRS else itertools.pairwise(ordered)
        for one, two in map(sorted, paired):
            if kind == "same_cell" and data["sha256"][one] == data["sha256"][two]:
                continue
            first, second = rows_of[one], rows_of[two]
            differ = [name for name in first if None not in (first[name], second[name]) and first[name] != second[name]]
            crossed = {name: f"{name}s {first[name]} and {second[name]}" for name in differ}
            severe = crossed.keys() & ({"label", "split", "fold"} | ({"group"} if kind == "same_cell" else set()))
            if "subject" in crossed and crossed.get("group", "") == crossed["subject"].replace("subject", "group"):
                del crossed["group"]
            texts = ", ".join(crossed.values())
            detail = f"crosses {texts}" if crossed else "no known difference of label, side or patient"
            yield _Finding(kind, "error" if severe else "warning" if crossed else "note", int(one), int(two), detail)


def _subjects(data: pd.DataFrame) -> Iterator[_Finding]:
    labelled = data[data["label"].notna()]
    if alone := int(labelled["group"].isna().sum()):
        text = f"{alone:,} of {len(labelled):,} labelled images have no subject: patients cannot be kept apart"
        yield _Finding("no_subjects", "note", None, None, text)
    for subject, labels in labelled.groupby("subject")["label"]:
        if labels.nunique() > 1:
            numbers = ", ".join(f"{n:,} {label}" for label, n in labels.value_counts().items())
            yield _Finding("subject_of_several_classes", "note", None, None, f"subject {subject} has {numbers}")


def cell_key(image: NDArray[np.uint8]) -> _CellKey | None:
    """Return a summary of the cell in an image, uint8 (h, w, 3); None if it is no single cell on exactly black."""
    if (cell := _cut_out(image)) is None:
        return None
    grid = Image.fromarray(cell).resize((_GRID, _GRID), Image.Resampling.BOX)
    return _CellKey(cell.shape[0], cell.shape[1], int(cell.any(axis=2).sum()), np.asarray(grid).ravel())


def same_cell(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> bool:
    """Return whether two images, uint8 (h, w, 3), show the same cell, wherever it lies in them."""
    first, second = _cut_out(one), _cut_out(two)
    if first is None or second is None or first.shape != second.shape:
        return False
    lit, also = first.any(axis=2), second.any(axis=2)
    both = lit & also
    differences = np.abs(first[both].astype(np.int16) - second[both])
    return bool(both.sum() > _OVERLAP * (lit | also).sum() and differences.mean() < _DIFFERENCE)


def same_cells(
    keys: Sequence[_CellKey | None], contents: Sequence[str | None], decode: Callable[[int], NDArray[np.uint8]]
) -> list[list[int]]:
    """Return the sets of rows that show the same cell in at least two contents, equal for identical files.

    Of each content one image is compared, and decoded again only where the keys are nearly equal, with the first of
    each set that was found so far.
    """
    pixels, known = functools.lru_cache(16)(decode), {row: key for row, key in enumerate(keys) if key is not None}
    rows_of, boxes = dict[str | None, list[int]](), dict[tuple[int, int], list[int]]()
    for row in known:
        rows_of.setdefault(contents[row], []).append(row)
    for row, *_ in rows_of.values():
        boxes.setdefault(known[row][:2], []).append(row)
    found: list[list[int]] = []
    for rows in boxes.values():
        areas = np.array([known[row].area for row in rows])
        colours = np.stack([known[row].colours for row in rows]).astype(np.int16)
        sets: dict[int, list[int]] = {}  # by the place in `rows` of the first
        for place, row in enumerate(rows):
            heads = list(sets)
            near = np.minimum(areas[place], areas[heads]) >= _OVERLAP * np.maximum(areas[place], areas[heads])
            near &= np.abs(colours[heads] - colours[place]).mean(axis=1) <= _GRID_DIFFERENCE
            likely = (heads[number] for number in np.flatnonzero(near))
            head = next((head for head in likely if same_cell(pixels(rows[head]), pixels(row))), place)
            sets.setdefault(head, []).append(row)
        found += [same for same in sets.values() if len(same) > 1]
    return sorted(sorted(row for one in same for row in rows_of[contents[one]]) for same in found)


def _cut_out(image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return the cell's box, black outside the cell, None if there is no single cell on black."""
    mask = foreground_mask(image, "black") if is_single_cell(image) else np.zeros(image.shape[:2], bool)
    if (box := bounding_box(mask)) is None:
        return None
    window = (slice(box[0], box[2]), slice(box[1], box[3]))
    return np.where(mask[window][:, :, None], image[window], np.uint8(0))
