"""Random augmentation of training images: parameters drawn by numpy from named seeds, applied with `keras.ops`.

Only plain operations are used, so that it runs on the device, inside a compiled step, on any backend, with the same
numbers: Keras's own random layers draw others on each backend, and most of them switch compilation off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.errors import SettingsError
from leukemia_dl.identity import generator
from leukemia_dl.preprocess import GIEMSA
from leukemia_dl.preprocess.colour import LIGHT, stain_matrix

__all__ = ["PARAMETERS", "Augmentation", "augment", "augment_images", "background_colour", "training_model"]

PARAMETERS = (
    "turns", "mirror", "angle", "down", "right", "brightness", "contrast", "stain_1", "stain_2", "red", "green", "blue",
)  # fmt: skip
"""Columns of what `Augmentation.draw` returns; the last three are the colour of the image's background."""
_LARGEST = {"rotation": 180.0, "shift": 0.5, "brightness": 0.9, "contrast": 0.9, "stain": 0.9}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to a training image, each anew in each epoch; 0 or False switches it off.

    Attributes:
        symmetries: Turn by right angles and mirror: one of the eight symmetries of the square, exactly.
        rotation: Turn further, by up to so many degrees either way, bilinear; what comes in is background.
        shift: Move by up to this share of the side, down or up and right or left; likewise.
        brightness: Multiply the cell's grey levels by 1 +- this.
        contrast: Multiply their distance from the cell's mean colour by 1 +- this.
        stain: Multiply the density of each of two stains (Giemsa's) by 1 +- this (Tellez et al. 2018,
            doi:10.1109/TMI.2018.2820199).
    """

    symmetries: bool = True
    rotation: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    stain: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a value that is not allowed, with its name."""
        if not isinstance(self.symmetries, bool):
            raise SettingsError(f"symmetries must be True or False. Received: symmetries={self.symmetries!r}.")
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= largest:
                raise SettingsError(f"{name} must be a number from 0 to {largest:g}. Received: {name}={value!r}.")

    @property
    def moves(self) -> bool:
        """Whether images are resampled: the costly part."""
        return self.rotation > 0 or self.shift > 0

    @property
    def recolours(self) -> bool:
        """Whether colours change."""
        return max(self.brightness, self.contrast, self.stain) > 0

    @property
    def augments(self) -> bool:
        """Whether anything happens at all."""
        return self.symmetries or self.moves or self.recolours

    def draw(self, background: NDArray[np.uint8], seed: int, epoch: int) -> NDArray[np.float32]:
        """Draw the parameters of each image for one epoch.

        Args:
            background: uint8 (n, 3), see `background_colour`.
            seed: Of the trial. Each parameter is an axis of its own: switching one on shifts no other.
            epoch: From 0.

        Returns:
            float32 (n, len(PARAMETERS)). Angles in radians, counter-clockwise; shifts as shares of the side.
        """
        count = len(background)

        def uniform(axis: str, largest: float) -> NDArray[np.float64]:
            return largest * generator(seed, axis, epoch).uniform(-1, 1, count)

        codes = generator(seed, "symmetry", epoch).integers(0, 8, count) * self.symmetries
        columns = [
            codes % 4,
            codes // 4,
            uniform("rotation", math.radians(self.rotation)),
            uniform("shift down", self.shift),
            uniform("shift right", self.shift),
            uniform("brightness", self.brightness),
            uniform("contrast", self.contrast),
            uniform("stain 1", self.stain),
            uniform("stain 2", self.stain),
            *background.T,
        ]
        return np.stack(columns, axis=1).astype(np.float32)


def background_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colour behind the cells of each image, judged by its outermost pixels: uint8 (n, h, w, 3) to (n, 3).

    Black where at least half of these are, as on C-NMC; else the median of the brighter half, since the background of a
    smear in bright field is brighter than cells that touch the frame.
    """
    edge = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    brightness = edge.sum(axis=2, dtype=np.int64)
    brighter = np.argsort(brightness, axis=1, kind="stable")[:, edge.shape[1] // 2 :, None]
    colour: NDArray[np.uint8] = np.median(np.take_along_axis(edge, brighter, axis=1), axis=1).astype(np.uint8)
    colour[(brightness == 0).mean(axis=1) >= 0.5] = 0
    return colour


def augment(images: Any, parameters: Any, settings: Augmentation) -> Any:
    """Apply drawn parameters with `keras.ops`.

    Args:
        images: Tensor (n, size, size, 3), RGB 0..255, uint8 or float32. `size` is static.
        parameters: float32 tensor (n, len(PARAMETERS)).
        settings: Says which parts are needed at all. Right angles and mirroring come first and are exact; then
            rotation and shift in one bilinear step; then colour, on pixels that are not exactly black.

    Returns:
        float32 (n, size, size, 3), 0..255.
    """
    from keras import ops

    value = dict(zip(PARAMETERS, ops.split(parameters, len(PARAMETERS), axis=1), strict=True))
    if settings.symmetries:
        images = _symmetry(images, value["turns"], value["mirror"])
    images = ops.cast(images, "float32")
    if settings.moves:
        fill = ops.reshape(parameters[:, -3:], (-1, 1, 1, 3))
        images = _warp(images - fill, value["angle"], value["down"], value["right"]) + fill
    return _recolour(images, value, settings) if settings.recolours else images


def augment_images(
    images: NDArray[np.uint8], settings: Augmentation, seed: int = 0, epoch: int = 0
) -> NDArray[np.uint8]:
    """Return images as training would see them, rounded: uint8 (n, size, size, 3) to the same; for looking at them."""
    from keras import ops

    parameters = settings.draw(background_colour(images), seed, epoch)
    result = augment(ops.convert_to_tensor(images), ops.convert_to_tensor(parameters), settings)
    pixels: NDArray[np.uint8] = np.rint(np.clip(ops.convert_to_numpy(result), 0, 255)).astype(np.uint8)
    return pixels


def training_model(model: Any, settings: Augmentation) -> Any:
    """Return a `keras.Model` ([images, parameters] to logits) that augments, then calls `model`, sharing its weights.

    `images` are uint8, so that a quarter of the bytes travel to the device.
    """
    import keras

    class Augment(keras.layers.Layer):  # type: ignore[misc]
        def call(self, inputs: Any) -> Any:
            images, parameters = inputs
            return keras.ops.stop_gradient(augment(images, parameters, settings))

        def compute_output_shape(self, shapes: Any) -> Any:
            return shapes[0]

    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    parameters = keras.Input((len(PARAMETERS),), dtype="float32", name="augmentation")
    augmented = Augment(dtype="float32", name="augment")([images, parameters])
    return keras.Model([images, parameters], model(augmented), name=f"{model.name}_training")


def _symmetry(images: Any, turns: Any, mirror: Any) -> Any:
    """Turn counter-clockwise by right angles, then mirror left to right: as np.rot90 and a flip of the columns."""
    from keras import ops

    turns, mirror = (ops.reshape(value, (-1, 1, 1, 1)) for value in (turns, mirror))
    odd = ops.equal(ops.mod(turns, 2.0), 1.0)
    images = ops.where(odd, ops.transpose(images, (0, 2, 1, 3)), images)
    upside_down = ops.logical_and(turns > 0.5, turns < 2.5)
    images = ops.where(upside_down, ops.flip(images, axis=1), images)
    return ops.where(ops.not_equal(turns > 1.5, mirror > 0.5), ops.flip(images, axis=2), images)


def _warp(images: Any, angle: Any, down: Any, right: Any) -> Any:
    """Rotate about the middle and shift; 0 comes in from outside."""
    from keras import ops

    size = images.shape[1]
    centre = (size - 1) / 2
    grid = np.arange(size, dtype=np.float32) - centre
    angle, down, right = (ops.reshape(value, (-1, 1, 1)) for value in (angle, down * size, right * size))
    y = ops.subtract(grid.reshape(1, size, 1), down)
    x = ops.subtract(grid.reshape(1, 1, size), right)
    cosine, sine = ops.cos(angle), ops.sin(angle)
    # Where each pixel comes from, in an image with a rim of one pixel of background around it.
    y, x = cosine * y + sine * x + (centre + 1), cosine * x - sine * y + (centre + 1)
    top, left = ops.floor(y), ops.floor(x)
    below, across = ops.expand_dims(y - top, -1), ops.expand_dims(x - left, -1)
    padded = ops.reshape(ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), (-1, 3))
    top, left = ops.cast(top, "int32"), ops.cast(left, "int32")
    first = ops.reshape(ops.arange(ops.shape(images)[0], dtype="int32") * (size + 2) ** 2, (-1, 1, 1))

    def corner(rows: Any, columns: Any) -> Any:
        rows, columns = ops.clip(rows, 0, size + 1), ops.clip(columns, 0, size + 1)
        return ops.take(padded, first + rows * (size + 2) + columns, axis=0)

    upper = corner(top, left) * (1 - across) + corner(top, left + 1) * across
    lower = corner(top + 1, left) * (1 - across) + corner(top + 1, left + 1) * across
    return upper * (1 - below) + lower * below


def _recolour(images: Any, value: dict[str, Any], settings: Augmentation) -> Any:
    from keras import ops

    cell = ops.cast(ops.any(images > 0, axis=-1, keepdims=True), "float32")
    if settings.stain:
        stains = stain_matrix(GIEMSA).astype(np.float32)
        factors = ops.concatenate([1 + value["stain_1"], 1 + value["stain_2"], ops.ones_like(value["stain_1"])], axis=1)
        # Into stains, scaled there, and back: one 3 x 3 matrix per image.
        mixing = ops.matmul(ops.multiply(np.linalg.inv(stains), ops.expand_dims(factors, 1)), stains)
        density = -ops.log((images + 1) / LIGHT)
        shape = ops.shape(images)
        density = ops.reshape(ops.matmul(ops.reshape(density, (shape[0], -1, 3)), mixing), shape)
        images = LIGHT * ops.exp(-density) - 1
    if settings.brightness or settings.contrast:
        brightness, contrast = (1 + ops.reshape(value[name], (-1, 1, 1, 1)) for name in ("brightness", "contrast"))
        pixels = ops.maximum(ops.sum(cell, axis=(1, 2), keepdims=True), 1.0)
        mean = ops.sum(images * cell, axis=(1, 2), keepdims=True) / pixels
        images = brightness * (mean + contrast * (images - mean))
    return ops.clip(images, 0.0, 255.0) * cell
