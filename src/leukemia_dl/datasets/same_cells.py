"""The same cell in files that differ: found by small keys that are kept of every image, shown by its pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl.preprocess.foreground import bounding_box, foreground_mask, is_single_cell

__all__ = ["CellKey", "cell_key", "likeness", "same_cells"]

_OVERLAP, _DIFFERENCE, _GRID = 0.995, 1.0, 8
# Equal cells differ by less than 1 inside both masks, by at most 255 in the 0.5% outside one of them, and by rounding.
_GRID_DIFFERENCE = 4.0


class CellKey(NamedTuple):
    """A summary of a cell: its box and area in pixels, and its colours on a grid, uint8 (192,)."""

    height: int
    width: int
    area: int
    colours: NDArray[np.uint8]


def cell_key(image: NDArray[np.uint8]) -> CellKey | None:
    """Return the key of an image, uint8 (h, w, 3); None if it is no single cell on exactly black background."""
    cell = _cut_out(image)
    if cell is None:
        return None
    grid = Image.fromarray(cell).resize((_GRID, _GRID), Image.Resampling.BOX)
    return CellKey(cell.shape[0], cell.shape[1], int(cell.any(axis=2).sum()), np.asarray(grid).ravel())


def likeness(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> tuple[float, float] | None:
    """Return overlap and difference of two images, uint8 (h, w, 3), that show the same cell, wherever it lies; or None.

    The same cell: boxes of one size, masks with an intersection over union above 0.995, and pixels in both masks that
    differ by less than one grey level on average.
    """
    first, second = _cut_out(one), _cut_out(two)
    if first is None or second is None or first.shape != second.shape:
        return None
    lit, also = first.any(axis=2), second.any(axis=2)
    both = lit & also
    overlap = float(both.sum() / (lit | also).sum())
    if overlap <= _OVERLAP:
        return None
    difference = float(np.abs(first[both].astype(np.int16) - second[both]).mean())
    return (overlap, difference) if difference < _DIFFERENCE else None


def same_cells(
    keys: Sequence[CellKey | None], contents: Sequence[str | None], decode: Callable[[int], NDArray[np.uint8]]
) -> list[list[int]]:
    """Return the sets of rows that show the same cell in at least two contents, equal for identical files.

    Of each content one image is compared, and decoded again only where the keys are nearly equal, with the first of
    each set that was found so far.
    """
    pixels = functools.lru_cache(maxsize=16)(decode)
    rows_of: dict[str | None, list[int]] = {}
    known = {row: key for row, key in enumerate(keys) if key is not None}
    for row in known:
        rows_of.setdefault(contents[row], []).append(row)
    boxes: dict[tuple[int, int], list[int]] = {}
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
            head = next((head for head in likely if likeness(pixels(rows[head]), pixels(row))), place)
            sets.setdefault(head, []).append(row)
        found += [same for same in sets.values() if len(same) > 1]
    return sorted(sorted(row for one in same for row in rows_of[contents[one]]) for same in found)


def _cut_out(image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return the cell's box, black outside the cell, None if there is no single cell on black."""
    if not is_single_cell(image):
        return None
    mask = foreground_mask(image, "black")
    box = bounding_box(mask)
    if box is None:
        return None
    window = (slice(box[0], box[2]), slice(box[1], box[3]))
    return np.where(mask[window][:, :, None], image[window], np.uint8(0))
