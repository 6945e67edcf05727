"""Features of images by frozen backbones, computed once for all heads that are trained on them."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import new_file
from leukemia_dl.datasets.cache import in_use, make_room
from leukemia_dl.identity import digest
from leukemia_dl.models.classifier import predict_in_batches, symmetric_form
from leukemia_dl.training import fingerprints
from leukemia_dl.training.backends import Device
from leukemia_dl.training.batches import Subset

__all__ = ["FeatureCache", "every_form"]

_HELD = 3  # arrays in memory: features of the training, validation and test images of one fit
_log = logging.getLogger(__name__)
_Features = NDArray[np.float32]


class FeatureCache:
    """Features of images by frozen backbones, which later fits read instead of computing them again.

    The key of an array is the net with its weights, the pixels, the backend with its version, device, precision and
    threads, and the images per step. On a CPU an image's features do not depend on the images beside it.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Make a cache in a `folder` of `.npy` files, or in memory if it is None or cannot be written."""
        self.folder = None if folder is None else Path(folder)
        self._held: dict[str, _Features] = {}
        self._images: dict[int, tuple[weakref.ref[Any], list[Any]]] = {}

    def read(self, extractor: Any, images: Any, device: Device, batch_size: int, forms: int = 1) -> Subset:
        """Return the features of images, float32 (n * forms, width); the forms of an image are next to one another.

        Of a `Subset`, the features of its whole base are computed, so that they serve other folds too.

        Args:
            extractor: `keras.Model`, raw pixels (n, size, size, 3) to features (n, width).
            images: uint8 array or `Subset`.
            device: Device of the extractor.
            batch_size: Images per step.
            forms: 8 for the symmetries of each image, see `symmetric_form`; 1 for images as they are.
        """
        whole = images if isinstance(images, Subset) else Subset(images, np.arange(len(images)))
        net = fingerprints.net_fingerprint(extractor)

        def batches() -> Iterator[_Features]:
            return _computed(extractor, whole.base, batch_size, forms)

        if net is None:
            found = _in_memory(batches())
        else:
            key = [net, fingerprints.weights_fingerprint(extractor), self._fingerprint(whole.base), batch_size, forms]
            name = digest([*key, fingerprints.backend_fingerprint(device)])
            if name in self._held:
                found = self._held.pop(name)
            else:
                shape = (len(whole.base) * forms, int(extractor.output_shape[-1]))
                found = self._from_file(f"{extractor.name}-{name[:24]}", shape, batches)
            self._held[name] = found
            if len(self._held) > _HELD:
                del self._held[next(iter(self._held))]
        return Subset(found, every_form(whole.rows, forms))

    def _fingerprint(self, base: Any) -> list[Any]:
        if isinstance(base, np.ndarray) and base.flags.writeable:
            return fingerprints.array_fingerprint(base)
        self._images = {key: known for key, known in self._images.items() if known[0]() is not None}
        if id(base) not in self._images:
            self._images[id(base)] = (weakref.ref(base), fingerprints.array_fingerprint(base))
        return self._images[id(base)][1]

    def _from_file(self, name: str, shape: tuple[int, int], batches: Callable[[], Iterator[_Features]]) -> _Features:
        if self.folder is None:
            return _in_memory(batches())
        path = self.folder / f"{name}.npy"
        try:
            found = _mapped(path, shape)
            if found is None:
                _write(path, shape, batches())
                found = _mapped(path, shape)
        except OSError as error:
            found = None
            _log.warning("Features are held in memory: %s cannot be written: %s", path, error.strerror or error)
        return _in_memory(batches()) if found is None else found


def every_form(rows: NDArray[np.int64], forms: int) -> NDArray[np.int64]:
    """Return the row numbers of all forms of some images in an array of features."""
    return (rows[:, None] * forms + np.arange(forms)).ravel()


def _in_memory(batches: Iterator[_Features]) -> _Features:
    return np.concatenate(list(batches))


def _computed(extractor: Any, images: Any, batch_size: int, forms: int) -> Iterator[_Features]:
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        each = [predict_in_batches(extractor, symmetric_form(batch, form), batch_size) for form in range(forms)]
        yield np.stack(each, axis=1).reshape(len(batch) * forms, -1)


def _write(path: Path, shape: tuple[int, int], batches: Iterator[_Features]) -> None:
    make_room(path, 4 * shape[0] * shape[1])
    with new_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        known = hashlib.sha256()
        for batch in batches:
            content = batch.astype("<f4").tobytes()
            known.update(content)
            file.write(content)
        # Beside an old file it says that this is not whole, until the new one is in place.
        path.with_name(f"{path.name}.sha256").write_text(known.hexdigest(), encoding="ascii")


def _mapped(path: Path, shape: tuple[int, int]) -> _Features | None:
    """Return the array of a file, mapped into memory; None if there is no file or it is damaged."""
    if not path.exists():
        return None
    try:
        found: _Features = np.load(path, mmap_mode="r", allow_pickle=False)
        known = path.with_name(f"{path.name}.sha256").read_text(encoding="ascii")
        if found.dtype == np.float32 and found.shape == shape and hashlib.sha256(found.data).hexdigest() == known:
            in_use(path)
            return found
    except Exception as error:  # numpy's reader of headers raises about anything
        _log.debug("%s: %s", path, error)
    _log.warning("The features in %s are damaged and are computed again", path)
    return None
