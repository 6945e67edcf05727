"""From a file or an array to uint8 RGB pixels: decoding, geometry, the cell's mask, pipelines of such steps.

Deterministic and pure numpy; inputs are never changed.
Knows nothing of data sets, networks or random augmentation (see `leukemia_dl.training`).
"""

from leukemia_dl.preprocess.decode import IMAGE_SUFFIXES, MAX_PIXELS, decode_image
from leukemia_dl.preprocess.foreground import foreground_mask, is_single_cell, mask_colour, silhouette
from leukemia_dl.preprocess.geometry import (
    CenterOnCanvas,
    PadToSquare,
    Resize,
    center_on_canvas,
    pad_to_square,
    resize,
)
from leukemia_dl.preprocess.pipeline import Pipeline, Step

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "CenterOnCanvas",
    "PadToSquare",
    "Pipeline",
    "Resize",
    "Step",
    "center_on_canvas",
    "decode_image",
    "foreground_mask",
    "is_single_cell",
    "mask_colour",
    "pad_to_square",
    "resize",
    "silhouette",
]
