"""What is said about a data set, beside its images."""

from __future__ import annotations

from dataclasses import dataclass

from leukemia_dl.checks import whole_number
from leukemia_dl.preprocess.steps import MAX_SIZE

__all__ = ["DatasetInfo"]


@dataclass(frozen=True)
class DatasetInfo:
    """What the authors of a data set say about it.

    Attributes:
        name: As in `Dataset.load(name)`.
        title: For people.
        licence: As stated by the authors, or who says so.
        citation: To be quoted with results.
        url: Where it is described.
        class_names: In label order; empty if they depend on the files.
        canvas: Side in pixels of the canvas that keeps cells at one absolute scale; None if there is no common scale.
        test_fold: The official fold that published results test; the protocols on official folds test it alone unless
            others are asked for. None: they test each in turn.
        synthetic: True if the images were drawn by a program; results say so wherever they appear.
        declared: Counts as the authors give them, such as `(("images", 15114), ("subjects", 101))`.

    Raises:
        SettingsError: On creation, for a canvas that is no int from 1 to 4,472.
    """

    name: str
    title: str
    licence: str
    citation: str
    url: str = ""
    class_names: tuple[str, ...] = ()
    canvas: int | None = None
    test_fold: int | None = None
    synthetic: bool = False
    declared: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.canvas is not None:
            object.__setattr__(self, "canvas", whole_number("canvas", self.canvas, 1, MAX_SIZE))
