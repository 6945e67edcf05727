"""Steps that move pixels: canvas, padding, resizing. Plain functions, and frozen records of their parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl.errors import SettingsError
from leukemia_dl.preprocess.decode import check_image

__all__ = [
    "MAX_SIZE",
    "METHODS",
    "CenterOnCanvas",
    "PadToSquare",
    "Resize",
    "center_on_canvas",
    "pad_to_square",
    "resize",
]

METHODS = ("lanczos", "bilinear")
MAX_SIZE = 7_071
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
    """
    check_image(image)
    canvas = np.zeros((height, width, 3), np.uint8)
    into_rows, from_rows = _overlap(image.shape[0], height)
    into_columns, from_columns = _overlap(image.shape[1], width)
    canvas[into_rows, into_columns] = image[from_rows, from_columns]
    return canvas


def pad_to_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad the shorter side with black on both ends: uint8 (h, w, 3) to uint8 (max(h, w), max(h, w), 3), a new array."""
    size = max(check_image(image).shape[:2])
    return center_on_canvas(image, size, size)


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
    """
    check_image(image)
    if image.shape[:2] == (height, width):
        return image.copy()
    if method == "bilinear":
        return _four_nearest(image, height, width)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS), dtype=np.uint8)


@dataclass(frozen=True)
class CenterOnCanvas:
    """Step: crop or pad with black to a square canvas around the middle, so that cells keep their absolute size.

    Attributes:
        size: Side of the canvas in pixels. 450 is that of C-NMC 2019's training images; its final test files of 600
            pixels are at the same scale.
    """

    size: int = 450

    def __post_init__(self) -> None:
        _check_size("CenterOnCanvas", self.size)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply `center_on_canvas`: uint8 (h, w, 3) to uint8 (size, size, 3)."""
        return center_on_canvas(image, self.size, self.size)

    def size_after(self, size: int | None) -> int | None:
        """Return the side of the square that comes out, given the one that goes in; None if not known beforehand."""
        return self.size


@dataclass(frozen=True)
class PadToSquare:
    """Step: pad the shorter side with black, so that a later resize does not distort."""

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply `pad_to_square`: uint8 (h, w, 3) to uint8 (max(h, w), max(h, w), 3)."""
        return pad_to_square(image)

    def size_after(self, size: int | None) -> int | None:
        """Return the side of the square that comes out, given the one that goes in; None if not known beforehand."""
        return size


@dataclass(frozen=True)
class Resize:
    """Step: resize to a square, whatever the shape before.

    Attributes:
        size: Side in pixels.
        method: `"lanczos"` (antialiased) or `"bilinear"` (not antialiased, as Keras does); see `resize`.
    """

    size: int
    method: str = "lanczos"

    def __post_init__(self) -> None:
        _check_size("Resize", self.size)
        if self.method not in METHODS:
            raise SettingsError(f"Resize knows the methods {', '.join(METHODS)}. Received: method={self.method!r}.")

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply `resize`: uint8 (h, w, 3) to uint8 (size, size, 3)."""
        return resize(image, self.size, self.size, self.method)

    def size_after(self, size: int | None) -> int | None:
        """Return the side of the square that comes out, given the one that goes in; None if not known beforehand."""
        return self.size


def _overlap(length: int, wanted: int) -> tuple[slice, slice]:
    """Return where a line of `length` pixels goes on a canvas line, and what of it goes there."""
    if length <= wanted:
        start = (wanted - length) // 2
        return slice(start, start + length), slice(0, length)
    start = (length - wanted) // 2
    return slice(0, wanted), slice(start, start + wanted)


def _four_nearest(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, bottom, down = _neighbours(image.shape[0], height)
    left, right, across = _neighbours(image.shape[1], width)
    rows = image[top] * (1 - down)[:, None, None] + image[bottom] * down[:, None, None]
    mixed = rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None]
    return np.rint(mixed).astype(np.uint8)


def _neighbours(length: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return, per wanted pixel, its two neighbours along one axis and the weight of the second."""
    centre = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    first = np.floor(centre).astype(np.int64)
    return first, np.minimum(first + 1, length - 1), (centre - first).astype(np.float32)


def _check_size(step: str, size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
        raise SettingsError(f"{step} needs a size in pixels, an int from 1 to {MAX_SIZE:,}. Received: size={size!r}.")
