"""A data set as a `keras.utils.PyDataset`, for custom training loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.checks import whole_number
from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import SettingsError
from leukemia_dl.identity import generator
from leukemia_dl.preprocess import Pipeline

__all__ = ["as_keras"]


def as_keras(
    dataset: Dataset,
    pipeline: Pipeline,
    rows: ArrayLike | None = None,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int = 0,
    show_progress: bool = True,
) -> Any:
    """Return batches for `model.fit`, `evaluate` and `predict`, read from the pixel store of the whole data set.

    `model.fit(as_keras(dataset, dataset.default_pipeline(224), split.train, shuffle=True), epochs=5)`

    Args:
        dataset: Data set of the images.
        pipeline: Steps to pixels of one size, every step fitted.
        rows: Row numbers, such as `split.train`; None for all.
        batch_size: Images per batch; the last one may be smaller.
        shuffle: Whether each epoch has another order, drawn from `seed` and the epoch. With False, predictions are in
            the order of `rows`.
        seed: Of the order.
        show_progress: Whether to show the progress of decoding.

    Returns:
        A `keras.utils.PyDataset` of (uint8 images (batch, size, size, 3), int32 class indices (batch,)), as the models
        of this library take them; a loss for it is `SparseCategoricalCrossentropy`. If no row has a label, for
        `predict`: of images alone, (images,). It has the attributes `store` and `rows`.

    Raises:
        SettingsError: If batch_size, the rows or the pipeline do not fit, or some rows have a label and others none.
        ImageError: If images cannot be decoded.
    """
    import keras

    batch_size = whole_number("batch_size", batch_size, 1)
    chosen = np.arange(len(dataset)) if rows is None else np.array(rows)
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
        raise SettingsError(f"rows are row numbers, at least one. Received: {chosen.dtype} {chosen.shape}.")
    if not 0 <= chosen.min() <= chosen.max() < len(dataset):
        raise SettingsError(f"rows are from 0 to {len(dataset) - 1}. Received: {chosen.min()} to {chosen.max()}.")
    labels = dataset.labels[chosen].astype(np.int32)
    unlabelled = int((labels < 0).sum())
    if 0 < unlabelled < len(labels):
        raise SettingsError(
            f"{unlabelled:,} of the {len(chosen):,} rows have no label. Pass the rows of a split, or "
            "rows=np.flatnonzero(dataset.labels >= 0)."
        )
    pixels = dataset.pixel_store(pipeline, show_progress=show_progress)

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        store, rows, epoch = pixels, chosen, 0

        def __len__(self) -> int:
            return -(-len(chosen) // batch_size)

        def __getitem__(self, index: int) -> tuple[NDArray[Any], ...]:
            if not 0 <= index < len(self):
                raise IndexError(index)
            order = np.arange(len(chosen))
            if shuffle:
                order = generator(seed, "order", self.epoch).permutation(len(chosen))
            batch = order[index * batch_size : (index + 1) * batch_size]
            images = pixels[chosen[batch]]
            return (images,) if unlabelled else (images, labels[batch])

        def on_epoch_end(self) -> None:
            self.epoch += 1

    return Batches()
