"""Colour spaces: CIELAB, optical density, and stains as directions in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.errors import SettingsError

__all__ = ["GIEMSA", "LIGHT", "density_to_rgb", "lab_to_rgb", "optical_density", "rgb_to_lab", "stain_matrix"]

LIGHT = 256.0
"""Grey level, plus one, of unstained glass: with it, white has optical density 0 and black one of ln 256 = 5.5."""
GIEMSA = ((0.834750233, 0.513556283, 0.196330403), (0.092789, 0.954111, 0.283111))
"""Unit vectors of methylene blue and eosin, stains of blood smears, in optical density (red, green, blue), of ImageJ's
Colour Deconvolution (Landini et al. 2021, doi:10.1093/bioinformatics/btaa847)."""

# sRGB (IEC 61966-2-1) and its white, D65, as in scikit-image: a test compares.
_RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
# L = 116 y - 16, a = 500 (x - y), b = 200 (y - z), where x, y and z are the bent X, Y and Z.
_BENT_TO_LAB = np.array([[0.0, 500, 0], [116, -500, 200], [0, 0, -200]])
_LAB_TO_BENT = np.linalg.inv(_BENT_TO_LAB)
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS > 0.04045, ((_LEVELS + 0.055) / 1.055) ** 2.4, _LEVELS / 12.92)
# Grey levels of the linear values (k / 8191)^2: over the square root the curve is nearly straight, and a table of it is
# good to 0.02 grey levels.
_ROOTS = np.linspace(0, 1, 8192) ** 2
_SRGB = np.where(_ROOTS > 0.0031308, 1.055 * _ROOTS ** (1 / 2.4) - 0.055, 12.92 * _ROOTS)
_SRGB_LEVELS = np.rint(255 * _SRGB).astype(np.uint8)


def rgb_to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return CIELAB under D65 of sRGB `pixels`, uint8 (..., 3): float64 (..., 3), L 0..100, a -86..98, b -108..94.

    Examples:
        >>> import numpy as np
        >>> from leukemia_dl import preprocess
        >>> preprocess.rgb_to_lab(np.array([255, 0, 0], np.uint8)).round(1)
        array([53.2, 80.1, 67.2])
    """
    xyz = _LINEAR[pixels] @ (_RGB_TO_XYZ.T / _WHITE)
    bent = np.cbrt(xyz)
    dark = xyz <= 0.008856
    bent[dark] = 7.787 * xyz[dark] + 16 / 116
    lab: NDArray[np.float64] = bent @ _BENT_TO_LAB - np.array([16.0, 0, 0])
    return lab


def lab_to_rgb(lab: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return sRGB, uint8 (..., 3), of `lab`, CIELAB under D65, float (..., 3): rounded, and clipped where outside."""
    bent = lab @ _LAB_TO_BENT + 16 / 116
    xyz = bent * bent * bent
    dark = bent <= 0.2068966
    xyz[dark] = (bent[dark] - 16 / 116) / 7.787
    linear = np.clip(xyz @ (np.linalg.inv(_RGB_TO_XYZ).T * _WHITE[:, None]), 0, 1)
    rgb: NDArray[np.uint8] = _SRGB_LEVELS[(np.sqrt(linear) * (len(_SRGB_LEVELS) - 1) + 0.5).astype(np.intp)]
    return rgb


def optical_density(pixels: NDArray[np.uint8], light: float = LIGHT) -> NDArray[np.float64]:
    """Return -ln((value + 1) / light) per channel (Beer and Lambert): uint8 (..., 3) to float64 of the same shape.

    `pixels` are RGB; `light` is the grey level, plus one, of unstained glass: brighter pixels have a negative density.
    """
    density: NDArray[np.float64] = -np.log((np.arange(256) + 1) / light)[pixels]
    return density


def density_to_rgb(density: NDArray[np.float64], light: float = LIGHT) -> NDArray[np.uint8]:
    """Undo `optical_density`: float (..., 3) to uint8, rounded and clipped."""
    return np.rint(np.clip(light * np.exp(-np.maximum(density, -20.0)) - 1, 0, 255)).astype(np.uint8)


def stain_matrix(stains: ArrayLike) -> NDArray[np.float64]:
    """Return three unit vectors as rows, the third at right angles to the two stains."""
    rows = np.asarray(stains, dtype=np.float64)
    rows = np.vstack([rows, np.cross(rows[0], rows[1])]) if len(rows) == 2 else rows
    unit: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    if not abs(np.linalg.det(unit)) > 1e-4:
        raise SettingsError(f"stains must be independent directions (red, green, blue). Received: {stains!r}.")
    return unit
