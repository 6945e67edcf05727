"""Ordered deterministic steps from a file to uint8 pixels, as one value: printable, hashable, storable."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leukemia_dl import identity
from leukemia_dl.errors import SettingsError, unknown_name
from leukemia_dl.preprocess.decode import check_image, decode_image
from leukemia_dl.preprocess.geometry import CenterOnCanvas, PadToSquare, Resize

__all__ = ["STEPS", "Pipeline", "Step"]

STEPS: dict[str, Any] = {step.__name__: step for step in (CenterOnCanvas, PadToSquare, Resize)}
"""The steps that there are, by name: frozen dataclasses whose fields are their parameters."""


class Step(Protocol):
    """One deterministic step: a frozen dataclass of `STEPS`."""

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn uint8 (h, w, 3) into uint8 (h', w', 3), without changing its input."""
        ...

    def size_after(self, size: int | None) -> int | None:
        """Return the side of the square that comes out, given the one that goes in; None if not known beforehand."""
        ...


@dataclass(frozen=True)
class Pipeline:
    """Steps that are applied one after the other to decoded pixels.

    Equal pipelines have equal hashes, equal `digest` and give equal pixels. May be used by many threads at once.

    Attributes:
        steps: Records such as `CenterOnCanvas(450)`, `PadToSquare()`, `Resize(224)`; none means the pixels as decoded.

    Raises:
        SettingsError: If something in `steps` is no known step.
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        for step in self.steps:
            if type(step) not in STEPS.values():
                raise SettingsError(f"A pipeline's steps are made from {', '.join(sorted(STEPS))}. Received: {step!r}.")

    @classmethod
    def default(cls, size: int, canvas: int | None = 450) -> Pipeline:
        """Return the pipeline of the benchmarks: absolute scale kept by a canvas, then an antialiased resize.

        Args:
            size: Side of the result in pixels.
            canvas: Side of the canvas in pixels (`dataset.info.canvas`), or None to pad each image to a square, for
                data sets without a common scale.
        """
        return cls((PadToSquare() if canvas is None else CenterOnCanvas(canvas), Resize(size)))

    @classmethod
    def source_v1(cls) -> Pipeline:
        """Return the preprocessing behind the published table: squeezed to 180 x 180, bilinear, without antialiasing.

        Keras keeps the interpolated values as floats; here they are rounded to whole grey levels.
        """
        return cls((Resize(180, method="bilinear"),))

    @classmethod
    def decode_only(cls) -> Pipeline:
        """Return the pipeline without steps: the pixels as they are in the file."""
        return cls(())

    def __call__(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Apply the steps to one image or a batch.

        Args:
            array: uint8, (h, w, 3) or (n, h, w, 3), RGB 0..255. It is not changed.

        Returns:
            uint8, (h', w', 3) or (n, h', w', 3), a new array.

        Raises:
            ImageError: If it is no such array.
        """
        check_image(array, batch=True)
        if array.ndim == 3:
            return self._one(array)
        if len(array) == 0:
            return np.zeros((0, *self._one(np.zeros(array.shape[1:], np.uint8)).shape), np.uint8)
        return np.stack([self._one(image) for image in array])

    def load(self, path: str | Path) -> NDArray[np.uint8]:
        """Decode a file and apply the steps: uint8 (h', w', 3).

        Raises:
            ImageError: If it cannot be decoded; the message names the file.
        """
        return self._one(decode_image(path))

    @property
    def output_size(self) -> int | None:
        """Side in pixels of the square images that come out; None if it depends on what goes in."""
        size: int | None = None
        for step in self.steps:
            size = step.size_after(size)
        return size

    def to_dict(self) -> dict[str, Any]:
        """Return the steps and their parameters as plain values that JSON can hold."""
        return {"steps": [{"step": type(step).__name__, **dataclasses.asdict(step)} for step in self.steps]}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Pipeline:
        """Return the pipeline that `to_dict` described.

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
            image = step(image)
        return image if self.steps else image.copy()


def _step(entry: Any) -> Step:
    if not isinstance(entry, dict) or "step" not in entry:
        raise SettingsError(f'A step is stored as {{"step": NAME, parameter: value, ...}}. Received: {entry!r}.')
    name = entry["step"]
    if name not in STEPS:
        raise unknown_name("preprocessing step", name, STEPS, "A newer version of leukemia_dl may have it.")
    parameters = {key: value for key, value in entry.items() if key != "step"}
    known = {field.name for field in dataclasses.fields(STEPS[name])}
    required = {f.name for f in dataclasses.fields(STEPS[name]) if f.default is dataclasses.MISSING}
    if not required <= set(parameters) <= known:
        raise SettingsError(f"{name} takes {', '.join(sorted(known)) or 'no parameters'}. Received: {parameters!r}.")
    step: Step = STEPS[name](**parameters)
    return step
