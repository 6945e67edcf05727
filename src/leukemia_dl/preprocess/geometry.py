"""Steps that move pixels: canvas, padding, cropping, resizing. Plain functions, and steps with their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl.checks import real_number, whole_number
from leukemia_dl.errors import ImageError, SettingsError
from leukemia_dl.preprocess.decode import check_image
from leukemia_dl.preprocess.foreground import bounding_box, foreground_mask
from leukemia_dl.preprocess.steps import Step

__all__ = [
    "MAX_SIZE", "METHODS", "CenterOnCanvas", "CropToCell", "PadToSquare", "Resize", "center_on_canvas",
    "checked_size", "crop_to_cell", "pad_to_square", "resize",
]  # fmt: skip

METHODS = ("lanczos", "bilinear")
MAX_SIZE = 4_472
"""Longest side, in pixels, that a step may produce: a square of it has as many pixels as a file may have."""


def center_on_canvas(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Put the middle of an image on the middle of a black canvas, at its scale, exactly: what sticks out is cut off.

    Where the difference is odd, the extra row or column is at the bottom or right, both for cutting and for padding.

    Args:
        image: uint8, (h, w, 3).
        height: Of the canvas, in pixels.
        width: Of the canvas, in pixels.

    Returns:
        uint8, (height, width, 3), a new array.

    Raises:
        SettingsError: If a side is no int from 1 to 4,472.
    """
    check_image(image)
    height, width = checked_size(height), checked_size(width)
    canvas = np.zeros((height, width, 3), np.uint8)
    into_rows, from_rows = _overlap(image.shape[0], height)
    into_columns, from_columns = _overlap(image.shape[1], width)
    canvas[into_rows, into_columns] = image[from_rows, from_columns]
    return canvas


def pad_to_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `image`, uint8 (h, w, 3), on a black square: uint8 (max(h, w), max(h, w), 3), in its middle, a new array.

    Raises:
        ImageError: If the longer side is over 4,472 pixels: the square of a thin strip may not fit into memory.
    """
    size = _bounded(max(check_image(image).shape[:2]))
    return center_on_canvas(image, size, size)


def crop_to_cell(image: NDArray[np.uint8], margin: float = 0.1) -> NDArray[np.uint8]:
    """Crop to the square around the cell (`foreground_mask`), at its scale; what lies outside the image is black.

    Args:
        image: uint8, (h, w, 3).
        margin: What is left around the cell on each side, as a share of the longer side of its bounding box, 0 to 10.

    Returns:
        uint8, (side, side, 3), a new array. Without any cell: the image padded to a square.

    Raises:
        ImageError: If `side` would be over 4,472 pixels.
        SettingsError: For another margin.
    """
    margin = _checked_margin(margin)
    box = bounding_box(foreground_mask(image))
    if box is None:
        return pad_to_square(image)
    top, left, bottom, right = box
    longer = max(bottom - top, right - left)
    side = _bounded(longer + 2 * round(margin * longer))
    top, left = (top + bottom - side) // 2, (left + right - side) // 2
    square = np.zeros((side, side, 3), np.uint8)
    seen = image[max(top, 0) : top + side, max(left, 0) : left + side]
    below, across = max(-top, 0), max(-left, 0)
    square[below : below + seen.shape[0], across : across + seen.shape[1]] = seen
    return square


def resize(image: NDArray[np.uint8], height: int, width: int, method: str = "lanczos") -> NDArray[np.uint8]:
    """Resize an image; at the same size it is returned as it is (a copy).

    Args:
        image: uint8, (h, w, 3).
        height: Wanted, in pixels.
        width: Wanted, in pixels.
        method: `"lanczos"` is Pillow's, antialiased. `"bilinear"` takes the four nearest pixels around each half-pixel
            centre and is NOT antialiased: when shrinking, it skips pixels. That is what `tf.image.resize` and Keras's
            `image_dataset_from_directory` do by default; it is here to repeat results that were made so.

    Returns:
        uint8, (height, width, 3), a new array.

    Raises:
        SettingsError: If a side is no int from 1 to 4,472, or there is no such method.
    """
    check_image(image)
    height, width = checked_size(height), checked_size(width)
    _check_method("resize", method)
    if image.shape[:2] == (height, width):
        return image.copy()
    if method == "bilinear":
        return _four_nearest(image, height, width)
    return _lanczos(image, height, width)


@dataclass(frozen=True)
class CenterOnCanvas(Step):
    """Crop or pad with black to a square canvas around the middle, so that cells keep their absolute size.

    Attributes:
        size: Side of the canvas in pixels. 450 is that of C-NMC 2019's training images; its final test files of 600
            pixels are at the same scale.
    """

    size: int = 450

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", checked_size(self.size))

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply `center_on_canvas`: uint8 (h, w, 3) to uint8 (size, size, 3)."""
        done = check_image(image).shape[:2] == (self.size, self.size)
        return image if done else center_on_canvas(image, self.size, self.size)

    def size_after(self, size: int | None) -> int | None:
        """Return `self.size`."""
        return self.size


@dataclass(frozen=True)
class PadToSquare(Step):
    """Pad the shorter side with black, so that a later resize does not distort."""

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply `pad_to_square`: uint8 (h, w, 3) to uint8 (max(h, w), max(h, w), 3)."""
        height, width = check_image(image).shape[:2]
        return image if height == width else pad_to_square(image)


@dataclass(frozen=True)
class CropToCell(Step):
    """Crop to a square around the cell. A later resize then gives every cell the same size: only by choice.

    On C-NMC 2019 size alone reaches a balanced accuracy of .67 to .77. A net that sees cropped cells cannot use it;
    `Pipeline.scale(image)` gives the factor for each image.

    Attributes:
        margin: What is left around the cell on each side, as a share of the longer side of its box, from 0 to 10.
    """

    margin: float = 0.1
    keeps_scale: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "margin", _checked_margin(self.margin))

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply `crop_to_cell`: uint8 (h, w, 3) to uint8 (side, side, 3)."""
        return crop_to_cell(image, self.margin)

    def size_after(self, size: int | None) -> int | None:
        """Return None: it depends on the cell."""
        return None


@dataclass(frozen=True)
class Resize(Step):
    """Resize to a square, whatever the shape before.

    Attributes:
        size: Side in pixels.
        method: `"lanczos"` (antialiased) or `"bilinear"` (not antialiased, as Keras does); see `resize`.
    """

    size: int
    method: str = "lanczos"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", checked_size(self.size))
        _check_method("Resize", self.method)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply `resize`: uint8 (h, w, 3) to uint8 (size, size, 3)."""
        done = check_image(image).shape[:2] == (self.size, self.size)
        return image if done else resize(image, self.size, self.size, self.method)

    def size_after(self, size: int | None) -> int | None:
        """Return `self.size`."""
        return self.size


def _bounded(side: int) -> int:
    if side > MAX_SIZE:
        raise ImageError(
            f"A square of {side:,} pixels a side, to hold the image or its cell, is over the {MAX_SIZE:,} allowed: cut "
            "the image, or resize it first."
        )
    return side


def _overlap(length: int, wanted: int) -> tuple[slice, slice]:
    """Return where a line of `length` pixels goes on a canvas line, and what of it goes there."""
    if length <= wanted:
        start = (wanted - length) // 2
        return slice(start, start + length), slice(0, length)
    start = (length - wanted) // 2
    return slice(0, wanted), slice(start, start + wanted)


def _lanczos(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize with Pillow's antialiased Lanczos filter. Of a cell on black only what is not black is computed."""
    result = np.zeros((height, width, 3), np.uint8)
    rows = np.flatnonzero(image.reshape(len(image), -1).max(axis=1))
    if not len(rows):
        return result
    columns = np.flatnonzero(np.bitwise_or.reduce(image[rows[0] : rows[-1] + 1], axis=0).any(axis=1))
    into_rows, from_rows, top, bottom = _reach(rows, image.shape[0], height)
    into_columns, from_columns, left, right = _reach(columns, image.shape[1], width)
    # What lies around the box is read too, so that the values are those of the whole image, but for rounding.
    part = Image.fromarray(image[from_rows, from_columns]).resize(
        (into_columns.stop - into_columns.start, into_rows.stop - into_rows.start),
        Image.Resampling.LANCZOS,
        box=(left, top, right, bottom),
    )
    result[into_rows, into_columns] = np.asarray(part)
    return result


def _reach(lit: NDArray[np.int64], length: int, wanted: int) -> tuple[slice, slice, float, float]:
    """Return what a resize along one axis of `length` pixels to `wanted` has to compute, and from what.

    Args:
        lit: Pixels that are not black, sorted.
        length: Before.
        wanted: After.

    Returns:
        The result's pixels that any of them may reach; the pixels that these are computed from; and where in the latter
        the former begin and end.
    """
    step = length / wanted
    support = 3 * max(step, 1.0)
    # The centre of a result's pixel i lies at (i + 0.5) * step, the filter reaches `support` from there.
    first = max(int((lit[0] - support) / step - 0.5), 0)
    last = min(int((lit[-1] + 1 + support) / step + 0.5) + 1, wanted)
    start = max(int((first + 0.5) * step - support) - 1, 0)
    stop = min(int((last - 0.5) * step + support) + 2, length)
    return slice(first, last), slice(start, stop), first * step - start, min(last * step - start, float(stop - start))


def _four_nearest(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, bottom, down = _neighbours(image.shape[0], height)
    left, right, across = _neighbours(image.shape[1], width)
    down, across = down[:, None, None], across[None, :, None]
    # Only the four pixels around each centre are looked up: memory follows the result, however long the image.
    upper = image[np.ix_(top, left)] * (1 - across) + image[np.ix_(top, right)] * across
    lower = image[np.ix_(bottom, left)] * (1 - across) + image[np.ix_(bottom, right)] * across
    mixed: NDArray[np.uint8] = np.rint(upper * (1 - down) + lower * down).astype(np.uint8)
    return mixed


def _neighbours(length: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return, per wanted pixel, its two neighbours along one axis and the weight of the second."""
    centre = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    first = np.floor(centre).astype(np.int64)
    return first, np.minimum(first + 1, length - 1), (centre - first).astype(np.float32)


def _check_method(step: str, method: object) -> None:
    if method not in METHODS:
        raise SettingsError(f"{step} knows the methods {', '.join(METHODS)}. Received: method={method!r}.")


def _checked_margin(margin: object) -> float:
    return real_number("margin", margin, 0, 10) + 0.0  # 1 and 1.0, 0 and -0.0 are one step, with one digest


def checked_size(size: object) -> int:
    """Return a side in pixels as an int, or raise SettingsError."""
    return whole_number("size", size, 1, MAX_SIZE)
