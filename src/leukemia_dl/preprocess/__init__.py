"""From a file or an array to uint8 RGB pixels, by numpy alone and without chance; inputs are never changed."""

from leukemia_dl.preprocess.colour import GIEMSA, Macenko, Reinhard, lab_to_rgb, optical_density, rgb_to_lab
from leukemia_dl.preprocess.decode import IMAGE_SUFFIXES, MAX_PIXELS, decode_image
from leukemia_dl.preprocess.foreground import (
    bounding_box,
    foreground_mask,
    foreground_pixels,
    is_single_cell,
    mask_colour,
    silhouette,
)
from leukemia_dl.preprocess.pipeline import CenterOnCanvas, CropToCell, PadToSquare, Pipeline, Resize, Step
from leukemia_dl.preprocess.quality import measure_quality, quality_frame

__all__ = [
    "GIEMSA", "IMAGE_SUFFIXES", "MAX_PIXELS", "CenterOnCanvas", "CropToCell", "Macenko", "PadToSquare", "Pipeline",
    "Reinhard", "Resize", "Step", "bounding_box", "decode_image", "foreground_mask", "foreground_pixels",
    "is_single_cell", "lab_to_rgb", "mask_colour", "measure_quality", "optical_density", "quality_frame", "rgb_to_lab",
    "silhouette",
]  # fmt: skip
