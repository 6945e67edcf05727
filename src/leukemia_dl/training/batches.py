"""Training batches: an endless stream in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.identity import generator
from leukemia_dl.training.augmentation import PARAMETERS, Augmentation, background_colour

__all__ = ["Batches"]

OnStep = Callable[[int, int], None]
Batch = tuple[NDArray[Any] | tuple[NDArray[Any], NDArray[np.float32]], NDArray[np.int32]]


class Batches:
    """Shuffled batches of one training side, epoch after epoch without end.

    Every batch is full, so that no step is compiled twice: what is left over at the end of an epoch (fewer images
    than a batch) is left out of that epoch, and the order of the next is another one.

    Attributes:
        steps: Batches per epoch.
        batch_size: Images per batch; the whole side where it is smaller than asked for.
        on_step: Called with (epoch, step), from 0, as a batch is handed out; maybe from another thread.
    """

    def __init__(
        self,
        images: NDArray[Any],
        labels: NDArray[np.int64],
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        on_step: OnStep | None = None,
        balanced: bool = False,
    ) -> None:
        """Take images, or features of them, and class indices (n,).

        Args:
            images: (n, size, size, 3), RGB, or without augmentation (n, ...); never changed.
            labels: Class indices.
            batch_size: Images per batch.
            seed: Of the trial; the axis "order" and those of `Augmentation.draw` are drawn from it.
            augmentation: Hand out drawn parameters beside the images, for `training_model`; None for images alone.
            on_step: Called with (epoch, step), from 0, as a batch is handed out; maybe from another thread.
            balanced: Draw as many images of each class, to within one per epoch: those of a rare class more often than
                once, and not all of a frequent one in each epoch.
        """
        self.images, self.labels = images, labels
        self.batch_size = min(batch_size, len(images))
        self.steps = len(images) // self.batch_size
        self._seed, self._augmentation, self.on_step, self._balanced = seed, augmentation, on_step, balanced
        self._background = background_colour(images) if augmentation is not None else None

    def __iter__(self) -> Iterator[Batch]:
        """Yield (images, int32 labels); with augmentation ((images, float32 parameters), labels)."""
        return self.stream(0)

    def stream(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches from an epoch on."""
        while True:
            order = self._order(epoch)
            drawn = None
            if self._augmentation is not None and self._background is not None:
                drawn = self._augmentation.draw(self._background, self._seed, epoch)[order]
                if self._balanced:
                    # By place and not by image, since an image may come more than once.
                    drawn = self._augmentation.draw(self._background[order], self._seed, epoch)
            for step in range(self.steps):
                if self.on_step:
                    self.on_step(epoch, step)
                part = slice(step * self.batch_size, (step + 1) * self.batch_size)
                yield self._batch(order[part], None if drawn is None else drawn[part])
            epoch += 1

    def _order(self, epoch: int) -> NDArray[np.int64]:
        draw = generator(self._seed, "order", epoch)
        if not self._balanced:
            return draw.permutation(len(self.images))
        members = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        # Round after round takes one image of each class, the classes in an order of its own.
        rounds = -(-len(self.images) // len(members))
        drawn = [
            np.concatenate([draw.permutation(rows) for _ in range(-(-rounds // len(rows)))])[:rounds]
            for rows in members
        ]
        return draw.permuted(np.stack(drawn, axis=1), axis=1).ravel()[: len(self.images)]

    def example(self) -> Batch:
        """Return a batch, for its shapes and dtypes alone."""
        drawn = np.zeros((self.batch_size, len(PARAMETERS)), np.float32)
        return self._batch(np.arange(self.batch_size), None if self._augmentation is None else drawn)

    def _batch(self, index: NDArray[np.int64], drawn: NDArray[np.float32] | None) -> Batch:
        images = self.images[index]
        return images if drawn is None else (images, drawn), self.labels[index].astype(np.int32)

    def sample(self, count: int) -> NDArray[np.int64]:
        """Return `count` row numbers, or all there are, drawn once for this seed: labels may lie in runs."""
        rows = generator(self._seed, "sample").permutation(len(self.images))[:count]
        return np.sort(rows)
