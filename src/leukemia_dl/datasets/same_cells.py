"""The same cell in files that differ: found by small keys that are kept of every image, shown by its pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl.errors import ImageError
from leukemia_dl.preprocess.foreground import bounding_box, foreground_mask, is_single_cell

__all__ = ["CellKey", "Likeness", "cell_key", "likeness", "likeness_of_rows", "same_cells"]

_OVERLAP, _DIFFERENCE, _GRID = 0.995, 1.0, 8
# Equal cells differ by less than 1 inside both masks, by at most 255 in the 0.5% outside one of them, and by rounding.
_GRID_DIFFERENCE = 4.0
_Decode = Callable[[int], NDArray[np.uint8]]


class CellKey(NamedTuple):
    """A summary of a cell: its box and area in pixels, and its colours on a grid, uint8 (192,)."""

    height: int
    width: int
    area: int
    colours: NDArray[np.uint8]


class Likeness(NamedTuple):
    """Overlap of two masks (intersection over union), and mean difference in both, in grey levels."""

    overlap: float
    difference: float


def cell_key(image: NDArray[np.uint8]) -> CellKey | None:
    """Return the key of an image, uint8 (h, w, 3); None if it is no single cell on exactly black background."""
    cell = _cut_out(image)
    if cell is None:
        return None
    height, width = cell.shape[:2]
    grid = Image.fromarray(cell).resize((_GRID, _GRID), Image.Resampling.BOX)
    return CellKey(height, width, int(cell.any(axis=2).sum()), np.asarray(grid).ravel())


def likeness(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> Likeness | None:
    """Return the likeness of two images, uint8 (h, w, 3), if they show the same cell, wherever it lies; else None.

    The same cell: boxes of one size, masks that overlap by more than 0.995, a mean difference below one grey level.
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
    return Likeness(overlap, difference) if difference < _DIFFERENCE else None


def likeness_of_rows(decode: _Decode, one: int, two: int) -> Likeness | None:
    """Return the likeness of two rows; None also if one of them can no longer be decoded."""
    try:
        return likeness(decode(one), decode(two))
    except ImageError:
        return None


def same_cells(keys: Sequence[CellKey | None], contents: Sequence[str | None], decode: _Decode) -> list[list[int]]:
    """Find the images that show the same cell in files that differ.

    Only cells whose keys are nearly equal are decoded again, and compared with the first of each set that was found so
    far. `contents` are equal for identical files, None if not known. The sets of rows have at least two contents.
    """
    boxes: dict[tuple[int, int], list[tuple[int, CellKey]]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            boxes.setdefault(key[:2], []).append((row, key))
    found = [rows for cells in boxes.values() if len(cells) > 1 for rows in _sets(cells, contents, decode)]
    return sorted(rows for rows in found if len({contents[row] for row in rows}) > 1)


def _sets(cells: list[tuple[int, CellKey]], contents: Sequence[str | None], decode: _Decode) -> list[list[int]]:
    """Return the sets of rows that show one cell; `cells` have boxes of one size."""
    pixels = functools.lru_cache(maxsize=16)(decode)
    areas = np.array([key.area for _, key in cells])
    colours = np.stack([key.colours for _, key in cells]).astype(np.int16)
    sets: list[list[int]] = []
    heads: list[int] = []  # the first of each set, as a position in `cells`
    of_content: dict[str | None, list[int]] = {}
    for position, (row, _) in enumerate(cells):
        content = contents[row]
        home = None if content is None else of_content.get(content)
        if home is None:
            size, sizes = areas[position], areas[heads]
            near = np.minimum(size, sizes) >= _OVERLAP * np.maximum(size, sizes)
            near &= np.abs(colours[heads] - colours[position]).mean(axis=1) <= _GRID_DIFFERENCE
            alike = (n for n in np.flatnonzero(near) if likeness_of_rows(pixels, cells[heads[n]][0], row) is not None)
            match = next(alike, None)
            if match is None:
                sets.append([])
                heads.append(position)
            home = sets[-1 if match is None else match]
        home.append(row)
        of_content[content] = home
    return sets


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
