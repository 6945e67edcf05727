"""The cell on a black background: its mask, its silhouette's measures, its colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.errors import ImageError
from leukemia_dl.preprocess.decode import check_image

__all__ = ["foreground_mask", "is_single_cell", "mask_colour", "silhouette"]

_BLACK_BORDER = 0.75


def foreground_mask(image: NDArray[np.uint8], threshold: int = 0) -> NDArray[np.bool_]:
    """Find the cell in an image whose background is black.

    Args:
        image: uint8, (h, w, 3).
        threshold: A pixel is foreground if any channel is above this grey level. 0 suits exactly black backgrounds such
            as C-NMC's; a JPEG of one needs about 20.

    Returns:
        bool, (h, w): the largest connected set (touching by side or corner) of foreground pixels, its holes filled.
        All False where there is none.
    """
    from scipy import ndimage

    lit = _brightest(image) > threshold
    found = np.zeros_like(lit)
    if not lit.any():
        return found
    # Most of the frame is background: only the box that holds all foreground is searched.
    box = tuple(slice(int(where[0]), int(where[-1]) + 1) for where in (np.flatnonzero(lit.any(axis=a)) for a in (1, 0)))
    parts, count = ndimage.label(lit[box], structure=np.ones((3, 3), bool))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    areas[0] = 0
    found[box] = ndimage.binary_fill_holes(parts == areas.argmax())
    return found


def is_single_cell(image: NDArray[np.uint8]) -> bool:
    """Tell whether an image, uint8 (h, w, 3), shows a cell cut out on black, rather than a field of a smear.

    True when at least three quarters of the outermost pixels are exactly black and some pixel is not. A cell of C-NMC
    may touch the frame, so not all of the border has to be black.
    """
    lit = _any_channel(check_image(image) > 0)
    border = np.concatenate([lit[0], lit[-1], lit[1:-1, 0], lit[1:-1, -1]])
    return bool(lit.any() and 1 - border.mean() >= _BLACK_BORDER)


def silhouette(mask: NDArray[np.bool_]) -> dict[str, float]:
    """Measure a mask, bool (h, w), in pixels.

    Returns:
        `area`; `width` and `height` of the bounding box; `perimeter`, the number of mask pixels with a neighbour (by
        side) outside. All 0 for an empty mask.

    Raises:
        ImageError: If it is no such mask.
    """
    _check_mask(mask)
    names = ("area", "width", "height", "perimeter")
    if not mask.any():
        return dict.fromkeys(names, 0.0)
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    area, perimeter = int(mask.sum()), int((mask & ~inner).sum())
    height, width = (int(np.ptp(np.flatnonzero(mask.any(axis=axis)))) + 1 for axis in (1, 0))
    values = (area, width, height, perimeter)
    return dict(zip(names, map(float, values), strict=True))


def mask_colour(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each channel inside a mask.

    Args:
        image: uint8, (h, w, 3).
        mask: bool, (h, w).

    Returns:
        Two float64 arrays (3,), red, green, blue, in grey levels 0..255; both all 0 for an empty mask.

    Raises:
        ImageError: If the two do not fit together.
    """
    _check_mask(mask, check_image(image).shape[:2])
    pixels = image[mask].astype(np.float64) if mask.any() else np.zeros((1, 3))
    return pixels.mean(axis=0), pixels.std(axis=0)


def _any_channel(above: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return above[:, :, 0] | above[:, :, 1] | above[:, :, 2]


def _brightest(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    red, green, blue = (check_image(image)[..., channel] for channel in range(3))
    brightest: NDArray[np.uint8] = np.maximum(np.maximum(red, green), blue)
    return brightest


def _check_mask(mask: NDArray[np.bool_], shape: tuple[int, ...] | None = None) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2 or shape not in (None, mask.shape):
        wanted = "(height, width)" if shape is None else str(shape)
        came = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ImageError(
            f"Expected a mask of dtype bool and shape {wanted}. Received: {came}. foreground_mask() returns one."
        )
