"""Training batches: an endless stream in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.identity import generator
from leukemia_dl.training.augmentation import PARAMETERS, Augmentation, background_colour

__all__ = ["Batch", "Batches", "Epoch", "Subset"]

OnStep = Callable[[int, int], None]
Batch = tuple[Any, ...]
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Subset:
    """Rows of an array that lies elsewhere, maybe in a file, read as they are asked for: `subset[3]`, `subset[rows]`.

    Attributes:
        base: numpy array or `PixelStore` (n, ...), never changed.
        rows: int64, which of `base`, in which order.
    """

    base: Any
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, images: Any, rows: NDArray[np.int64]) -> Subset:
        """Return the subset of `rows`, int64, of `images`: of an array, or of a subset, whose rows they then are."""
        return cls(images.base, images.rows[rows]) if isinstance(images, Subset) else cls(images, rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, ...)."""
        return (len(self.rows), *self.base.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the array."""
        found: np.dtype[Any] = self.base.dtype
        return found

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return what `index`, as numpy's, chooses of the rows."""
        chosen: NDArray[Any] = self.base[self.rows[index]]
        return chosen


@dataclass(frozen=True, eq=False)
class Epoch:
    """What an epoch takes: arrays over its steps times its batch size.

    Attributes:
        order: Which image, as `labels` are numbered.
        rows: Where its pixels or features lie in `Batches.images`.
        parameters: float32, of its augmentation; None for none.
    """

    order: NDArray[np.int64]
    rows: NDArray[np.int64]
    parameters: NDArray[np.float32] | None


class Batches:
    """Shuffled batches of one training side, epoch after epoch without end.

    Every batch is full, so that no step is compiled twice: what is left over at the end of an epoch (fewer images
    than a batch) is left out of that epoch, and the order of the next is another one.

    Attributes:
        images: Pixels or features.
        labels: int32 class indices (n,).
        weights: float32, what each class counts in the loss (classes,); None for one each.
        steps: Batches per epoch.
        batch_size: Images per batch; the whole side where it is smaller than asked for.
        on_step: Called with (epoch, step), from 0, as a batch is handed out; maybe from another thread.
    """

    def __init__(
        self,
        images: NDArray[Any] | Subset,
        labels: NDArray[np.int64],
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        on_step: OnStep | None = None,
        balanced: bool = False,
        forms: int = 1,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Take images, or features of them, and class indices (n,).

        Args:
            images: (n, size, size, 3), RGB, or without augmentation (n * forms, ...); never changed.
            labels: Class indices.
            batch_size: Images per batch.
            seed: Of the trial; the axis "order" and those of `Augmentation.draw` are drawn from it.
            augmentation: Hand out drawn parameters beside the images, for `training_model`; None for images alone.
            on_step: Called with (epoch, step), from 0, as a batch is handed out; maybe from another thread.
            balanced: Draw as many images of each class, to within one per epoch: those of a rare class more often than
                once, and not all of a frequent one in each epoch.
            forms: How many features there are of each image, next to one another; one is drawn anew in each epoch.
            weights: What each class counts in the loss (classes,); None for one each.
        """
        self.images, self.labels, self.weights = images, labels.astype(np.int32), weights
        self.batch_size = min(batch_size, len(labels))
        self.steps = len(labels) // self.batch_size
        self._seed, self._augmentation, self.on_step, self._balanced = seed, augmentation, on_step, balanced
        self._forms = forms
        self._background = None
        if augmentation is not None:
            starts = range(0, len(labels), _CHUNK)
            self._background = np.concatenate([background_colour(images[start : start + _CHUNK]) for start in starts])

    def __iter__(self) -> Iterator[Batch]:
        """Yield (images, int32 labels), with weights a float32 weight of each image beside them.

        With augmentation, (images, float32 parameters) take the place of images.
        """
        return self.stream(0)

    def stream(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches from an epoch on."""
        while True:
            drawn = self.epoch(epoch)
            for step in range(self.steps):
                if self.on_step:
                    self.on_step(epoch, step)
                part = slice(step * self.batch_size, (step + 1) * self.batch_size)
                parameters = None if drawn.parameters is None else drawn.parameters[part]
                yield self._batch(drawn.order[part], drawn.rows[part], parameters)
            epoch += 1

    def epoch(self, number: int) -> Epoch:
        """Return what an epoch takes, from 0."""
        order = self._order(number)[: self.steps * self.batch_size]
        parameters, rows = None, order
        if self._augmentation is not None and self._background is not None:
            if self._balanced:
                # By place and not by image, since an image may come more than once.
                parameters = self._augmentation.draw(self._background[self._order(number)], self._seed, number)
                parameters = parameters[: len(order)]
            else:
                parameters = self._augmentation.draw(self._background, self._seed, number)[order]
        if self._forms > 1:
            codes = generator(self._seed, "symmetry", number).integers(0, self._forms, len(self.labels))
            rows = order * self._forms + (codes[: len(order)] if self._balanced else codes[order])
        return Epoch(order, rows, parameters)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        draw = generator(self._seed, "order", epoch)
        if not self._balanced:
            return draw.permutation(len(self.labels))
        members = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        # Round after round takes one image of each class, the classes in an order of its own.
        rounds = -(-len(self.labels) // len(members))
        drawn = [
            np.concatenate([draw.permutation(rows) for _ in range(-(-rounds // len(rows)))])[:rounds]
            for rows in members
        ]
        return draw.permuted(np.stack(drawn, axis=1), axis=1).ravel()[: len(self.labels)]

    def example(self) -> Batch:
        """Return a batch, for its shapes and dtypes alone."""
        drawn = np.zeros((self.batch_size, len(PARAMETERS)), np.float32)
        rows = np.arange(self.batch_size)
        return self._batch(rows, rows, None if self._augmentation is None else drawn)

    def _batch(
        self, order: NDArray[np.int64], rows: NDArray[np.int64], parameters: NDArray[np.float32] | None
    ) -> Batch:
        images, labels = self.images[rows], self.labels[order]
        inputs = images if parameters is None else (images, parameters)
        return (inputs, labels) if self.weights is None else (inputs, labels, self.weights[labels])

    def sample(self, count: int) -> tuple[Subset, NDArray[np.float32] | None]:
        """Return up to `count` images in an order drawn once for this seed, since labels may be sorted.

        Also return the parameters that turn and mirror each image if the recipe does, without its other augmentation;
        None without augmentation.
        """
        rows = generator(self._seed, "sample").permutation(len(self.labels))[:count]
        parameters = None
        if self._augmentation is not None and self._background is not None:
            turned = Augmentation(symmetries=self._augmentation.symmetries)
            parameters = turned.draw(self._background, self._seed, -1)[rows]  # as in no epoch of training
        return Subset.of(self.images, rows), parameters
