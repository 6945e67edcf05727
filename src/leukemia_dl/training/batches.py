"""Batches of images in an order that depends on (seed, epoch) alone: for a fit, and as a `keras.utils.PyDataset`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.checks import whole_number
from leukemia_dl.datasets import Dataset, PixelStore
from leukemia_dl.errors import SettingsError
from leukemia_dl.identity import generator
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.augmentation import Augmentation, background_colour

__all__ = ["Batch", "Batches", "Images", "Side", "Subset", "as_keras"]

_CHUNK, _GROUP_BYTES = 1024, 1 << 26


@dataclass(frozen=True, eq=False)
class Subset:
    """Rows of an array, perhaps in a file, that are read when they are asked for: `subset[3]`, `subset[rows]`.

    Attributes:
        base: numpy array (n, ...), never changed.
        rows: int64 row numbers of `base`, in the order of the subset.
    """

    base: Any
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, images: Any, rows: NDArray[np.int64]) -> Subset:
        """Return the `rows` of `images`: an array, a pixel store or a subset."""
        if isinstance(images, PixelStore):
            return cls(images.images, images.rows[rows])
        return cls(images.base, images.rows[rows]) if isinstance(images, Subset) else cls(images, rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, ...)."""
        return (len(self.rows), *self.base.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array."""
        found: np.dtype[Any] = self.base.dtype
        return found

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return the rows that a numpy `index` chooses."""
        chosen: NDArray[Any] = self.base[self.rows[index]]
        return chosen


Images = NDArray[Any] | Subset
Side = tuple[Images, NDArray[np.int64]]  # images, or features, and their labels
Batch = tuple[Any, ...]


class Batches:
    """Shuffled batches of one training side, epoch after epoch without end.

    Every batch is full, so that no step is compiled twice: the images left over at the end of an epoch are left out of
    it. `steps` is the number of batches per epoch, `batch_size` their size, of all images if there are fewer.
    """

    def __init__(
        self,
        images: Images,
        labels: NDArray[np.int64],
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        balanced: bool = False,
        forms: int = 1,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Make batches of images (n, size, size, 3), or of features (n * forms, width), which are never changed.

        With `augmentation` the images have drawn parameters, for `training_model`; with `balanced` an epoch has as many
        images of each class, to within one; of several `forms` of the features of an image, next to one another, one is
        drawn; `weights` are those of the classes in the loss.
        """
        self.images, self.labels, self.weights = images, labels.astype(np.int32), weights
        self.batch_size = min(batch_size, len(labels))
        self.steps = len(labels) // self.batch_size
        self._seed, self._balanced, self._forms = seed, balanced, forms
        self._augmentation, self._background = augmentation, np.zeros((0, 3), np.uint8)
        if augmentation is not None:
            starts = range(0, len(labels), _CHUNK)
            self._background = np.concatenate([background_colour(images[start : start + _CHUNK]) for start in starts])

    def stream(self, epoch: int = 0, grouped: bool = False) -> Iterator[Batch]:
        """Yield from an epoch on (images or (images, parameters), int32 labels), and weights if classes have any.

        With `grouped`, for features, several batches at once: arrays (steps, batch size, ...).
        """
        size = max(1, _GROUP_BYTES // max(1, self.images[:1].nbytes * self.batch_size)) if grouped else 1
        while True:
            order, drawn = self._draw(epoch)
            for step in range(0, self.steps, size):
                count = min(size, self.steps - step)
                batch = self._batch(order, drawn, step, count)
                if grouped:
                    batch = tuple(array.reshape(count, self.batch_size, *array.shape[1:]) for array in batch)
                yield batch
            epoch += 1

    def sample(self, count: int) -> tuple[Subset, NDArray[np.float32] | None]:
        """Return up to `count` images in a random order, and the parameters that turn and mirror each, or None."""
        rows = generator(self._seed, "sample").permutation(len(self.labels))[:count]
        parameters = None
        if self._augmentation is not None:
            turned = Augmentation(symmetries=self._augmentation.symmetries)
            parameters = turned.draw(self._background, self._seed, -1)[rows]  # as in no epoch of training
        return Subset.of(self.images, rows), parameters

    def _draw(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[Any] | None]:
        """Return the images of an epoch in their order, and the augmentation or number of the form of each, or None."""
        order = self._order(epoch)
        # Drawn by image, so that it does not depend on the order; by place if an image may come more than once.
        at = np.arange(len(order)) if self._balanced else order
        if self._augmentation is not None:
            background = self._background[order] if self._balanced else self._background
            return order, self._augmentation.draw(background, self._seed, epoch)[at]
        if self._forms > 1:
            return order, generator(self._seed, "symmetry", epoch).integers(0, self._forms, len(order))[at]
        return order, None

    def _order(self, epoch: int) -> NDArray[np.int64]:
        draw = generator(self._seed, "order", epoch)
        if not self._balanced:
            return draw.permutation(len(self.labels))
        members = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        # Round after round takes one image of each class, the classes in an order of its own.
        rounds = -(-len(self.labels) // len(members))
        drawn = []
        for rows in members:
            passes = -(-rounds // len(rows))
            drawn.append(np.concatenate([draw.permutation(rows) for _ in range(passes)])[:rounds])
        return draw.permuted(np.stack(drawn, axis=1), axis=1).ravel()[: len(self.labels)]

    def _batch(self, order: NDArray[np.int64], drawn: NDArray[Any] | None, step: int, count: int) -> Batch:
        part = slice(step * self.batch_size, (step + count) * self.batch_size)
        rows, labels = order[part], self.labels[order[part]]
        if self._forms > 1 and drawn is not None:
            inputs: Any = self.images[rows * self._forms + drawn[part]]
        else:
            inputs = self.images[rows] if drawn is None else (self.images[rows], drawn[part])
        return (inputs, labels) if self.weights is None else (inputs, labels, self.weights[labels])


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

    Args:
        dataset: Data set of the images.
        pipeline: Steps to pixels of one size, every step fitted.
        rows: Row numbers, such as `split.train`; None for all.
        batch_size: Images per batch; the last one may be smaller.
        shuffle: Whether each epoch has another order, drawn from `seed` and the epoch.
        seed: Of the order.
        show_progress: Whether to show the progress of decoding.

    Returns:
        A `keras.utils.PyDataset` of (uint8 images (batch, size, size, 3), int32 class indices (batch,)), or of images
        alone if no row has a label. It has the attributes `store` and `rows`.

    Raises:
        SettingsError: If batch_size, the rows or the pipeline do not fit, or some rows have a label and others none.
        ImageError: If images cannot be decoded.
    """
    import keras

    batch_size = whole_number("batch_size", batch_size, 1)
    chosen = np.arange(len(dataset)) if rows is None else np.array(rows)
    are_numbers = chosen.ndim == 1 and chosen.size > 0 and chosen.dtype.kind in "iu"
    if not are_numbers or chosen.min() < 0 or chosen.max() >= len(dataset):
        raise SettingsError(f"rows are row numbers from 0 to {len(dataset) - 1}, at least one. Received: {rows!r}.")
    labels = dataset.labels[chosen].astype(np.int32)
    unlabelled = int((labels < 0).sum())
    if 0 < unlabelled < len(labels):
        raise SettingsError(f"{unlabelled:,} of the {len(chosen):,} rows have no label. Pass the rows of a split.")
    pixels = dataset.pixel_store(pipeline, show_progress=show_progress)

    class StoredImages(keras.utils.PyDataset):  # type: ignore[misc]
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

    return StoredImages()
