"""What frozen backbones make of images: computed once, for all the heads that are trained on it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import new_file
from leukemia_dl.datasets.cache import in_use, make_room
from leukemia_dl.identity import digest
from leukemia_dl.models.classifier import predict_in_batches, symmetric_form
from leukemia_dl.training.backends import Device
from leukemia_dl.training.batches import Subset
from leukemia_dl.training.fingerprints import (
    array_fingerprint,
    backend_fingerprint,
    is_readonly,
    net_fingerprint,
    weights_fingerprint,
)  # fmt: skip

__all__ = ["FeatureCache", "feature_files"]

# Arrays that are held: the training, validation and test images of one fit.
_HELD = 3
_log = logging.getLogger(__name__)
OnBatch = Callable[[int, int], None]


class FeatureCache:
    """Features of images by frozen backbones; what was computed once is read from then on.

    They are found by what they depend on: the layers and weights of the net, the images' pixels, the backend, its
    version, device, precision and threads, and the images per step. On a CPU an image's features do not depend on the
    images beside it. Features of a net with layers that cannot say what they are are computed each time.
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
        self, extractor: Any, images: Any, device: Device, batch_size: int, forms: int = 1,
        on_batch: OnBatch | None = None,
    ) -> Subset:  # fmt: skip
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
        net = net_fingerprint(extractor)

        def batches() -> Iterator[NDArray[np.float32]]:
            return _computed(extractor, whole.base, batch_size, forms, on_batch)

        if net is None:
            found = _held(batches())
        else:
            settings = [self._fingerprint(whole.base), batch_size, forms, *backend_fingerprint(device)]
            name = digest([net, weights_fingerprint(extractor), settings])
            shape = (len(whole.base) * forms, int(extractor.output_shape[-1]))
            known = self._held.get(name)
            found = self._from_file(f"{extractor.name}-{name[:24]}", shape, batches) if known is None else known
            self._held[name] = found
            self._held.move_to_end(name)
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
        return Subset(found, (whole.rows[:, None] * forms + np.arange(forms)).ravel())

    def _fingerprint(self, base: Any) -> list[Any]:
        if not is_readonly(base):
            return array_fingerprint(base)
        self._known = {key: known for key, known in self._known.items() if known[0]() is not None}
        if id(base) not in self._known:
            self._known[id(base)] = (weakref.ref(base), array_fingerprint(base))
        return self._known[id(base)][1]

    def _from_file(
        self, name: str, shape: tuple[int, int], batches: Callable[[], Iterator[NDArray[np.float32]]]
    ) -> NDArray[np.float32]:
        if self.folder is None:
            return _held(batches())
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
        return _held(batches()) if found is None else found


def feature_files(folder: Path) -> list[Path]:
    """Return the files of a cache, also those that a killed process has left."""
    return sorted(folder.glob("*.npy")) if folder.is_dir() else []


def _held(batches: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
    found = np.concatenate(list(batches))
    found.flags.writeable = False  # so that it need not be copied to the device again and again
    return found


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
    if not path.exists():
        return None
    try:
        said = _checksum(path).read_text(encoding="ascii").split()[0]
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == said
        found: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        if intact and found.dtype == np.float32 and found.shape == shape:
            in_use(path)
            return found
    except Exception as error:  # numpy's reader of headers raises about anything
        _log.debug("%s: %s", path, error)
    _log.warning("The features in %s are damaged, and are computed again", path)
    return None


def _write(path: Path, shape: tuple[int, int], batches: Iterator[NDArray[np.float32]]) -> None:
    """Write a file aside, flush it to the disk and move it in place: at any moment it is absent or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_room(path, int(np.prod(shape)) * 4)
    with new_file(path) as file:
        _reserve(file, int(np.prod(shape)) * 4)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        known = hashlib.sha256()
        contents = (np.ascontiguousarray(batch, dtype="<f4").tobytes() for batch in batches)
        for content in itertools.chain([header.getvalue()], contents):
            known.update(content)
            file.write(content)
        file.truncate()
        # Beside the old file, if there is one, it says that this is not whole, until the new one is in place.
        _checksum(path).write_text(f"{known.hexdigest()}  {path.name}\n", encoding="ascii")


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _reserve(file: IO[bytes], size: int) -> None:
    """Have a disk that is too full say so before an hour of computing, where the system can."""
    with contextlib.suppress(AttributeError):
        os.posix_fallocate(file.fileno(), 0, size)
