"""Pipelines: ordered deterministic steps from a file to uint8 pixels, as values that print, hash and store."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from leukemia_dl import identity
from leukemia_dl.errors import SettingsError, unknown_name_error
from leukemia_dl.preprocess.decode import check_image, decode_image
from leukemia_dl.preprocess.pipeline import STEPS, CenterOnCanvas, PadToSquare, Resize, Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Pipeline"]


@dataclass(frozen=True)
class Pipeline:
    """Steps that are applied one after the other to decoded pixels.

    Equal pipelines have equal hashes and digests and give equal pixels. May be used by many threads at once.

    Attributes:
        steps: Such as `CenterOnCanvas(450)`, `Resize(224)`, `Reinhard()`; anything else is a SettingsError.

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
        object.__setattr__(self, "steps", tuple(self.steps))

    @classmethod
    def default(cls, size: int, canvas: int | None = None) -> Pipeline:
        """Return a pipeline that pads each image to a square, or puts it on a canvas, and resizes it to `size` pixels.

        `canvas` is the side of the canvas, for data sets whose cells have one scale; what is outside of it is cut off.
        """
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
        """Return this pipeline with every step fitted, in order, to `images`, uint8 (n, h, w, 3), as they come to it.

        Raises ImageError if a step cannot be fitted to them.
        """
        steps = list[Step]()
        for step in self.steps:
            steps.append(step if step.is_fitted else step.fit(images))
            if len(steps) < len(self.steps):
                images = Pipeline((steps[-1],))(images)
        return Pipeline(tuple(steps))

    def __call__(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the steps to `array`, one image or a batch, uint8 (h, w, 3) or (n, h, w, 3), RGB 0..255.

        Returns a new array, uint8, (h', w', 3) or (n, h', w', 3). Raises ImageError if `array` is no such array,
        SettingsError if a step was not fitted, and ValueError if a batch comes out in different sizes.
        """
        if check_image(array, batch=True).ndim == 3:
            result = self._one(array)
            # A step may return its input; writing into the result must not write into it.
            return result.copy() if np.may_share_memory(result, array) else result
        if len(array) == 0:
            return np.zeros((0, *self._one(np.zeros(array.shape[1:], np.uint8)).shape), np.uint8)
        return np.stack([self._one(image) for image in array])

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
            if isinstance(step, Resize):
                scale *= len(image) / height
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

        def png() -> bytes:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            return buffer.getvalue()

        figure._repr_png_ = png  # type: ignore[attr-defined] # or notebooks print its name only
        panels = np.atleast_1d(figure.subplots(1, len(stages)))
        for axes, stage, name in zip(panels, stages, ["as decoded", *steps], strict=True):
            axes.imshow(stage, interpolation="nearest")
            axes.set_title(f"{name}\n{stage.shape[0]} x {stage.shape[1]}", fontsize=9, parse_math=False)
            axes.set_axis_off()
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Return the steps and their parameters as plain values that JSON can hold; None is left out."""
        entries = []
        for step in self.steps:
            fields = dataclasses.asdict(cast(Any, step))
            given = {name: value for name, value in fields.items() if value is not None}
            entries.append({"step": type(step).__name__, **given})
        return {"steps": entries}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Pipeline:
        """Return the pipeline that `values`, as from `to_dict`, describe.

        Raises SettingsError for another form or a wrong parameter, and UnknownNameError for an unknown step.
        """
        steps = list[Step]()
        try:
            for entry in values["steps"]:
                parameters = {**entry}
                name = parameters.pop("step")
                if name not in STEPS:
                    raise unknown_name_error("preprocessing step", name, STEPS, "Import the module of a custom step.")
                steps.append(STEPS[name](**parameters))
        except (KeyError, TypeError) as error:
            form = '{"steps": [{"step": NAME, parameter: value, ...}, ...]}'
            raise SettingsError(f"A pipeline is stored as {form}: {error}. Received: {values!r}.") from error
        return cls(tuple(steps))

    @property
    def digest(self) -> str:
        """SHA-256 of `to_dict()`, 64 hexadecimal digits: changes with any parameter of any step."""
        return identity.digest(self.to_dict())

    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        for step in self.steps:
            image = check_image(step(image))
        return image
