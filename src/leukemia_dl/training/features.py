"""What frozen backbones make of images: computed once, for all the heads that are trained on it."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.identity import digest
from leukemia_dl.models.classifier import predict_in_batches, symmetric_form
from leukemia_dl.training.backends import Device
from leukemia_dl.training.batches import Subset
from leukemia_dl.training.fingerprints import (
    array_fingerprint,
    backend_fingerprint,
    layers_fingerprint,
    weights_fingerprint,
)

__all__ = ["FeatureCache", "feature_files"]

# Arrays that are held: the training, validation and test images of one fit.
_HELD = 3
_ABANDONED_SECONDS = 86_400
_log = logging.getLogger(__name__)
OnBatch = Callable[[int, int], None]


class FeatureCache:
    """Features of images by frozen backbones; what was computed once is read from then on.

    They are found by what they depend on: the layers and weights of the net, the images' pixels, the backend, its
    version, precision and threads. On a CPU an image's features do not depend on the images beside it.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Make a cache.

        Args:
            folder: Where features are kept for other processes, one `.npy` file each; None to hold those of the last
                few arrays in memory. Where it cannot be written they are held in memory, and a warning is logged.
        """
        self.folder = None if folder is None else Path(folder)
        self._held: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._known: dict[int, tuple[weakref.ref[Any], list[Any]]] = {}

    def read(
        self,
        extractor: Any,
        images: Any,
        device: Device,
        batch_size: int,
        forms: int = 1,
        on_batch: OnBatch | None = None,
    ) -> Subset:
        """Return the features of images, computed now or earlier.

        Of a `Subset`, all images of its base are computed: another fold is another part of the same.

        Args:
            extractor: `keras.Model`, raw pixels (n, size, size, 3) to features (n, width).
            images: uint8 array or `Subset`.
            device: Where it runs.
            batch_size: Images per step.
            forms: 8 for those of each image's symmetries, see `symmetric_form`; 1 for images as they are.
            on_batch: Called with (batch, batches), from 0, while they are computed.

        Returns:
            float32 (n * forms, width): an image's forms lie next to one another.
        """
        whole = images if isinstance(images, Subset) else Subset(images, np.arange(len(images)))
        settings = [self._fingerprint(whole.base), batch_size, forms, *backend_fingerprint(device)]
        name = digest([layers_fingerprint(extractor), weights_fingerprint(extractor), settings])
        found = self._held.get(name)
        if found is None:
            shape = (len(whole.base) * forms, int(extractor.output_shape[-1]))
            label = f"{extractor.name}-{name[:24]}"

            def batches() -> Iterator[NDArray[np.float32]]:
                return _computed(extractor, whole.base, batch_size, forms, on_batch)

            found = self._from_file(label, shape, batches)
        self._held[name] = found
        self._held.move_to_end(name)
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
        return Subset(found, (whole.rows[:, None] * forms + np.arange(forms)).ravel())

    def _fingerprint(self, base: Any) -> list[Any]:
        self._known = {key: known for key, known in self._known.items() if known[0]() is not None}
        if id(base) not in self._known:
            self._known[id(base)] = (weakref.ref(base), array_fingerprint(base))
        return self._known[id(base)][1]

    def _from_file(
        self, name: str, shape: tuple[int, int], batches: Callable[[], Iterator[NDArray[np.float32]]]
    ) -> NDArray[np.float32]:
        if self.folder is None:
            return np.concatenate(list(batches()))
        path = self.folder / f"{name}.npy"
        found = _mapped(path, shape)
        if found is None:
            try:
                _write(path, shape, batches())
                found = _mapped(path, shape)
            except OSError as error:
                _log.warning(
                    "Features are held in memory, since %s cannot be written: %s", path, error.strerror or error
                )
        return np.concatenate(list(batches())) if found is None else found


def feature_files(folder: Path) -> list[Path]:
    """Return the files of a cache, also those that a killed process has left."""
    return sorted(folder.glob("*.npy")) + sorted(folder.glob(".*.npy")) if folder.is_dir() else []


def _computed(
    extractor: Any, images: Any, batch_size: int, forms: int, on_batch: OnBatch | None
) -> Iterator[NDArray[np.float32]]:
    batches = -(-len(images) // batch_size)
    for number in range(batches):
        if on_batch is not None:
            on_batch(number, batches)
        batch = images[number * batch_size : (number + 1) * batch_size]
        each = [predict_in_batches(extractor, symmetric_form(batch, form), batch_size) for form in range(forms)]
        yield np.stack(each, axis=1).reshape(len(batch) * forms, -1)


def _mapped(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    try:
        found: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.dtype == np.float32 and found.shape == shape:
            return found
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy's reader of headers raises about anything
        _log.debug("%s: %s", path, error)
    _log.warning("The features in %s are damaged, and are computed again", path)
    return None


def _write(path: Path, shape: tuple[int, int], batches: Iterator[NDArray[np.float32]]) -> None:
    """Write a file aside, flush it to the disk and move it in place: at any moment it is absent or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".*.npy"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()
    aside = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", suffix=".npy", delete=False) as file:
            aside = Path(file.name)
            _reserve(file, int(np.prod(shape)) * 4)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for batch in batches:
                file.write(np.ascontiguousarray(batch, dtype="<f4").tobytes())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def _reserve(file: IO[bytes], size: int) -> None:
    """Have a disk that is too full say so before an hour of computing, where the system can."""
    with contextlib.suppress(AttributeError):
        os.posix_fallocate(file.fileno(), 0, size)
