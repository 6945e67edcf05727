"""Data that trials read: labels and groups, and pixels after the pipeline."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.datasets import Dataset, PixelStore, Split
from leukemia_dl.errors import ImageError, StoreError
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.preprocess.quality import Appearance, appearance_of, summary
from leukemia_dl.progress import parallel_map
from leukemia_dl.training.batches import Subset

__all__ = ["Images", "Samples", "appearances_of", "read_images"]

_EXAMINED = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Samples:
    """The table of a data set as arrays, so that other processes need neither its files nor pandas."""

    name: str  # of the data set
    synthetic: bool  # whether a program drew it
    class_names: tuple[str, ...]  # in label order
    ids: NDArray[np.str_]  # of each row (n,)
    labels: NDArray[np.int64]  # class indices (n,)
    groups: NDArray[np.int64] | None  # a number per group of subjects (n,); None where subjects are not known
    appearances: Mapping[str, Any]  # how the images look, for the record in a saved net; empty if none was examined

    @classmethod
    def of(cls, dataset: Dataset, examined: NDArray[np.int64] | None = None) -> Samples:
        """Return the samples of a data set, with a summary of the appearance of the rows `examined`."""
        table, info = dataset.table, dataset.info
        groups = pd.factorize(table["group"])[0].astype(np.int64) if dataset.has_subjects else None
        ids = table["sample"].to_numpy(dtype=np.str_)
        appearances = [] if examined is None else appearances_of(dataset, examined)
        shown = summary(appearances) if appearances else {}
        return cls(info.name, info.synthetic, dataset.class_names, ids, dataset.labels, groups, shown)

    def groups_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the groups of some rows; None where subjects are not known."""
        return None if self.groups is None else self.groups[rows]


@dataclass(frozen=True, eq=False)
class Images:
    """The pixels of some rows of a data set. Other processes map the same file."""

    pixels: PixelStore | NDArray[np.uint8]  # after the steps of `stored`
    position: NDArray[np.int64]  # index into `pixels` of each row of the data set (n,); -1 for none
    stored: Pipeline  # the part of a pipeline that is equal for all splits
    per_split: Pipeline  # the rest, from the first step on that is fitted to training images

    def in_memory(self) -> Images:
        """Return them with their pixels as an array, for processes that do not see the file."""
        return replace(self, pixels=self.pixels[:])

    def pipeline(self, split: Split) -> Pipeline:
        """Return the whole pipeline, its fitted steps fitted to the training images of a split and no others."""
        if not self.per_split.steps:
            return self.stored
        return self.stored.then(*self.per_split.fit(self.subset(split.train)[:]).steps)

    def after(self, pipeline: Pipeline, rows: NDArray[np.int64]) -> Images:
        """Return the images of `rows` after a whole pipeline; a copy in memory if it has more steps than `stored`."""
        steps = pipeline.steps[len(self.stored.steps) :]
        if not steps:
            return self
        position = np.full(len(self.position), -1)
        position[rows] = np.arange(len(rows))
        return Images(Pipeline(steps)(self.subset(rows)[:]), position, pipeline, Pipeline(()))

    def subset(self, rows: NDArray[np.int64]) -> Subset:
        """Return the pixels of some rows, read-only: (len(rows), height, width, 3), uint8."""
        if isinstance(self.pixels, np.ndarray):
            self.pixels.flags.writeable = False  # features of read-only pixels may be cached
        return Subset.of(self.pixels, self.position[rows])


def read_images(dataset: Dataset, rows: NDArray[np.int64], pipeline: Pipeline, show_progress: bool) -> Images:
    """Decode the sorted `rows` of a data set, or find them decoded.

    They are held in memory where no store of pixels can be kept, since a full disk should not stop a run.

    Raises:
        ImageError: If files cannot be decoded; up to ten are named.
    """
    stored, per_split = pipeline.partition()
    position = np.full(len(dataset), -1)
    position[rows] = np.arange(len(rows))
    used = dataset.subset(rows)
    pixels: PixelStore | None = None
    if stored.output_size is not None:
        try:
            pixels = used.pixel_store(stored, show_progress=show_progress)
        except StoreError as error:
            _log.warning("Decoded images are held in memory. %s", error)
    return Images(pixels or used.to_numpy(stored, show_progress), position, stored, per_split)


def appearances_of(dataset: Dataset, rows: NDArray[np.int64]) -> list[Appearance]:
    """Return the appearance of up to 100 of `rows` of a data set, evenly spaced."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _EXAMINED)).astype(int)]

    def measured(row: int) -> Appearance | None:
        with contextlib.suppress(ImageError):  # the file may be gone although its pixels are in the cache
            return appearance_of(dataset.decode(row))
        return None

    return [found for found in parallel_map(measured, chosen.tolist(), "Looking at images", show=False) if found]
