"""Colour: CIELAB, optical density, and stain normalisation inside a mask by Reinhard's and Macenko's methods.

C-NMC 2019 was already normalised by its authors: default off.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.checks import real_number
from leukemia_dl.errors import ImageError, SettingsError
from leukemia_dl.preprocess.foreground import check_mask, foreground_pixels
from leukemia_dl.preprocess.pipeline import Step

__all__ = [
    "GIEMSA", "LIGHT", "Macenko", "Reinhard", "density_to_rgb", "lab_to_rgb", "optical_density", "rgb_to_lab",
    "stain_matrix",
]  # fmt: skip

LIGHT = 256.0
"""Grey level, plus one, of unstained glass: with it, white has optical density 0 and black one of ln 256 = 5.5."""
GIEMSA = ((0.834750233, 0.513556283, 0.196330403), (0.092789, 0.954111, 0.283111))
"""Unit vectors of methylene blue and eosin, stains of blood smears, in optical density (red, green, blue), of ImageJ's
Colour Deconvolution (Landini et al. 2021, doi:10.1093/bioinformatics/btaa847)."""
Mask = NDArray[np.bool_] | None
_log = logging.getLogger(__name__)
_warned: set[str] = set()  # a data set may have thousands of such tiles
_FIT_PIXELS = 2_000_000  # together, over all images of a fit: bounds its memory to some 200 MB
_TRACES = 8  # grey levels that resizing leaves around a cell on black: recoloured, they would be a halo
_FLAT = 0.05  # a spread in CIELAB below that of rounding to whole grey levels: noise, not to be blown up

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
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


class _Undefined(Exception):
    """The method is not defined on a tile, for the reason in the text."""


class _Normalizer(Step):
    """A step that recolours the pixels of a mask to a target, which `fit` sets."""

    fewest: ClassVar[int]  # pixels
    target: ClassVar[dict[str, tuple[int, ...]]]  # the fields of the target and their shapes

    def __post_init__(self) -> None:
        """Turn the fields of the target into floats in tuples, since JSON's lists are not hashable."""
        for name, shape in self.target.items():
            if (values := getattr(self, name)) is not None:
                array = np.asarray(values, np.float64) + 0.0
                if array.shape != shape or not np.isfinite(array).all():
                    raise SettingsError(f"{name} must be finite numbers of shape {shape}. Received: {values!r}.")
                object.__setattr__(self, name, _tuples(array.tolist()))

    @property
    def is_fitted(self) -> bool:
        """Whether it has a target."""
        return all(getattr(self, name) is not None for name in self.target)

    def __call__(self, image: NDArray[np.uint8], mask: Mask = None) -> NDArray[np.uint8]:
        """Recolour `image`, uint8 (h, w, 3), inside `mask`, bool (h, w); None: `foreground_pixels(image, threshold=8)`.

        Returns a new array, equal to the image outside the mask; the image itself where the method is not defined on
        it, and logs each reason once as a warning. Raises SettingsError if it was not fitted.
        """
        if not self.is_fitted:
            raise SettingsError(f"{self!r} has no target yet: use {type(self).__name__}().fit(images).")
        chosen = _checked(image, mask)
        pixels = image[chosen]
        try:
            if len(pixels) < self.fewest:
                raise _Undefined(f"too few pixels in the mask ({len(pixels)}; {self.fewest} are needed)")
            recoloured = self._recolour(pixels)
        except _Undefined as reason:
            text = f"{type(self).__name__} left an image as it is: {reason}"
            _log.log(logging.DEBUG if text in _warned else logging.WARNING, "%s", text)
            _warned.add(text)
            return image
        result = image.copy()
        result[chosen] = recoloured
        return result

    def fit(self, images: Any, masks: Sequence[Mask] | None = None) -> Self:
        """Return this step with the target of images: for Reinhard each counts the same, for Macenko each pixel.

        `images` are uint8 (n, h, w, 3), one image, or a sequence of images of any size; `masks` are one per image, or
        None to find them. Raises ImageError if the method is defined on none of the images.
        """
        if isinstance(images, np.ndarray) and images.ndim == 3:
            images, masks = [images], None if masks is None else [cast(Mask, masks)]
        each = [None] * len(images) if masks is None else masks
        most = max(_FIT_PIXELS // max(len(images), 1), 256)

        def tiles() -> Iterator[NDArray[np.uint8]]:
            for image, mask in zip(images, each, strict=True):
                tile = image[_checked(image, mask)]
                if len(tile) >= self.fewest:
                    yield tile[:: -(-len(tile) // most)]

        try:
            found = self._statistics(tiles())
        except _Undefined as reason:
            raise ImageError(f"{type(self).__name__} cannot be fitted to these images: {reason}.") from None
        return cast(Self, replace(cast(Any, self), **dict(zip(self.target, found, strict=True))))

    @abstractmethod
    def _recolour(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return pixels (n, 3) in the target's stain."""

    @abstractmethod
    def _statistics(self, tiles: Iterator[NDArray[np.uint8]]) -> tuple[Any, Any]:
        """Return the target of tiles, each (n, 3)."""


@dataclass(frozen=True)
class Reinhard(_Normalizer):
    """Give each image the mean and spread of the target in CIELAB (Reinhard et al. 2001, doi:10.1109/38.946629).

    Attributes:
        mean: Of L, a and b of the target; None before `fit`.
        std: Their standard deviations.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    fewest: ClassVar[int] = 2
    target: ClassVar[dict[str, tuple[int, ...]]] = {"mean": (3,), "std": (3,)}

    def _statistics(self, tiles: Iterator[NDArray[np.uint8]]) -> tuple[Any, Any]:
        moments = [_moments(rgb_to_lab(tile)) for tile in tiles]
        if not moments:
            raise _Undefined("no image has two pixels of foreground")
        means, covariances = (np.mean(part, axis=0) for part in zip(*moments, strict=True))
        return means, np.sqrt(np.diag(covariances))

    def _recolour(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        lab = rgb_to_lab(pixels)
        mean, covariance = _moments(lab)
        std = np.sqrt(np.diag(covariance))
        if std.min() < _FLAT:
            raise _Undefined("its pixels have one colour, or vary in lightness only")
        return lab_to_rgb((lab - mean) * (np.array(self.std) / std) + np.array(self.mean))


@dataclass(frozen=True)
class Macenko(_Normalizer):
    """Give each image the stains of the target, and as much of them (Macenko 2009, doi:10.1109/ISBI.2009.5193250).

    Two stains span a plane in optical density: that of the two largest principal axes. The extreme angles in it are the
    stains, and a percentile of each one's concentration is scaled to the target's. Colour outside the plane is lost.

    Attributes:
        stains: Unit vectors of the two stains (2, 3), the bluer one first; None before `fit`.
        levels: The `percentile` of each one's concentration.
        light: Grey level, plus one, of unstained glass.
        alpha: The stains are the percentiles `alpha`, in [0, 50), and 100 - `alpha` of the angle.
        percentile: Of the concentrations. The 99 of the paper suits tissue, most of which is pale. Of a cell on black
            the darkest hundredth is its rim: there 50, the median, brings subjects together and 99 does not.
        beta: Pixels with less optical density than this in any channel do not count for the stains.
    """

    stains: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    levels: tuple[float, float] | None = None
    light: float = 240.0
    alpha: float = 1.0
    percentile: float = 99.0
    beta: float = 0.15
    fewest: ClassVar[int] = 3
    target: ClassVar[dict[str, tuple[int, ...]]] = {"stains": (2, 3), "levels": (2,)}

    def __post_init__(self) -> None:
        for name, low, high in (("light", 1, 1000), ("alpha", 0, 49.99), ("percentile", 1, 100), ("beta", 0, 5)):
            object.__setattr__(self, name, real_number(name, getattr(self, name), low, high) + 0.0)
        super().__post_init__()

    def _statistics(self, tiles: Iterator[NDArray[np.uint8]]) -> tuple[Any, Any]:
        stains, concentrations = self._stains(np.concatenate([np.empty((0, 3), np.uint8), *tiles]))
        return stains, self._levels(concentrations)

    def _recolour(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        _, concentrations = self._stains(pixels)
        scaled = concentrations * (np.array(self.levels) / self._levels(concentrations))
        return density_to_rgb(scaled @ np.array(self.stains), self.light)

    def _levels(self, concentrations: NDArray[np.float64]) -> NDArray[np.float64]:
        levels = np.percentile(concentrations, self.percentile, axis=0)
        if levels.min() < 1e-6:
            raise _Undefined("one of the stains is absent")
        return levels

    def _stains(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the two stains (2, 3) and how much of each is in each pixel (n, 2)."""
        density = optical_density(pixels, self.light)
        dense = density[(density >= self.beta).all(axis=1)]
        if len(dense) < self.fewest:
            raise _Undefined(f"too few pixels are dense enough ({len(dense)}; {self.fewest} are needed)")
        mean, covariance = _moments(dense)
        spread, axes = np.linalg.eigh(covariance)
        if spread[1] < 1e-6:
            raise _Undefined("its colours do not span a plane in optical density")
        plane = axes[:, 1:]
        # The signs of eigenvectors are arbitrary: turned to where the densities are, or angles would wrap around.
        plane = plane * np.where(mean @ plane < 0, -1.0, 1.0)
        along = dense @ plane
        angles = np.percentile(np.arctan2(along[:, 0], along[:, 1]), [self.alpha, 100 - self.alpha])
        stains = np.stack([np.sin(angles), np.cos(angles)], axis=1) @ plane.T
        stains = stains[np.argsort(-stains[:, 0])]
        if abs(np.sin(angles[1] - angles[0])) < 1e-3:
            raise _Undefined("its two stains are one")
        return stains, density @ np.linalg.pinv(stains)


def _moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (3,) and covariance (3, 3) of (n, 3), by matrix products: numpy's sums over n are far slower."""
    mean = np.ones(len(values)) @ values / len(values)
    centred = values - mean
    return mean, centred.T @ centred / len(values)


def _checked(image: NDArray[np.uint8], mask: Mask) -> NDArray[np.bool_]:
    return foreground_pixels(image, threshold=_TRACES) if mask is None else check_mask(mask, image.shape[:2])


def _tuples(values: Any) -> Any:
    return tuple(map(_tuples, values)) if isinstance(values, list) else values
