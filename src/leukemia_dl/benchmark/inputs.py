"""Data that trials read: labels and groups, pixels after the pipeline, measures of cells."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.benchmark.baselines import CellMeasures, measure_cells
from leukemia_dl.datasets import Dataset, PixelStore, Split
from leukemia_dl.errors import ImageError, StoreError
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.preprocess.appearance import Look, look_of, summary
from leukemia_dl.progress import parallel_map
from leukemia_dl.training.batches import Subset

__all__ = ["CellMeasurer", "Images", "Samples", "looks_of", "read_images"]

_EXAMINED = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Samples:
    """The table of a data set as arrays, so that other processes need neither its files nor pandas.

    Attributes:
        name: Of the data set.
        synthetic: Whether a program drew it.
        class_names: In label order.
        ids: Of each row (n,).
        labels: Class indices (n,).
        groups: A number per group of subjects (n,); None where subjects are not known.
        looks: Summary of the images' appearance, for the record in a saved net; empty if no image was examined.
    """

    name: str
    synthetic: bool
    class_names: tuple[str, ...]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    looks: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset, examined: NDArray[np.int64] | None = None) -> Samples:
        """Return the samples of a data set, with a summary of the appearance of the rows `examined`."""
        table = dataset.table
        groups = pd.factorize(table["group"])[0].astype(np.int64) if dataset.has_subjects else None
        ids = table["sample"].to_numpy(dtype=np.str_)
        looks = [] if examined is None else looks_of(dataset, examined)
        axes = (dataset.info.name, dataset.info.synthetic, dataset.class_names, ids, dataset.labels, groups)
        return cls(*axes, summary(looks) if looks else {})

    def groups_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the groups of some rows; None where subjects are not known."""
        return None if self.groups is None else self.groups[rows]


@dataclass(frozen=True, eq=False)
class Images:
    """The pixels of those rows of a data set that any split uses. Other processes map the same file.

    Attributes:
        pixels: After the part of the pipeline that is equal for all splits.
        position: Index into `pixels` of each row of the data set (n,); -1 for none.
        stored: That part of the pipeline.
        per_split: The rest, from the first step on that is fitted to training images.
    """

    pixels: PixelStore | NDArray[np.uint8]
    position: NDArray[np.int64]
    stored: Pipeline
    per_split: Pipeline

    def in_memory(self) -> Images:
        """Return them with their pixels as an array, for processes that do not see the file."""
        return replace(self, pixels=self.pixels[:])

    def pipeline(self, split: Split) -> Pipeline:
        """Return the whole pipeline, its fitted steps fitted to the training images of a split and no others."""
        if not self.per_split.steps:
            return self.stored
        return self.stored.then(*self.per_split.fit(self._at(split.train)).steps)

    def sides(self, pipeline: Pipeline, *sides: NDArray[np.int64]) -> list[Subset]:
        """Return the images of several lists of rows, as parts of one array that is copied only if steps follow."""
        if pipeline.steps[len(self.stored.steps) :]:
            pixels, ends = self.read(pipeline, np.concatenate(sides)), np.cumsum([len(rows) for rows in sides])
            pixels.flags.writeable = False
            return [Subset(pixels, np.arange(end - len(rows), end)) for rows, end in zip(sides, ends, strict=True)]
        if isinstance(self.pixels, np.ndarray):
            self.pixels.flags.writeable = False  # features of read-only pixels may be cached
        return [Subset(self.pixels, self.position[rows]) for rows in sides]

    def read(self, pipeline: Pipeline, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8 (len(rows), size, size, 3) after a pipeline that the method `pipeline` returned."""
        steps = pipeline.steps[len(self.stored.steps) :]
        return Pipeline(steps)(self._at(rows)) if steps else self._at(rows)

    def _at(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        chosen: NDArray[np.uint8] = self.pixels[self.position[rows]]
        return chosen


def read_images(dataset: Dataset, used: NDArray[np.int64], pipeline: Pipeline, show_progress: bool) -> Images:
    """Decode the rows of a data set that are used (sorted), or find them decoded.

    Raises:
        ImageError: If files cannot be decoded; up to ten are named.
    """
    stored, per_split = pipeline.partition()
    position = np.full(len(dataset), -1)
    position[used] = np.arange(len(used))
    return Images(_pixels(dataset.subset(used), stored, show_progress), position, stored, per_split)


def _pixels(dataset: Dataset, pipeline: Pipeline, show_progress: bool) -> PixelStore | NDArray[np.uint8]:
    """Return the pixels from a store; from memory where none can be kept, since a full disk should not stop a run."""
    if pipeline.output_size is None:
        return dataset.to_numpy(pipeline, show_progress)
    try:
        return dataset.pixel_store(pipeline, show_progress=show_progress)
    except StoreError as error:
        _log.warning("Decoded images are held in memory. %s", error)
        return dataset.to_numpy(pipeline, show_progress)


def looks_of(dataset: Dataset, rows: NDArray[np.int64]) -> list[Look]:
    """Return the appearance of up to 100 of `rows` of a data set, evenly spaced."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _EXAMINED)).astype(int)]

    def look(row: np.int64) -> list[Look]:
        with contextlib.suppress(ImageError):  # the file may be gone although its pixels are in the cache
            return [look_of(dataset.decode(int(row)))]
        return []

    return [one for found in parallel_map(look, chosen, "Looking at images", show=False) for one in found]


class CellMeasurer:
    """Measures the cell in each image when a baseline first asks for it.

    Args:
        dataset: The data set.
        used: The rows that any split uses, sorted.
        show_progress: Whether to show how far it is.
    """

    def __init__(self, dataset: Dataset, used: NDArray[np.int64], show_progress: bool) -> None:
        self._dataset, self._used, self._show = dataset, used, show_progress

    @cached_property
    def measures(self) -> CellMeasures:
        """The measures of every row of the data set; rows that no split uses are marked as no cell."""
        found, count = measure_cells(self._dataset.subset(self._used), self._show), len(self._dataset)

        def spread(values: NDArray[Any]) -> NDArray[Any]:
            full = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
            full[self._used] = values
            return full

        return CellMeasures(spread(found.single_cell), spread(found.size), spread(found.colour))
