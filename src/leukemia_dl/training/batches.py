"""Batches of images in an order that depends on (seed, epoch) alone: for a fit, and as a `keras.utils.PyDataset`."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leukemia_dl.checks import whole_number
from leukemia_dl.datasets import Dataset, PixelStore
from leukemia_dl.errors import SettingsError
from leukemia_dl.identity import generator
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.augmentation import Augmentation, background_colour

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
    def of(cls, images: Any, rows: NDArray[np.int64]) -> Self:
        """Return the `rows` of `images`: an array, a pixel store or a subset."""
        if isinstance(images, PixelStore):
            return cls(images.images, images.rows[rows])
        return cls(images.base, images.rows[rows]) if isinstance(images, Subset) else cls(images, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return the rows that a numpy `index` chooses."""
        return self.base[self.rows[index]]  # type: ignore[no-any-return]


Images = NDArray[Any] | Subset
Side = tuple[Images, NDArray[np.int64]]  # images, or features, and their labels


class Batches:
    """Shuffled batches of a `side`, images (n, size, size, 3) or features (n, width) and labels, epoch after epoch.

    Every batch is full, so that no step is compiled twice: the images left over at the end of an epoch are left out of
    it. With `augmentation` images have parameters, for `training_model`; `weights` are those of classes in the loss.
    """

    def __init__(
        self, side: Side, batch_size: int, seed: int, augmentation: Augmentation | None = None, weights: Any = None
    ) -> None:
        self.images, self.labels, self.weights = side[0], side[1].astype(np.int32), weights
        self.batch_size = min(batch_size, len(self.labels))
        self.steps = len(self.labels) // self.batch_size
        self._seed, self._augmentation = seed, augmentation
        if augmentation is not None:
            parts = (self.images[start : start + _CHUNK] for start in range(0, len(self.labels), _CHUNK))
            self._background = np.concatenate([background_colour(part) for part in parts])

    def stream(self, epoch: int = 0, grouped: bool = False) -> Iterator[tuple[Any, ...]]:
        """Yield from an epoch on (images or (images, parameters), int32 labels), and weights if classes have any.

        With `grouped`, for features, several batches at once: arrays (steps, batch size, ...).
        """
        size = max(1, _GROUP_BYTES // max(1, self.images[:1].nbytes * self.batch_size)) if grouped else 1
        for number in itertools.count(epoch):
            order = generator(self._seed, "order", number).permutation(len(self.labels))
            parameters = None
            if self._augmentation is not None:  # drawn by image, so that they do not depend on the order
                parameters = self._augmentation.draw(self._background, self._seed, number)[order]
            for step in range(0, self.steps, size):
                count = min(size, self.steps - step)
                part = slice(step * self.batch_size, (step + count) * self.batch_size)
                rows, labels = order[part], self.labels[order[part]]
                images: Any = self.images[rows] if parameters is None else (self.images[rows], parameters[part])
                weights = () if self.weights is None else (self.weights[labels],)
                batch: tuple[Any, ...] = (images, labels, *weights)
                if grouped:
                    batch = tuple(array.reshape(count, self.batch_size, *array.shape[1:]) for array in batch)
                yield batch

    def sample(self, count: int) -> tuple[Subset, NDArray[np.float32] | None]:
        """Return up to `count` images in a random order, and the parameters that turn and mirror each, or None."""
        rows = generator(self._seed, "sample").permutation(len(self.labels))[:count]
        parameters = None
        if self._augmentation is not None:
            turned = Augmentation(symmetries=self._augmentation.symmetries)
            parameters = turned.draw(self._background, self._seed, -1)[rows]  # as in no epoch of training
        return Subset.of(self.images, rows), parameters


def as_keras(
    dataset: Dataset, pipeline: Pipeline, rows: ArrayLike | None = None, batch_size: int = 32, shuffle: bool = False,
    seed: int = 0,
) -> Any:  # fmt: skip
    """Return a `keras.utils.PyDataset` for `model.fit` and `evaluate`, read from the data set's pixel store.

    It gives uint8 images (batch, size, size, 3), after the fitted `pipeline`, and int32 class indices (batch,), of the
    `rows` of the `dataset`, such as `split.train`, by default all. With `shuffle` each epoch has another order, drawn
    from `seed` and the epoch. The last batch may have fewer than `batch_size` images. Raises SettingsError if rows have
    no label, or batch_size or the pipeline does not fit, and ImageError if images cannot be decoded.
    """
    import keras

    batch_size = whole_number("batch_size", batch_size, 1)
    chosen = np.arange(len(dataset)) if rows is None else np.arange(len(dataset))[np.asarray(rows)]
    if unlabelled := int((dataset.labels[chosen] < 0).sum()):
        raise SettingsError(f"{unlabelled:,} of the {len(chosen):,} rows have no label. Pass the rows of a split.")
    pixels = dataset.pixel_store(pipeline)

    class StoredImages(keras.utils.PyDataset):  # type: ignore[misc]
        epoch = 0

        def __len__(self) -> int:
            return -(-len(chosen) // batch_size)

        def __getitem__(self, index: int) -> tuple[NDArray[Any], ...]:
            order = generator(seed, "order", self.epoch).permutation(chosen) if shuffle else chosen
            batch = order[index * batch_size : (index + 1) * batch_size]
            if not len(batch):
                raise IndexError(index)  # ends a loop over the batches
            return pixels[batch], dataset.labels[batch].astype(np.int32)

        def on_epoch_end(self) -> None:
            self.epoch += 1

    return StoredImages()
