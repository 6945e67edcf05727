"""Summarise how images look, to notice images unlike those that a net was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.preprocess.foreground import bounding_box, is_single_cell

__all__ = ["differences", "look_of", "summary"]

Look = tuple[bool, int]
"""Whether a cell is cut out on black, and the longer side in pixels: of the cell then, of the image otherwise."""
_NEARLY_ALL = 0.98
_REACH = 1.25


def look_of(image: NDArray[np.uint8]) -> Look:
    """Return the `Look` of an image, uint8 (h, w, 3)."""
    on_black = is_single_cell(image)
    top, left, bottom, right = (bounding_box(image.max(axis=2) > 0) if on_black else None) or (0, 0, *image.shape[:2])
    return on_black, max(bottom - top, right - left)


def summary(looks: Sequence[Look]) -> dict[str, Any]:
    """Return the share of images on black, and the smallest and largest size, as JSON values."""
    sizes = [size for _, size in looks]
    return {"on_black": float(np.mean([on_black for on_black, _ in looks])), "size": [min(sizes), max(sizes)]}


def differences(looks: Sequence[Look], known: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each way in which images differ from those that `summary` describes."""
    share, (low, high) = known["on_black"], known["size"]
    cut_out, found = share > 0.5, []
    odd = sum(on_black != cut_out for on_black, _ in looks)
    if odd and max(share, 1 - share) >= _NEARLY_ALL:
        shown = "do not show a cell cut out on black" if cut_out else "show a cell cut out on black"
        found.append(f"{odd:,} of {len(looks):,} images {shown}, unlike the training images")
    sizes = [size for on_black, size in looks if on_black == cut_out]
    far = [size for size in sizes if not low / _REACH <= size <= high * _REACH]
    if len(far) > (1 - _NEARLY_ALL) * len(sizes):
        of = f"{len(far):,} of {len(sizes):,} {'cells' if cut_out else 'images'} are"
        found.append(
            f"{of} {min(far):,} to {max(far):,} pixels across, those of the training images {low:,} to {high:,}"
        )
    return found
