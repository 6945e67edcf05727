"""The cell: its mask, on black or in a bright-field smear, its measures and colour; how cells look in many images."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.checks import choice
from leukemia_dl.errors import ImageError
from leukemia_dl.preprocess.decode import check_image

Background = Literal["auto", "black", "bright"]
Appearance = tuple[bool, int]  # is a cell cut out on black; longer side in pixels, of the cell then, else of the image
_NEARLY_ALL, _REACH = 0.98, 1.25


def foreground_mask(image: NDArray[np.uint8], background: Background = "auto", threshold: int = 0) -> NDArray[np.bool_]:
    """Return the cell: the largest connected set (touching by side or corner) of foreground pixels, its holes filled.

    `image`, `background`, `threshold` and the result, bool (h, w), are as in `foreground_pixels`; all False if empty.
    """
    from scipy import ndimage

    lit = foreground_pixels(image, background, threshold)
    found = np.zeros_like(lit)
    if not (boxes := ndimage.find_objects(lit.view(np.uint8))):
        return found
    inside = boxes[0]  # most of a frame is background
    parts, _ = ndimage.label(lit[inside], structure=np.ones((3, 3), bool))
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    # The part of the background that contains an added rim is outside the cell; its other parts are holes. scipy's
    # binary_fill_holes takes seconds on large images.
    rest, _ = ndimage.label(np.pad(parts != areas.argmax(), 1, constant_values=True))
    found[inside] = (rest != rest[0, 0])[1:-1, 1:-1]
    return found


def foreground_pixels(
    image: NDArray[np.uint8], background: Background = "auto", threshold: int = 0
) -> NDArray[np.bool_]:
    """Return which pixels are no background, bool (h, w): all cells, debris included, with their holes.

    Args:
        image: uint8, (h, w, 3); ImageError for anything else.
        background: "black": a pixel is foreground if any channel is above `threshold`. "bright", for smears in bright
            field: if its saturation is above Otsu's threshold of this image (Otsu 1979, doi:10.1109/TSMC.1979.4310076).
            "auto": black if `is_single_cell`, or if everything is black; else bright.
        threshold: In grey levels, for black: 0 suits exactly black backgrounds such as C-NMC's; a JPEG of one needs
            about 20.
    """
    choice("background", background, get_args(Background))
    red, green, blue = (check_image(image)[..., channel] for channel in range(3))
    brightest = np.maximum(np.maximum(red, green), blue)
    if background == "auto":
        background = "black" if is_single_cell(image) or not brightest.any() else "bright"
    if background == "black":
        return np.asarray(brightest > threshold)
    chroma = brightest - np.minimum(np.minimum(red, green), blue)
    # In whole 1/255: exactly HSV's saturation as Pillow stores it, rounded down.
    saturation = chroma.astype(np.uint16) * 255 // np.maximum(brightest, 1)
    return np.asarray(saturation > _otsu(np.bincount(saturation.ravel(), minlength=256)))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return (top, left, bottom, right) of `mask`, bool (h, w), in pixels: rows top to bottom - 1; None if empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else None


def is_single_cell(image: NDArray[np.uint8]) -> bool:
    """Return whether `image`, uint8 (h, w, 3), shows a cell cut out on black, rather than a field of a smear.

    True if at least three quarters of the outermost pixels are exactly black, since a cell of C-NMC may touch the
    frame, and some pixel is not.
    """
    above = check_image(image) > 0
    lit = above[:, :, 0] | above[:, :, 1] | above[:, :, 2]
    border = np.concatenate([lit[0], lit[-1], lit[1:-1, 0], lit[1:-1, -1]])
    return bool(lit.any() and 1 - border.mean() >= 0.75)


def silhouette(mask: NDArray[np.bool_]) -> dict[str, float]:
    """Return measures of `mask`, bool (h, w), in pixels: `area`, bounding box's `width` and `height`, `perimeter`.

    The perimeter is the number of mask pixels with a neighbour (by side) outside, or on the frame.

    Examples:
        >>> import numpy as np
        >>> from leukemia_dl import preprocess
        >>> image = np.zeros((9, 9, 3), np.uint8)
        >>> image[2:6, 3:8] = 100, 40, 110
        >>> preprocess.silhouette(preprocess.foreground_mask(image))
        {'area': 20.0, 'width': 5.0, 'height': 4.0, 'perimeter': 14.0}
    """
    top, left, bottom, right = bounding_box(mask) or (0, 0, 0, 0)
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    perimeter = (mask & ~inner).sum()
    measures = {"area": mask.sum(), "width": right - left, "height": bottom - top, "perimeter": perimeter}
    return {name: float(value) for name, value in measures.items()}


def mask_colour(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each channel of `image`, uint8 (h, w, 3), inside `mask`, bool (h, w).

    They are float64 (3,), red, green, blue, in grey levels 0..255; all 0 for an empty mask.
    """
    chosen = check_mask(mask, image)
    pixels = image[chosen].astype(np.float64) if chosen.any() else np.zeros((1, 3))
    return pixels.mean(axis=0), pixels.std(axis=0)


def check_mask(mask: NDArray[np.bool_], image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a mask if it is bool and has the shape of an image; else ImageError."""
    if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
        raise ImageError(f"Expected a mask, bool, of shape {image.shape[:2]}. Received: {mask.dtype} {mask.shape}")
    return mask


def appearance_of(image: NDArray[np.uint8]) -> Appearance:
    """Return the `Appearance` of an image, uint8 (h, w, 3)."""
    on_black = is_single_cell(image)
    top, left, bottom, right = (bounding_box(image.max(axis=2) > 0) if on_black else None) or (0, 0, *image.shape[:2])
    return on_black, max(bottom - top, right - left)


def summary(appearances: Sequence[Appearance]) -> dict[str, Any]:
    """Return the share of images on black, and the smallest and largest size, as JSON values."""
    sizes = [size for _, size in appearances]
    return {"on_black": float(np.mean([on_black for on_black, _ in appearances])), "size": [min(sizes), max(sizes)]}


def differences(appearances: Sequence[Appearance], known: Mapping[str, Any] | None) -> list[str]:
    """Return a sentence for each way in which images differ from those that `summary` describes, if any are known."""
    if not known:
        return []
    share, (low, high) = known["on_black"], known["size"]
    cut_out, found = share > 0.5, list[str]()
    kind, shown = ("cells", "do not show") if cut_out else ("images", "show")
    odd = sum(on_black != cut_out for on_black, _ in appearances)
    if odd and max(share, 1 - share) >= _NEARLY_ALL:
        other = f"{odd:,} of {len(appearances):,} images {shown} a cell cut out on black"
        found.append(f"{other}, unlike the training images")
    sizes = [size for on_black, size in appearances if on_black == cut_out]
    far = [size for size in sizes if not low / _REACH <= size <= high * _REACH]
    if len(far) > (1 - _NEARLY_ALL) * len(sizes):
        other = f"{len(far):,} of {len(sizes):,} {kind} are {min(far):,} to {max(far):,} pixels across"
        found.append(f"{other}, those of the training images {low:,} to {high:,}")
    return found


def _otsu(counts: NDArray[np.int64]) -> int:
    """Return the value that best separates a histogram in two, by the variance between them; the last if it cannot."""
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * np.arange(len(counts)))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    between[(below == 0) | (above == 0)] = -1.0
    return int(between.argmax()) if between.max() > 0 else len(counts) - 1
