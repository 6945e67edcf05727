"""The records that describe a data set, and the source that reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from leukemia_dl.checks import whole_number
from leukemia_dl.errors import PluginError
from leukemia_dl.preprocess.steps import MAX_SIZE

__all__ = ["CANVAS", "DatasetInfo", "DatasetSource", "Table", "joined_info"]

CANVAS = "side in pixels of one canvas for all images, if they are at one scale; default: each is padded to a square"
"""Help for the option `canvas` of sources that read a user's own images."""


@dataclass(frozen=True)
class DatasetInfo:
    """Licence, citation and properties of a data set, as its authors state them.

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


def joined_info(one: DatasetInfo, two: DatasetInfo, class_names: tuple[str, ...]) -> DatasetInfo:
    """Return the description of two data sets together, in which each text is named once."""
    marks = {"name": "+", "title": " + ", "licence": "; ", "citation": " "}
    texts: Any = {
        name: mark.join(dict.fromkeys([getattr(one, name), getattr(two, name)])) for name, mark in marks.items()
    }
    canvas = one.canvas if one.canvas == two.canvas else None
    return DatasetInfo(**texts, class_names=class_names, canvas=canvas, synthetic=one.synthetic or two.synthetic)


Table = tuple[pd.DataFrame, tuple[str, ...], DatasetInfo]
"""A sample table, its class names in label order, and its description: the result of a reader."""


@dataclass(frozen=True)
class DatasetSource:
    """A data set that can be loaded by name; a plugin yields these records from the hook `leukemia_dl_datasets`.

    Attributes:
        name: As in `Dataset.load(name)`.
        load: `load(root, **options)`; `root` is a Path, or None if none was given. It returns a `Dataset`, or the
            arguments of one: a frame, the class names and a `DatasetInfo`.
        info: Licence, citation and counts as the authors declare them.
        needs_root: False for a source that can do without a root, such as one that draws its images.
        options: The options of `load` beside the root: name to one line of help. One called `path` names a file that
            is passed in place of the root.

    Raises:
        PluginError: On creation, if a field is of another kind.
    """

    name: str
    load: Callable[..., Any]
    info: DatasetInfo
    needs_root: bool = True
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not callable(self.load) or not isinstance(self.info, DatasetInfo):
            raise PluginError(
                "A DatasetSource has a name, a function that loads it, and a DatasetInfo. "
                f"Received: name={self.name!r}, load={self.load!r}, info={self.info!r}."
            )
