"""CIELAB, optical density, and stain normalisation inside a mask; C-NMC 2019 was normalised by its authors."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.checks import real_number
from leukemia_dl.errors import ImageError, SettingsError
from leukemia_dl.preprocess.decode import warn_once
from leukemia_dl.preprocess.foreground import check_mask, foreground_pixels
from leukemia_dl.preprocess.pipeline import Step

LIGHT = 256.0  # grey level, plus one, of unstained glass: white has optical density 0 and black one of ln 256
GIEMSA = ((0.834750233, 0.513556283, 0.196330403), (0.092789, 0.954111, 0.283111))
"""Unit vectors of methylene blue and eosin, stains of blood smears, in optical density (red, green, blue), of ImageJ's
Colour Deconvolution (Landini et al. 2021, doi:10.1093/bioinformatics/btaa847)."""
Mask = NDArray[np.bool_] | None
_FEWEST = 3  # pixels of a tile that the methods are defined on
_FIT_PIXELS = 2_000_000  # together, over all images of a fit: bounds its memory to some 200 MB
_TRACES = 8  # grey levels that resizing leaves around a cell on black: recoloured, they would be a halo
_FLAT = 0.05  # a spread in CIELAB below that of rounding to whole grey levels: noise, not to be blown up

# sRGB (IEC 61966-2-1) and its white, D65, as in scikit-image.
_RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
# L = 116 y - 16, a = 500 (x - y), b = 200 (y - z), where x, y and z are the bent X, Y and Z.
_BENT_TO_LAB = np.array([[0.0, 500, 0], [116, -500, 200], [0, 0, -200]])
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS > 0.04045, ((_LEVELS + 0.055) / 1.055) ** 2.4, _LEVELS / 12.92)
# Grey levels of (k / 8191)^2: over the square root the curve is nearly straight, and a table good to 0.02 grey levels.
_ROOTS = np.linspace(0, 1, 8192) ** 2
_SRGB = np.where(_ROOTS > 0.0031308, 1.055 * _ROOTS ** (1 / 2.4) - 0.055, 12.92 * _ROOTS)
_SRGB_LEVELS = np.rint(255 * _SRGB).astype(np.uint8)


def rgb_to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return CIELAB under D65 of sRGB `pixels`, uint8 (..., 3): float64 (..., 3), L 0..100, a -86..98, b -108..94."""
    xyz = _LINEAR[pixels] @ (_RGB_TO_XYZ.T / _WHITE)
    bent = np.cbrt(xyz)
    dark = xyz <= 0.008856
    bent[dark] = 7.787 * xyz[dark] + 16 / 116
    return np.asarray(bent @ _BENT_TO_LAB - np.array([16.0, 0, 0]))


def lab_to_rgb(lab: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return sRGB, uint8 (..., 3), of `lab`, CIELAB under D65, float (..., 3): rounded, and clipped where outside."""
    bent = lab @ np.linalg.inv(_BENT_TO_LAB) + 16 / 116
    xyz = bent * bent * bent
    dark = bent <= 0.2068966
    xyz[dark] = (bent[dark] - 16 / 116) / 7.787
    linear = np.clip(xyz @ (np.linalg.inv(_RGB_TO_XYZ).T * _WHITE[:, None]), 0, 1)
    return np.asarray(_SRGB_LEVELS[(np.sqrt(linear) * (len(_SRGB_LEVELS) - 1) + 0.5).astype(np.intp)])


def optical_density(pixels: NDArray[np.uint8], light: float = LIGHT) -> NDArray[np.float64]:
    """Return -ln((value + 1) / `light`) of each channel of RGB `pixels`, uint8 (..., 3), as float64 (Beer and Lambert).

    `light` is the grey level, plus one, of unstained glass: brighter pixels have a negative density.
    """
    return np.asarray(-np.log((np.arange(256) + 1) / light)[pixels])


def stain_matrix(stains: ArrayLike) -> NDArray[np.float64]:
    """Return three unit vectors as rows: the two stains, and a third at right angles to them."""
    first, second = np.asarray(stains, dtype=np.float64)
    rows = np.stack([first, second, np.cross(first, second)])
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


class _Undefined(Exception):
    """The method is not defined on a tile, for the reason in the text."""


class _Normalizer(Step):
    """A step that recolours the pixels of a mask to a target, which `fit` sets."""

    target: ClassVar[dict[str, tuple[int, ...]]]  # the fields of the target and their shapes

    def __post_init__(self) -> None:
        for name, shape in self.target.items():
            if (values := getattr(self, name)) is not None:
                array = np.asarray(values, np.float64) + 0.0
                if array.shape != shape or not np.isfinite(array).all():
                    raise SettingsError(f"{name} must be finite numbers of shape {shape}. Received: {values!r}.")
                listed = array.tolist()  # JSON's lists are not hashable
                object.__setattr__(self, name, tuple(map(tuple, listed) if array.ndim == 2 else listed))

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
        chosen = _chosen(image, mask)
        pixels, result = image[chosen], image.copy()
        try:
            if len(pixels) < _FEWEST:
                raise _Undefined(f"too few pixels in the mask ({len(pixels)}; {_FEWEST} are needed)")
            result[chosen] = self._recolour(pixels)
            return result
        except _Undefined as reason:
            text = f"{type(self).__name__} left an image as it is: {reason}"
            warn_once(text, text)
            return image

    def fit(self, images: Any, masks: Sequence[Mask] | None = None) -> Self:
        """Return this step with the target of images: for Reinhard each counts the same, for Macenko each pixel.

        `images` are uint8 (n, h, w, 3), or a sequence of images of any size; `masks` are one per image, or None to find
        them. Raises ImageError if the method is defined on none of the images.
        """
        most = max(_FIT_PIXELS // max(len(images), 1), 256)
        pairs = zip(images, [None] * len(images) if masks is None else masks, strict=True)
        tiles = (image[_chosen(image, mask)] for image, mask in pairs)
        try:
            found = self._statistics(tile[:: -(-len(tile) // most)] for tile in tiles if len(tile) >= _FEWEST)
        except _Undefined as reason:
            raise ImageError(f"{type(self).__name__} cannot be fitted to these images: {reason}.") from None
        return cast(Self, replace(cast(Any, self), **dict(zip(self.target, found, strict=True))))

    @abstractmethod
    def _recolour(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]: ...

    @abstractmethod
    def _statistics(self, tiles: Iterable[NDArray[np.uint8]]) -> tuple[Any, Any]:
        """Return the target of tiles, each (n, 3)."""


@dataclass(frozen=True)
class Reinhard(_Normalizer):
    """Give each image the `mean` and `std` of the target in CIELAB (L, a, b; Reinhard 2001, doi:10.1109/38.946629)."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    target: ClassVar[dict[str, tuple[int, ...]]] = {"mean": (3,), "std": (3,)}

    def _statistics(self, tiles: Iterable[NDArray[np.uint8]]) -> tuple[Any, Any]:
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

    The stains are the extreme angles in the plane of the two largest principal axes in optical density, the percentiles
    `alpha`, in [0, 50), and 100 - `alpha`. Colour outside the plane is lost. `light` is the grey level, plus one, of
    unstained glass; pixels with less density than `beta` in any channel do not count for the stains.

    `stains`, unit vectors (2, 3), the bluer one first, and `levels`, the `percentile` of each one's concentration, are
    those of the target, None before `fit`. The percentile 99 of the paper suits tissue, most of which is pale. Of a
    cell on black the darkest hundredth is its rim: there 50 brings subjects together and 99 does not.
    """

    stains: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    levels: tuple[float, float] | None = None
    light: float = 240.0
    alpha: float = 1.0
    percentile: float = 99.0
    beta: float = 0.15
    target: ClassVar[dict[str, tuple[int, ...]]] = {"stains": (2, 3), "levels": (2,)}

    def __post_init__(self) -> None:
        for name, low, high in (("light", 1, 1000), ("alpha", 0, 49.99), ("percentile", 1, 100), ("beta", 0, 5)):
            object.__setattr__(self, name, real_number(name, getattr(self, name), low, high) + 0.0)
        super().__post_init__()

    def _statistics(self, tiles: Iterable[NDArray[np.uint8]]) -> tuple[Any, Any]:
        stains, _, levels = self._stains(np.concatenate([np.empty((0, 3), np.uint8), *tiles]))
        return stains, levels

    def _recolour(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        _, concentrations, levels = self._stains(pixels)
        density = concentrations * (np.array(self.levels) / levels) @ np.array(self.stains)
        grey_levels = np.clip(self.light * np.exp(-np.maximum(density, -20.0)) - 1, 0, 255)
        return np.asarray(np.rint(grey_levels).astype(np.uint8))

    def _stains(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], ...]:
        """Return the two stains (2, 3), how much of each is in each pixel (n, 2), and the percentile of that (2,)."""
        density = optical_density(pixels, self.light)
        dense = density[(density >= self.beta).all(axis=1)]
        if len(dense) < _FEWEST:
            raise _Undefined(f"too few pixels are dense enough ({len(dense)}; {_FEWEST} are needed)")
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
        concentrations = density @ np.linalg.pinv(stains)
        levels = np.percentile(concentrations, self.percentile, axis=0)
        if abs(np.sin(angles[1] - angles[0])) < 1e-3 or levels.min() < 1e-6:
            raise _Undefined("its two stains are one, or one of them is absent")
        return stains, concentrations, levels


def _moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (3,) and covariance (3, 3) of (n, 3), by matrix products: numpy's sums over n are far slower."""
    mean = np.ones(len(values)) @ values / len(values)
    centred = values - mean
    return mean, centred.T @ centred / len(values)


def _chosen(image: NDArray[np.uint8], mask: Mask) -> NDArray[np.bool_]:
    return foreground_pixels(image, threshold=_TRACES) if mask is None else check_mask(mask, image)
