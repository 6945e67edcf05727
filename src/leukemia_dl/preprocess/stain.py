"""Stain normalisation that leaves the background alone: Reinhard and Macenko, inside a mask.

Both are steps: immutable, `fit` returns a fitted one. C-NMC 2019 was already normalised by its authors: default off.
A tile on which a method is not defined (too few pixels, one colour) comes back unchanged, and the reason is logged.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.errors import ImageError, SettingsError
from leukemia_dl.preprocess.colour import density_to_rgb, lab_to_rgb, optical_density, rgb_to_lab, stain_matrix
from leukemia_dl.preprocess.decode import check_image
from leukemia_dl.preprocess.foreground import check_mask, foreground_pixels
from leukemia_dl.preprocess.steps import Step

__all__ = ["Macenko", "Reinhard", "Undefined"]

_log = logging.getLogger(__name__)
_told: set[str] = set()  # what was logged as a warning: a data set may have thousands of such tiles
_FIT_PIXELS = 2_000_000  # Together, over all images of a fit: bounds its memory to some 200 MB.

_TRACES = 8  # Grey levels that resizing leaves around a cell on black: recoloured, they would be a halo.
_FLAT = 0.05  # A spread in CIELAB below what rounding to whole grey levels makes: noise, not to be blown up.


class Undefined(Exception):
    """A tile has no such statistics; the text says why."""


class _Normalizer(Step):
    """What the two have in common: masks, and tiles on which nothing can be done."""

    fewest: ClassVar[int]

    def __call__(self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """Normalise one image.

        Args:
            image: uint8, (h, w, 3). Not changed.
            mask: bool (h, w), what to recolour; None for `foreground_pixels(image, threshold=8)`.

        Returns:
            uint8, (h, w, 3); equal to the image outside the mask, to the bit. The image itself where the method is not
            defined on it; each reason is logged, as a warning the first time in a process and at level DEBUG then.

        Raises:
            SettingsError: If it was not fitted.
            ImageError: If image or mask are none.
        """
        if not self.is_fitted:
            raise SettingsError(
                f"{self!r} has no target yet: use {type(self).__name__}().fit(images), which returns one."
            )
        chosen = _mask(image, mask)
        pixels = image[chosen]
        try:
            if len(pixels) < self.fewest:
                raise Undefined(f"too few pixels in the mask ({len(pixels)}; {self.fewest} are needed)")
            recoloured = self._recolour(pixels)
        except Undefined as reason:
            text = f"{type(self).__name__} left an image as it is: {reason}"
            _log.log(logging.DEBUG if text in _told else logging.WARNING, "%s", text)
            _told.add(text)
            return image
        result = image.copy()
        result[chosen] = recoloured
        return result

    def fit(self, images: Any, masks: Sequence[NDArray[np.bool_] | None] | None = None) -> Self:
        """Return this step with the target of images: for Reinhard each counts the same, for Macenko each pixel.

        Args:
            images: uint8 (n, h, w, 3), one image (h, w, 3), or a sequence of images of any size.
            masks: A mask per image, see `__call__`; None to find them.

        Raises:
            ImageError: If the method is defined on none of the images.
        """
        if isinstance(images, np.ndarray) and images.ndim == 3:
            images, masks = [images], None if masks is None else [masks]  # type: ignore[list-item]
        if masks is not None and len(masks) != len(images):
            raise ImageError(f"fit needs a mask per image. Received: {len(images)} images and {len(masks)} masks.")
        pairs = zip(images, masks if masks is not None else [None] * len(images), strict=True)
        most = max(_FIT_PIXELS // max(len(images), 1), 256)
        tiles = (_thinned(image[_mask(image, mask)], most) for image, mask in pairs)
        return self._target(pixels for pixels in tiles if len(pixels) >= self.fewest)

    @abstractmethod
    def _recolour(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return pixels (n, 3) in the target's stain. Raises Undefined where they have no statistics."""

    @abstractmethod
    def _target(self, tiles: Iterator[NDArray[np.uint8]]) -> Self:
        """Return this step with the target of tiles, each (n, 3). Raises ImageError if none has one."""


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

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise SettingsError(f"Reinhard takes both mean and std, or neither. Received: {self!r}.")
        if self.mean is not None:
            object.__setattr__(self, "mean", _numbers("Reinhard", "mean", self.mean, (3,), low=-200))
            object.__setattr__(self, "std", _numbers("Reinhard", "std", self.std, (3,), low=0))

    @property
    def is_fitted(self) -> bool:
        """Whether it has a target."""
        return self.mean is not None

    def _target(self, tiles: Iterator[NDArray[np.uint8]]) -> Self:
        moments = [_moments(rgb_to_lab(tile)) for tile in tiles]
        if not moments:
            raise ImageError("Reinhard cannot be fitted: no image has two pixels of foreground.")
        means, covariances = (np.mean(part, axis=0) for part in zip(*moments, strict=True))
        found: dict[str, Any] = {"mean": means, "std": np.sqrt(np.diag(covariances))}
        return replace(self, **found)

    def _recolour(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        lab = rgb_to_lab(pixels)
        mean, covariance = _moments(lab)
        std = np.sqrt(np.diag(covariance))
        if std.min() < _FLAT:
            raise Undefined("its pixels have one colour, or vary in lightness only")
        return lab_to_rgb((lab - mean) * (np.array(self.std) / std) + np.array(self.mean))


@dataclass(frozen=True)
class Macenko(_Normalizer):
    """Give each image the stains of the target, and as much of them.

    Macenko et al. 2009, doi:10.1109/ISBI.2009.5193250. Two stains span a plane in optical density: that of the two
    largest principal axes. The extreme angles in it (percentiles `alpha` and 100 - `alpha`) are the stains, and a
    percentile of each one's concentration is scaled to the target's. What is not in the plane is lost, as in the paper.

    Attributes:
        stains: Unit vectors of the two stains (2, 3), the bluer one first; None before `fit`.
        levels: That percentile of each one's concentration.
        light: Grey level, plus one, of unstained glass.
        alpha: Percentile of the angle, in [0, 50).
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

    def __post_init__(self) -> None:
        for name, low, high in (("light", 1, 1000), ("alpha", 0, 49.99), ("percentile", 1, 100), ("beta", 0, 5)):
            object.__setattr__(self, name, _numbers("Macenko", name, getattr(self, name), (), low, high))
        if (self.stains is None) != (self.levels is None):
            raise SettingsError(f"Macenko takes both stains and levels, or neither. Received: {self!r}.")
        if self.stains is not None:
            object.__setattr__(self, "stains", _numbers("Macenko", "stains", self.stains, (2, 3), low=-1))
            stain_matrix(self.stains)
            object.__setattr__(self, "levels", _numbers("Macenko", "levels", self.levels, (2,), low=0))

    @property
    def is_fitted(self) -> bool:
        """Whether it has a target."""
        return self.stains is not None

    def _target(self, tiles: Iterator[NDArray[np.uint8]]) -> Self:
        try:
            stains, concentrations = self._stains(np.concatenate([np.empty((0, 3), np.uint8), *tiles]))
            levels = np.percentile(concentrations, self.percentile, axis=0)
            if levels.min() < 1e-6:
                raise Undefined("one of the stains is absent")
        except Undefined as reason:
            raise ImageError(f"Macenko cannot be fitted to these images: {reason}.") from None
        found: dict[str, Any] = {"stains": stains, "levels": levels}
        return replace(self, **found)

    def _recolour(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        _, concentrations = self._stains(pixels)
        levels = np.percentile(concentrations, self.percentile, axis=0)
        if levels.min() < 1e-6:
            raise Undefined("one of the stains is absent")
        return density_to_rgb(concentrations * (np.array(self.levels) / levels) @ np.array(self.stains), self.light)

    def _stains(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the two stains (2, 3) and how much of each is in each pixel (n, 2)."""
        density = optical_density(pixels, self.light)
        dense = density[(density >= self.beta).all(axis=1)]
        if len(dense) < self.fewest:
            raise Undefined(f"too few pixels are dense enough ({len(dense)}; {self.fewest} are needed)")
        mean, covariance = _moments(dense)
        spread, axes = np.linalg.eigh(covariance)
        if spread[1] < 1e-6:
            raise Undefined("its colours do not span a plane in optical density")
        plane = axes[:, 1:]
        # The signs of eigenvectors are arbitrary: turned to where the densities are, or angles would wrap around.
        plane = plane * np.where(mean @ plane < 0, -1.0, 1.0)
        along = dense @ plane
        angles = np.percentile(np.arctan2(along[:, 0], along[:, 1]), [self.alpha, 100 - self.alpha])
        stains = np.stack([np.sin(angles), np.cos(angles)], axis=1) @ plane.T
        stains = stains[np.argsort(-stains[:, 0])]
        if abs(np.sin(angles[1] - angles[0])) < 1e-3:
            raise Undefined("its two stains are one")
        return stains, density @ np.linalg.pinv(stains)


def _moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (3,) and covariance (3, 3) of (n, 3), by matrix products: numpy's own sums over n are far slower."""
    mean = np.ones(len(values)) @ values / len(values)
    centred = values - mean
    return mean, centred.T @ centred / len(values)


def _mask(image: NDArray[np.uint8], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    if mask is None:
        return foreground_pixels(image, threshold=_TRACES)
    check_mask(mask, check_image(image).shape[:2])
    return mask


def _thinned(pixels: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    return pixels[:: -(-len(pixels) // most)] if len(pixels) > most else pixels


def _numbers(step: str, name: str, values: Any, shape: tuple[int, ...], low: float, high: float = 1000.0) -> Any:
    """Return numbers as floats in tuples, as JSON's lists are not hashable."""
    try:
        array = np.asarray(values)
        array = array.astype(np.float64) + 0.0 if array.dtype.kind in "iuf" else np.full((0,), np.nan)
    except ValueError:  # rows of different length
        array = np.full((0,), np.nan)
    if array.shape != shape or not np.isfinite(array).all() or array.min() < low or array.max() > high:
        raise SettingsError(
            f"{step} needs {name} as numbers of shape {shape} from {low:g} to {high:g}. Received: {name}={values!r}."
        )
    return tuple(map(tuple, array.tolist())) if array.ndim == 2 else (tuple(array.tolist()) if shape else float(array))
