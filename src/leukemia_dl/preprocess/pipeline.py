"""Pipelines of deterministic steps from a file to uint8 pixels, as values, and the steps that move pixels."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leukemia_dl import identity
from leukemia_dl.checks import choice, real_number, whole_number
from leukemia_dl.errors import ImageError, SettingsError, unknown_name_error
from leukemia_dl.preprocess.decode import check_image, decode_image
from leukemia_dl.preprocess.foreground import bounding_box, foreground_mask

MAX_SIZE = 4_472  # longest side that a step may produce: its square has as many pixels as a file may have
_STEPS: dict[str, type[Step]] = {}  # by name; subclasses of `Step` enter themselves


class Step(ABC):
    """One deterministic step from pixels to pixels.

    A subclass, yours too, is a frozen dataclass; its fields are JSON values or tuples of numbers, checked on creation,
    so that a pipeline can be printed, hashed and stored. The name of a built-in step is a SettingsError.
    """

    keeps_scale: ClassVar[bool] = True
    """False for a step that gives cells of different size the same size: the cue of size is then lost."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if getattr(_STEPS.get(cls.__name__), "__module__", "").startswith("leukemia_dl."):
            raise SettingsError(f"There is a step {cls.__name__!r} in leukemia_dl: choose another name for yours.")
        _STEPS[cls.__name__] = cls

    @abstractmethod
    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return uint8 (h', w', 3) of `image`, uint8 (h, w, 3): a new array, or `image` itself if nothing changes."""

    @property
    def is_fitted(self) -> bool:
        """False for a step that must see training images (`fit`) before it can be applied."""
        return True

    def fit(self, images: NDArray[np.uint8]) -> Self:
        """Return this step, fitted to training `images`, uint8 (n, h, w, 3); itself, if there is nothing to fit."""
        return self

    def size_after(self, size: int | None) -> int | None:
        """Return the side, in pixels, that a square of side `size` has afterwards; None if it is not known."""
        return size if self.keeps_scale else None


class _ToSize(Step):
    size: int  # of the results

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", whole_number("size", self.size, 1, MAX_SIZE))

    def size_after(self, size: int | None) -> int | None:
        return self.size


@dataclass(frozen=True)
class CenterOnCanvas(_ToSize):
    """Crop or pad with black to a square canvas of `size` pixels around the middle: cells keep their absolute size.

    Where the difference is odd, the extra row or column is at the bottom or right. C-NMC 2019's images have 450 pixels.
    """

    size: int = 450

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the step."""
        height, width = check_image(image).shape[:2]
        # int() rounds towards zero, for cutting and for padding.
        return _square(image, int((height - self.size) / 2), int((width - self.size) / 2), self.size)


@dataclass(frozen=True)
class PadToSquare(Step):
    """Pad the shorter side with black, so that a later resize does not distort. A side over 4,472 is an ImageError."""

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the step."""
        height, width = check_image(image).shape[:2]
        side = max(height, width)
        return _square(image, int((height - side) / 2), int((width - side) / 2), side)


@dataclass(frozen=True)
class CropToCell(Step):
    """Crop to a square around the cell (`foreground_mask`), black outside the image; without a cell, pad to a square.

    `margin` is added on each side, as a share of the longer side of the cell's bounding box, from 0 to 10. A later
    resize then gives every cell the same size, so that a net cannot use it.
    """

    margin: float = 0.1
    keeps_scale: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # Adding 0.0 makes 0 of -0.0: equal steps have equal digests.
        object.__setattr__(self, "margin", real_number("margin", self.margin, 0, 10) + 0.0)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the step."""
        box = bounding_box(foreground_mask(image))
        if box is None:
            return PadToSquare()(image)
        top, left, bottom, right = box
        longer = max(bottom - top, right - left)
        side = longer + 2 * round(self.margin * longer)
        return _square(image, (top + bottom - side) // 2, (left + right - side) // 2, side)


@dataclass(frozen=True)
class Resize(_ToSize):
    """Resize to a square of `size` pixels, from any shape.

    The `method` "lanczos" is Pillow's, antialiased. "bilinear", to repeat older results, takes the four nearest pixels
    and is NOT antialiased, as `tf.image.resize` and Keras's `image_dataset_from_directory` by default.
    """

    size: int
    method: str = "lanczos"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("method", self.method, ("lanczos", "bilinear"))

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the step."""
        if check_image(image).shape[:2] == (self.size, self.size):
            return image
        if self.method == "bilinear":
            return _bilinear(image, self.size)
        return np.array(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.LANCZOS))


def _square(image: NDArray[np.uint8], top: int, left: int, side: int) -> NDArray[np.uint8]:
    """Return the square of an image whose corner is at (top, left), black outside the image."""
    if image.shape[:2] == (side, side) and top == left == 0:
        return image
    if side > MAX_SIZE:
        raise ImageError(f"A square of {side:,} pixels to hold the image or its cell is over the {MAX_SIZE:,} allowed.")
    square = np.zeros((side, side, 3), np.uint8)
    seen = image[max(top, 0) : top + side, max(left, 0) : left + side]
    row, column = max(-top, 0), max(-left, 0)
    square[row : row + seen.shape[0], column : column + seen.shape[1]] = seen
    return square


def _bilinear(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Mix the four pixels around each centre; memory follows the result, however long the image."""
    axes = []
    for length in image.shape[:2]:
        centre = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
        first = np.floor(centre).astype(np.int64)
        axes.append((first, np.minimum(first + 1, length - 1), (centre - first).astype(np.float32)))
    (top, bottom, down), (left, right, across) = axes
    down, across = down[:, None, None], across[None, :, None]
    upper = image[np.ix_(top, left)] * (1 - across) + image[np.ix_(top, right)] * across
    lower = image[np.ix_(bottom, left)] * (1 - across) + image[np.ix_(bottom, right)] * across
    return np.asarray(np.rint(upper * (1 - down) + lower * down).astype(np.uint8))


@dataclass(frozen=True)
class Pipeline:
    """The `steps` that are applied to decoded pixels, such as `CenterOnCanvas(450)`, `Resize(224)`, `Reinhard()`.

    Equal pipelines have equal hashes and digests and give equal pixels. May be used by many threads at once. Anything
    but a tuple of steps is a SettingsError.

    Examples:
        >>> import leukemia_dl as ldl
        >>> pipeline = ldl.Pipeline.default(224, canvas=450)
        >>> print(pipeline)
        Pipeline(steps=(CenterOnCanvas(size=450), Resize(size=224, method='lanczos')))
        >>> pipeline.output_size, pipeline.keeps_scale
        (224, True)
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.steps, (tuple, list)) or not all(isinstance(step, Step) for step in self.steps):
            raise SettingsError(f"A pipeline takes a tuple of steps, such as (Resize(224),). Received: {self.steps!r}.")
        for step in map(type, self.steps):
            if not (dataclasses.is_dataclass(step) and step.__dataclass_params__.frozen):  # type: ignore[attr-defined]
                raise SettingsError(f"A step is a dataclass with frozen=True. Received: {step.__name__}.")
        object.__setattr__(self, "steps", tuple(self.steps))

    @classmethod
    def default(cls, size: int, canvas: int | None = None) -> Pipeline:
        """Return a pipeline that pads images to a square, or centres them on a `canvas`, and resizes them to `size`."""
        return cls((PadToSquare() if canvas is None else CenterOnCanvas(canvas), Resize(size)))

    @classmethod
    def published_v1(cls, size: int = 180) -> Pipeline:
        """Return the preprocessing behind the published table: squeezed to a square of `size`, not antialiased."""
        return cls((Resize(size, method="bilinear"),))

    @classmethod
    def decode_only(cls) -> Pipeline:
        """Return the pipeline without steps: the pixels as they are in the file."""
        return cls(())

    def then(self, *steps: Step) -> Pipeline:
        """Return a pipeline that goes on with further `steps`: `Pipeline.default(224).then(Reinhard())`."""
        return Pipeline((*self.steps, *steps))

    @property
    def is_fitted(self) -> bool:
        """False if a step must see training images before the pipeline can be applied."""
        return all(step.is_fitted for step in self.steps)

    def partition(self) -> tuple[Pipeline, Pipeline]:
        """Return the steps before the first one that has to be fitted, whose pixels can be kept, and the rest."""
        count = next((i for i, step in enumerate(self.steps) if not step.is_fitted), len(self.steps))
        return Pipeline(self.steps[:count]), Pipeline(self.steps[count:])

    def fit(self, images: NDArray[np.uint8]) -> Pipeline:
        """Return this pipeline, its steps fitted in order to `images`, uint8 (n, h, w, 3), as they come to each."""
        steps = list[Step]()
        for step in self.steps:
            steps.append(step if step.is_fitted else step.fit(images))
            if len(steps) < len(self.steps):
                images = Pipeline((steps[-1],))(images)
        return Pipeline(tuple(steps))

    def __call__(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the steps to `array`, one image or a batch, uint8 (h, w, 3) or (n, h, w, 3), RGB 0..255.

        Returns a new array, uint8, (h', w', 3) or (n, h', w', 3). Raises ImageError if `array` is no such array,
        SettingsError if a step was not fitted, and ValueError if a batch is empty or comes out in different sizes.
        """
        if check_image(array, batch=True).ndim == 3:
            result = self._one(array)
            # A step may return its input; writing into the result must not write into it.
            return result.copy() if np.may_share_memory(result, array) else result
        return np.stack([self._one(image) for image in array])

    def load(self, path: str | Path) -> NDArray[np.uint8]:
        """Return the pixels of the file `path` after the steps: uint8 (h', w', 3), a new array."""
        return self._one(decode_image(path))

    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        for step in self.steps:
            image = check_image(step(image))
        return image

    @property
    def output_size(self) -> int | None:
        """Side in pixels of the square output images; None if it depends on the input."""
        size: int | None = None
        for step in self.steps:
            size = step.size_after(size)
        return size

    @property
    def keeps_scale(self) -> bool:
        """Whether all images of one size come out at one scale, so that the size of a cell can be compared."""
        return all(step.keeps_scale for step in self.steps)

    def scale(self, image: NDArray[np.uint8]) -> float:
        """Return how many pixels wide one pixel of `image`, uint8 (h, w, 3), becomes; by height, where they differ."""
        scale = 1.0
        for step in self.steps:
            height, image = len(image), step(image)
            scale *= len(image) / height if isinstance(step, Resize) else 1
        return scale

    def to_dict(self) -> dict[str, Any]:
        """Return the steps and their parameters as plain values that JSON can hold; None is left out."""
        entries = []
        for step in self.steps:
            fields = dataclasses.asdict(cast(Any, step)).items()
            entries.append({"step": type(step).__name__} | {name: value for name, value in fields if value is not None})
        return {"steps": entries}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Pipeline:
        """Return the pipeline that `values`, as from `to_dict`, describe.

        Raises SettingsError for another form or a wrong parameter, and UnknownNameError for an unknown step.
        """

        def made(step: str, **parameters: Any) -> Step:
            if step not in _STEPS:
                raise unknown_name_error("preprocessing step", step, _STEPS, "Import the module of a custom step.")
            return _STEPS[step](**parameters)

        try:
            return cls(tuple(made(**entry) for entry in values["steps"]))
        except (KeyError, TypeError) as error:
            form = '{"steps": [{"step": NAME, parameter: value, ...}, ...]}'
            raise SettingsError(f"A pipeline is stored as {form}: {error}. Received: {values!r}.") from error

    @property
    def digest(self) -> str:
        """SHA-256 of `to_dict()`, 64 hexadecimal digits: changes with any parameter of any step."""
        return identity.digest(self.to_dict())
