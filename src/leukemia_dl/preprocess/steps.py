"""What a step of a pipeline is: a frozen dataclass whose fields are its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.errors import SettingsError

__all__ = ["STEPS", "Step"]

STEPS: dict[str, type[Step]] = {}
"""Every step that there is, by name: subclasses enter themselves."""


class Step(ABC):
    """One deterministic step from pixels to pixels.

    A subclass is a frozen dataclass; its fields are JSON values or tuples of numbers, checked on creation, so that a
    pipeline can be printed, hashed and stored. One of your own enters pipelines the same way.

    Raises:
        SettingsError: On creation, for a value that is not allowed; for a class that is named like one of ours.
    """

    keeps_scale: ClassVar[bool] = True
    """False for a step that gives cells of different size the same size: what size tells of the class is then lost."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        taken = STEPS.get(cls.__name__)
        if taken is not None and taken.__module__.startswith("leukemia_dl."):
            raise SettingsError(f"There is a step {cls.__name__!r} in leukemia_dl: choose another name for yours.")
        if not cls.__name__.startswith("_"):
            STEPS[cls.__name__] = cls

    @abstractmethod
    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return uint8 (h', w', 3) of `image`, uint8 (h, w, 3): a new array, or itself where nothing is to be done."""

    @property
    def is_fitted(self) -> bool:
        """False for a step that must see training images (`fit`) before it can be applied."""
        return True

    def fit(self, images: NDArray[np.uint8]) -> Self:
        """Return this step, fitted to training `images`, uint8 (n, h, w, 3); itself, if there is nothing to fit."""
        return self

    def size_after(self, size: int | None) -> int | None:
        """Return the side, in pixels, of what comes out of a square of side `size`; None if not known beforehand."""
        return size
