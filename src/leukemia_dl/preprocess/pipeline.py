"""Ordered deterministic steps from a file to uint8 pixels, as one value: printable, hashable, storable."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from leukemia_dl import identity
from leukemia_dl.errors import ImageError, SettingsError, unknown_name_error
from leukemia_dl.preprocess.decode import check_image, decode_image
from leukemia_dl.preprocess.steps import STEPS, CenterOnCanvas, PadToSquare, Resize, Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Pipeline"]


@dataclass(frozen=True)
class Pipeline:
    """Steps that are applied one after the other to decoded pixels.

    Equal pipelines have equal hashes, equal `digest` and give equal pixels. May be used by many threads at once.

    Attributes:
        steps: Records such as `CenterOnCanvas(450)`, `Resize(224)`, `Reinhard()`; anything else is a SettingsError.

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
        if not isinstance(self.steps, (tuple, list)):
            raise SettingsError(f"A pipeline takes a tuple of steps, such as (Resize(224),). Received: {self.steps!r}.")
        object.__setattr__(self, "steps", tuple(self.steps))
        for step in self.steps:
            if STEPS.get(type(step).__name__) is not type(step):
                raise SettingsError(f"A pipeline's steps are made from {', '.join(sorted(STEPS))}. Received: {step!r}.")
            if not getattr(getattr(step, "__dataclass_params__", None), "frozen", False):
                raise SettingsError(f"A step is a dataclass with frozen=True. Received: {type(step).__name__}.")
        try:
            _ = self.digest
        except TypeError as error:
            raise SettingsError(f"A step's fields are numbers, text, and tuples of these. {error}") from None

    @classmethod
    def default(cls, size: int, canvas: int | None = None) -> Pipeline:
        """Return a pipeline that pads each image to a square, or puts it on a canvas, and resizes it to `size` pixels.

        `canvas` is the side of the canvas in pixels, for data sets whose cells have one scale (see
        `dataset.default_pipeline`); everything outside the middle of an image is then cut off.
        """
        return cls((PadToSquare() if canvas is None else CenterOnCanvas(canvas), Resize(size)))

    @classmethod
    def published_v1(cls, size: int = 180) -> Pipeline:
        """Return the preprocessing behind the published table: squeezed to a square of `size` pixels, not antialiased.

        Keras keeps the interpolated values as floats; here they are rounded to whole grey levels.
        """
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
        """Return the steps before the first one that has to be fitted, and the rest.

        The first part acts file by file and its pixels can be kept; the second is fitted to the training images of each
        split, as the first part left them, so that test images have no influence on it.
        """
        count = next((i for i, step in enumerate(self.steps) if not step.is_fitted), len(self.steps))
        return Pipeline(self.steps[:count]), Pipeline(self.steps[count:])

    def fit(self, images: NDArray[np.uint8]) -> Pipeline:
        """Return this pipeline with every step fitted, in order, to `images`, uint8 (n, h, w, 3), as they come to it.

        Raises:
            ImageError: If a step cannot be fitted to them.
        """
        images = check_image(images, batch=True)
        images = images[None] if images.ndim == 3 else images
        steps: list[Step] = []
        for step in self.steps:
            steps.append(step if step.is_fitted else step.fit(images))
            if len(steps) < len(self.steps):
                images = Pipeline((steps[-1],))(images)
        return Pipeline(tuple(steps))

    def __call__(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the steps to `array`, one image or a batch, uint8 (h, w, 3) or (n, h, w, 3), RGB 0..255.

        Returns:
            uint8, (h', w', 3) or (n, h', w', 3), a new array.

        Raises:
            ImageError: If `array` is no such array, or the images of a batch come out in different sizes.
            SettingsError: If a step was not fitted.
        """
        if check_image(array, batch=True).ndim == 3:
            result = self._one(array)
            # A step may return its input; writing into the result must not write into it.
            return result.copy() if np.may_share_memory(result, array) else result
        if len(array) == 0:
            return np.zeros((0, *self._one(np.zeros(array.shape[1:], np.uint8)).shape), np.uint8)
        results = [self._one(image) for image in array]
        if len({result.shape for result in results}) > 1:
            raise ImageError(
                "The images of the batch come out in different sizes: let the pipeline end in Resize(size), or "
                "apply it to one image at a time."
            )
        return np.stack(results)

    def load(self, path: str | Path) -> NDArray[np.uint8]:
        """Return the pixels of the file `path` after the steps: uint8 (h', w', 3), a new array."""
        return self._one(decode_image(path))

    @property
    def output_size(self) -> int | None:
        """Side in pixels of the square images that come out; None if it depends on what goes in."""
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
            scale *= len(image) / height if isinstance(step, Resize) else 1.0
        return scale

    def show(self, image: NDArray[np.uint8] | str | Path) -> Figure:
        """Return a matplotlib Figure of `image`, uint8 (h, w, 3) or a file, after every step, with sizes in pixels."""
        from matplotlib.figure import Figure

        stages = [decode_image(image) if isinstance(image, (str, Path)) else check_image(image).copy()]
        for step in self.steps:
            stages.append(step(stages[-1]))
        # Fitted steps are named without their many digits.
        steps = [repr(s) if len(repr(s)) < 40 else f"{type(s).__name__}(fitted)" for s in self.steps]
        figure = Figure(figsize=(3.2 * len(stages), 3.9), layout="constrained")
        figure._repr_png_ = lambda: _png(figure)  # type: ignore[attr-defined] # notebooks would print its name
        panels = np.atleast_1d(figure.subplots(1, len(stages)))
        for axes, stage, name in zip(panels, stages, ["as decoded", *steps], strict=True):
            axes.imshow(stage, interpolation="nearest")
            axes.set_title(f"{name}\n{stage.shape[0]} x {stage.shape[1]}", fontsize=9, parse_math=False)
            axes.set_axis_off()
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Return the steps and their parameters as plain values that JSON can hold; None is left out."""
        fields = [dataclasses.asdict(cast(Any, step)).items() for step in self.steps]
        given = [{key: value for key, value in items if value is not None} for items in fields]
        return {"steps": [{"step": type(s).__name__, **g} for s, g in zip(self.steps, given, strict=True)]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Pipeline:
        """Return the pipeline that `values`, as from `to_dict`, describe.

        Raises:
            SettingsError: If the dictionary has another form or a parameter is wrong.
            UnknownNameError: If it names a step that this version does not have.
        """
        if not isinstance(values, dict) or set(values) != {"steps"} or not isinstance(values["steps"], (list, tuple)):
            raise SettingsError(
                f'A pipeline is stored as {{"steps": [{{"step": NAME, ...}}, ...]}}. Received: {values!r}.'
            )
        return cls(tuple(_step(entry) for entry in values["steps"]))

    @property
    def digest(self) -> str:
        """SHA-256 of `to_dict()`, 64 hexadecimal digits: changes with any parameter of any step."""
        return identity.digest(self.to_dict())

    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        for step in self.steps:
            image = check_image(step(image))
        return image


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _step(entry: Any) -> Step:
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), str):
        raise SettingsError(f'A step is stored as {{"step": NAME, parameter: value, ...}}. Received: {entry!r}.')
    name, parameters = entry["step"], {key: value for key, value in entry.items() if key != "step"}
    if name not in STEPS:
        raise unknown_name_error("preprocessing step", name, STEPS, "If it is a custom step, import its module before.")
    try:
        return STEPS[name](**parameters)
    except TypeError:
        fields = ", ".join(sorted(field.name for field in dataclasses.fields(cast(Any, STEPS[name]))))
        raise SettingsError(f"{name} takes {fields or 'no parameters'}. Received: {parameters!r}.") from None
