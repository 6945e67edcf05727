"""Random augmentation of training images: parameters drawn by numpy from named seeds, applied with `keras.ops`.

Keras's own random layers draw other numbers on each backend, and most of them switch compilation off.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.checks import choice, flag, real_number, whole_number
from leukemia_dl.errors import ImageError
from leukemia_dl.identity import generator
from leukemia_dl.preprocess import GIEMSA
from leukemia_dl.preprocess.colour import LIGHT, stain_matrix
from leukemia_dl.preprocess.decode import check_image
from leukemia_dl.training.backends import xla_jit

# Columns of the array that `Augmentation.draw` returns; the last three are the colour of the image's background.
PARAMETERS = (
    "turns", "mirror", "angle", "down", "right", "brightness", "contrast", "stain_1", "stain_2", "red", "green", "blue",
)  # fmt: skip
_DARKEST = 32.0  # Sum of the three channels above which a pixel is certainly cell; C-NMC's have 60 and more.


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of each training image in each epoch; 0 or False switches one off.

    Attributes:
        symmetries: Turn by right angles and mirror: one of the eight symmetries of the square, exactly.
        rotation: Turn further, by up to so many degrees either way, bilinear; the corners become background.
        shift: Move by up to this share of the side, down or up and right or left, bilinear.
        brightness: Multiply the cell's grey levels by 1 +- this.
        contrast: Multiply their distance from the cell's mean colour by 1 +- this.
        stain: Multiply the density of Giemsa's two stains by 1 +- this (Tellez et al. 2018,
            doi:10.1109/TMI.2018.2820199).
    """

    symmetries: bool = True
    rotation: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    stain: float = 0.0

    # The interval of each number, as arguments of `real_number` or `whole_number`.
    _RANGES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "rotation": (0, 180), "shift": (0, 0.5), "brightness": (0, 0.9), "contrast": (0, 0.9), "stain": (0, 0.9)
    }  # fmt: skip

    def __post_init__(self) -> None:
        """Check the values by their types, and convert numbers: 0, 0.0 and numpy's are one setting, with one digest."""
        kinds = get_type_hints(type(self))
        checks: dict[Any, Callable[..., Any]] = {bool: flag, int: whole_number, float: real_number}
        for name in (field.name for field in fields(self)):
            value, kind = getattr(self, name), kinds[name]
            if kind in checks:
                value = checks[kind](name, value, *self._RANGES.get(name, ()))
            elif get_origin(kind) is Literal:
                choice(name, value, get_args(kind))
            object.__setattr__(self, name, value)

    @property
    def augments(self) -> bool:
        """Whether any change is switched on."""
        return any(getattr(self, field.name) for field in fields(Augmentation))

    def draw(self, background: NDArray[np.uint8], seed: int, epoch: int) -> NDArray[np.float32]:
        """Return the parameters of each image for an `epoch`, from 0: float32 (n, len(PARAMETERS)).

        Angles are in radians, counter-clockwise; shifts are shares of the side. `background` is uint8 (n, 3), `seed`
        that of the trial. Each parameter is an axis of its own: none shifts another.
        """
        count = len(background)
        codes = generator(seed, "symmetry", epoch).integers(0, 8, count) * self.symmetries
        largest = {
            "rotation": math.radians(self.rotation), "shift down": self.shift, "shift right": self.shift,
            "brightness": self.brightness, "contrast": self.contrast, "stain 1": self.stain, "stain 2": self.stain,
        }  # fmt: skip
        drawn = [most * generator(seed, axis, epoch).uniform(-1, 1, count) for axis, most in largest.items()]
        return np.stack([codes % 4, codes // 4, *drawn, *background.T], axis=1).astype(np.float32)


def background_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colour behind the cells of each image by its outermost pixels: uint8 (n, h, w, 3) to (n, 3).

    Black where at least half of these are, as on C-NMC; else the median of the brighter half, since the background of a
    smear in bright field is brighter than cells that touch the frame.
    """
    edge = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    brightness = edge.sum(axis=2, dtype=np.int64)
    brighter = np.argsort(brightness, axis=1, kind="stable")[:, edge.shape[1] // 2 :, None]
    colour: NDArray[np.uint8] = np.median(np.take_along_axis(edge, brighter, axis=1), axis=1).astype(np.uint8)
    colour[(brightness == 0).mean(axis=1) >= 0.5] = 0
    return colour


def augment(
    images: Any, parameters: Any, settings: Augmentation, compiled: Callable[[Any], Any] = lambda part: part
) -> Any:
    """Return augmented `images`, a tensor (n, size, size, 3) of RGB 0..255, uint8 or float32, as float32.

    `settings` switch parts on, each `compiled`: right angles and mirroring, which are exact; rotation and shift in one
    bilinear step; colour of pixels that are not black. `parameters` are those of `Augmentation.draw`, float32.
    """
    from keras import ops

    value = dict(zip(PARAMETERS, ops.split(parameters, len(PARAMETERS), axis=1), strict=True))
    moves = settings.rotation > 0 or settings.shift > 0
    if settings.symmetries or moves:
        fill = ops.cast(ops.reshape(parameters[:, -3:], (-1, 1, 1, 3)), images.dtype)
        images = compiled(_bilinear if moves else _exact)(images, fill, _motion(value, images.shape[1]))
    images = ops.cast(images, "float32")
    if not (settings.stain or settings.brightness or settings.contrast):
        return images
    # How much of a pixel is cell: 1 inside, 0 on exact black, between them on a rim that was interpolated, which would
    # light up if it counted whole. A matrix product is the quickest sum over three channels, and leaves one for each.
    cell = ops.minimum(ops.matmul(images, np.full((3, 3), 1 / _DARKEST, np.float32)), 1.0)
    if settings.stain:
        one, other = 1 + value["stain_1"], 1 + value["stain_2"]
        images = compiled(_stained)(images, cell, ops.concatenate([one, other, ops.ones_like(one)], axis=1))
    if settings.brightness or settings.contrast:
        brightness, contrast = (1 + ops.reshape(value[name], (-1, 1, 1, 1)) for name in ("brightness", "contrast"))
        images = compiled(_lit)(images, cell, brightness, contrast)
    return images


def augment_images(
    images: NDArray[np.uint8], settings: Augmentation, seed: int = 0, epoch: int = 0
) -> NDArray[np.uint8]:
    """Return `images`, uint8 (n, size, size, 3), as training sees them, rounded to uint8, to look at them.

    `settings` is an `Augmentation`, such as a `Recipe`; `seed` that of a trial, `epoch` counts from 0. Raises
    ImageError if the images are another array.
    """
    from keras import ops

    if check_image(images, batch=True).ndim != 4 or images.shape[1] != images.shape[2]:
        raise ImageError(f"Augmentation takes square images (n, size, size, 3). Received: {images.shape}.")
    parameters = settings.draw(background_colour(images), seed, epoch)
    result = augment(ops.convert_to_tensor(images), ops.convert_to_tensor(parameters), settings)
    return np.rint(np.clip(ops.convert_to_numpy(result), 0, 255)).astype(np.uint8)  # type: ignore[no-any-return]


def training_model(model: Any, settings: Augmentation) -> Any:
    """Return a `keras.Model` ([uint8 images, parameters] to logits) that augments, then calls `model`."""
    import keras

    once = functools.cache(xla_jit)  # otherwise compiled again in each call of an uncompiled net

    class Augment(keras.layers.Layer):  # type: ignore[misc]
        def call(self, inputs: Any) -> Any:
            return keras.ops.stop_gradient(augment(inputs[0], inputs[1], settings, once))

        def compute_output_shape(self, shapes: Any) -> Any:
            return shapes[0]

    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    parameters = keras.Input((len(PARAMETERS),), dtype="float32", name="augmentation")
    augmented = Augment(dtype="float32", name="augment")([images, parameters])
    return keras.Model([images, parameters], model(augmented), name=f"{model.name}_training")


def _motion(value: dict[str, Any], size: int) -> tuple[Any, ...]:
    """Return where pixels come from: (a, b, c, d, e, f), each (n, 1, 1).

    (y, x) = (a * row + b * column + c, d * row + e * column + f), counted from the middle of the image. A right angle
    is made of -1, 0 and 1, and stays exact.
    """
    from keras import ops

    turns, mirror, angle, down, right = (ops.reshape(value[name], (-1, 1, 1)) for name in PARAMETERS[:5])
    flip = 1 - 2 * mirror
    odd = ops.cast(ops.equal(ops.mod(turns, 2.0), 1.0), "float32")
    sign = ops.where(turns < 1.5, 1.0, -1.0)
    # As np.rot90, then a flip of the columns: (row, column) of the output comes from (even * row + side * column, ...).
    even, side = sign * (1 - odd), sign * odd
    cosine, sine = ops.cos(angle), ops.sin(angle)
    a, b, d, e = cosine, sine, -sine, cosine
    # The shift and the free rotation happen last, so they are undone first.
    c, f = -(a * down + b * right) * size, -(d * down + e * right) * size
    b_y, b_x = side * flip, even * flip
    rows = (even * a + b_y * d, even * b + b_y * e, even * c + b_y * f)
    return (*rows, -side * a + b_x * d, -side * b + b_x * e, -side * c + b_x * f)


def _exact(images: Any, fill: Any, motion: tuple[Any, ...]) -> Any:
    from keras import ops

    first, y, x = _sources(images, motion)
    # Whole numbers, but for the half in the middle of an even size, which the sum takes away again.
    y, x = ops.cast(ops.round(y), "int32"), ops.cast(ops.round(x), "int32")
    return ops.take(ops.reshape(images, (-1, 3)), first + y * images.shape[1] + x, axis=0)


def _bilinear(images: Any, fill: Any, motion: tuple[Any, ...]) -> Any:
    from keras import ops

    size, (first, y, x) = images.shape[1], _sources(images, motion)
    top, left = ops.floor(y), ops.floor(x)
    below, across = ops.expand_dims(y - top, -1), ops.expand_dims(x - left, -1)
    top, left = ops.cast(top, "int32"), ops.cast(left, "int32")
    flat, fill = ops.reshape(images, (-1, 3)), ops.cast(fill, "float32")

    def corner(rows: Any, columns: Any) -> Any:
        near_row, near_column = ops.clip(rows, 0, size - 1), ops.clip(columns, 0, size - 1)
        inside = ops.logical_and(ops.equal(near_row, rows), ops.equal(near_column, columns))
        found = ops.cast(ops.take(flat, first + near_row * size + near_column, axis=0), "float32")
        return ops.where(ops.expand_dims(inside, -1), found, fill)

    upper, lower = corner(top, left), corner(top + 1, left)
    upper = upper + across * (corner(top, left + 1) - upper)
    lower = lower + across * (corner(top + 1, left + 1) - lower)
    return upper + below * (lower - upper)


def _sources(images: Any, motion: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """Return where each image begins among all pixels, and the row and column that each of its pixels comes from."""
    from keras import ops

    count, size = ops.shape(images)[0], images.shape[1]
    centre, (a, b, c, d, e, f) = (size - 1) / 2, motion
    offsets = np.arange(size, dtype=np.float32) - centre
    row, column = (ops.convert_to_tensor(offsets.reshape(shape)) for shape in ((1, size, 1), (1, 1, size)))
    first = ops.reshape(ops.arange(count, dtype="int32") * size**2, (-1, 1, 1))
    return first, a * row + b * column + (c + centre), d * row + e * column + (f + centre)


def _stained(images: Any, cell: Any, factors: Any) -> Any:
    from keras import ops

    stains = stain_matrix(GIEMSA).astype(np.float32)
    # Into stains, scaled there, and back: one 3 x 3 matrix per image.
    mixing = ops.matmul(ops.multiply(np.linalg.inv(stains), ops.expand_dims(factors, 1)), stains)
    logarithms = ops.reshape(ops.log((images + 1) * (1 / LIGHT)), (ops.shape(images)[0], -1, 3))
    mixed = ops.reshape(ops.matmul(logarithms, mixing), ops.shape(images))
    return images + cell * (ops.clip(LIGHT * ops.exp(mixed) - 1, 0.0, 255.0) - images)


def _lit(images: Any, cell: Any, brightness: Any, contrast: Any) -> Any:
    from keras import ops

    pixels = ops.maximum(ops.sum(cell, axis=(1, 2), keepdims=True), 1.0)
    mean = ops.sum(images, axis=(1, 2), keepdims=True) / pixels
    return ops.clip((brightness * contrast) * images + (brightness * (1 - contrast) * mean) * cell, 0.0, 255.0)
