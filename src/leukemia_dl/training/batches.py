"""Training batches: an endless stream in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.identity import generator
from leukemia_dl.training.augmentation import Augmentation, background_colour

__all__ = ["Batch", "Batches", "Subset"]

Batch = tuple[Any, ...]
_CHUNK, _GROUP_BYTES = 1024, 1 << 26


@dataclass(frozen=True, eq=False)
class Subset:
    """Rows of an array, perhaps in a file, that are read when they are asked for: `subset[3]`, `subset[rows]`.

    Attributes:
        base: numpy array or `PixelStore` (n, ...), never changed.
        rows: int64 row numbers of `base`, in the order of the subset.
    """

    base: Any
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, images: Any, rows: NDArray[np.int64]) -> Subset:
        """Return the `rows` of `images`: an array or a subset."""
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


class Batches:
    """Shuffled batches of one training side, epoch after epoch without end.

    Every batch is full, so that no step is compiled twice: the images left over at the end of an epoch are left out of
    it. `steps` is the number of batches per epoch, `batch_size` their size, of all images if there are fewer.
    """

    def __init__(
        self,
        images: NDArray[Any] | Subset,
        labels: NDArray[np.int64],
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        balanced: bool = False,
        forms: int = 1,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Make batches of images (n, size, size, 3), or of features (n * forms, width), which are never changed.

        Args:
            images: See above.
            labels: Class indices (n,).
            batch_size: Images per batch.
            seed: Of the trial.
            augmentation: Adds drawn parameters to the images, for `training_model`.
            balanced: Draw as many images of each class, to within one per epoch.
            forms: Features per image, next to one another; one of them is drawn in each epoch.
            weights: Weight of each class in the loss (classes,).
        """
        self.images, self.labels, self.weights = images, labels.astype(np.int32), weights
        self.batch_size = min(batch_size, len(labels))
        self.steps = len(labels) // self.batch_size
        self._seed, self._balanced, self._forms = seed, balanced, forms
        self._augmentation, self._background = augmentation, np.zeros((0, 3), np.uint8)
        if augmentation is not None:
            starts = range(0, len(labels), _CHUNK)
            self._background = np.concatenate([background_colour(images[start : start + _CHUNK]) for start in starts])

    def __iter__(self) -> Iterator[Batch]:
        """Yield (images or (images, parameters), int32 labels), and with class weights a weight of each image."""
        return self.stream(0)

    def stream(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches from an epoch on."""
        while True:
            order, drawn = self._draw(epoch)
            for step in range(self.steps):
                yield self._batch(order, drawn, step, 1)
            epoch += 1

    def grouped(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of `stream`, without augmentation, in groups: arrays (steps, batch size, ...)."""
        size = max(1, _GROUP_BYTES // max(1, self.images[:1].nbytes * self.batch_size))
        while True:
            order, drawn = self._draw(epoch)
            for step in range(0, self.steps, size):
                count = min(size, self.steps - step)
                batch = self._batch(order, drawn, step, count)
                yield tuple(array.reshape(count, self.batch_size, *array.shape[1:]) for array in batch)
            epoch += 1

    def example(self) -> Batch:
        """Return a batch, for its shapes and dtypes alone."""
        return self._batch(*self._draw(0), 0, 1)

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
