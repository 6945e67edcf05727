"""Training batches: an endless stream in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.identity import generator

__all__ = ["Batches", "symmetry"]

OnStep = Callable[[int, int], None]


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
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        batch_size: int,
        seed: int,
        augment: bool = False,
        on_step: OnStep | None = None,
    ) -> None:
        """Take images (n, size, size, 3), RGB, and class indices (n,).

        Args:
            images: Never changed.
            labels: Class indices.
            batch_size: Images per batch.
            seed: Of the trial; axes "order" and "symmetry" are drawn from it.
            augment: Apply one of the eight symmetries of the square to each image, anew each epoch.
            on_step: Called with (epoch, step), from 0, as a batch is handed out; maybe from another thread.
        """
        self.images, self.labels = images, labels
        self.batch_size = min(batch_size, len(images))
        self.steps = len(images) // self.batch_size
        self._seed, self._augment, self.on_step = seed, augment, on_step

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
        """Yield (float32 images in 0..255, int32 labels)."""
        epoch = 0
        while True:
            order = generator(self._seed, "order", epoch).permutation(len(self.images))
            codes = generator(self._seed, "symmetry", epoch).integers(0, 8, len(self.images))
            for step in range(self.steps):
                index = order[step * self.batch_size : (step + 1) * self.batch_size]
                batch = self.images[index]
                if self._augment:
                    batch = np.stack([symmetry(image, code) for image, code in zip(batch, codes[index], strict=True)])
                if self.on_step:
                    self.on_step(epoch, step)
                yield batch.astype(np.float32), self.labels[index].astype(np.int32)
            epoch += 1

    def sample(self, count: int) -> NDArray[np.int64]:
        """Return `count` row numbers, or all there are, drawn once for this seed: labels may lie in runs."""
        rows = generator(self._seed, "sample").permutation(len(self.images))[:count]
        return np.sort(rows)


def symmetry(image: NDArray[np.uint8], code: int) -> NDArray[np.uint8]:
    """Return a square image (size, size, 3) under one of the eight symmetries of the square, exactly.

    Args:
        image: The image.
        code: 0 to 7: quarter turns are `code % 4`, mirrored from 4 on. 0 is the identity.
    """
    turned = np.rot90(image, code % 4)
    return turned[:, ::-1] if code >= 4 else turned
