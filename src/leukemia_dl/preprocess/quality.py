"""Measures of the quality of whole images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import ImageError
from leukemia_dl.preprocess.decode import check_image, decode_image
from leukemia_dl.preprocess.foreground import foreground_mask
from leukemia_dl.progress import parallel_map

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow's mode "L"
_RIM = 3  # pixels next to the background, whose Laplacian shows the outline and not the focus
_BLANK = 1.0  # standard deviation of grey below which there is nothing to see
MEASURES = {
    **dict.fromkeys(["focus", "brightness", "dark", "saturated", "foreground"], "float64"),
    **dict.fromkeys(["empty_mask", "touches_border", "blank"], "boolean"),
}  # and their dtypes in a frame


def measure_quality(image: NDArray[np.uint8]) -> dict[str, float | bool]:
    """Return measures of an `image`, uint8 (h, w, 3).

    `focus` is the variance of the Laplacian of grey (Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548) inside the
    cell, without its rim, in squared grey levels. `brightness` is mean grey inside the cell, 0..255. `dark` and
    `saturated` are shares of the cell's pixels with all channels at 0, or any at 255. `foreground` is the share of the
    image that is cell. `empty_mask`, `touches_border` and `blank` (nearly one grey) are bool. NaN without a cell.
    """
    from scipy import ndimage

    mask = foreground_mask(check_image(image))
    grey = image @ _LUMA
    focus = brightness = dark = saturated = float("nan")
    if mask.any():
        cell, brightness = image[mask], float(grey[mask].mean())
        dark, saturated = float((cell == 0).all(axis=1).mean()), float((cell == 255).any(axis=1).mean())
        # Its rim is left out, so nothing outside of the cell's box is missed.
        box = ndimage.find_objects(mask.view(np.uint8))[0]
        inside = ndimage.minimum_filter(mask[box].view(np.uint8), 2 * _RIM + 1, mode="constant") > 0
        focus = float(ndimage.laplace(grey[box])[inside].var()) if inside.any() else focus
    touches = bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())
    flags = (not mask.any(), touches, bool(grey.std() < _BLANK))
    return dict(zip(MEASURES, (focus, brightness, dark, saturated, float(mask.mean()), *flags), strict=True))


def quality_frame(images: Any, names: Sequence[Any] | None = None, show_progress: bool = True) -> pd.DataFrame:
    """Return a row of `measure_quality` per image, in order, computed in parallel, with progress if `show_progress`.

    `images` are a Dataset, or files (str or Path) and arrays, uint8 (h, w, 3); the index is `names`, by
    default the paths, or the positions of arrays. The column `problem` says why a file could not be read, its measures
    then being NA.
    """
    if hasattr(images, "decode"):  # a Dataset, whose images may be arrays
        files = enumerate(images.table["path"])
        images = [file if isinstance(file, str) else images.decode(row) for row, file in files]
    images = [images] if isinstance(images, (str, Path)) else list(images)
    if names is None:
        names = [str(item) if isinstance(item, (str, Path)) else row for row, item in enumerate(images)]
    rows = parallel_map(_measured, images, "Measuring quality", show=show_progress)
    frame = pd.DataFrame(rows, index=pd.Index(list(names), name="image"), columns=[*MEASURES, "problem"])
    return frame.astype(MEASURES)


def _measured(item: Any) -> dict[str, Any]:
    try:
        image = decode_image(item) if isinstance(item, (str, Path)) else item
        return {**measure_quality(image), "problem": ""}
    except ImageError as error:
        return {"problem": str(error)}
