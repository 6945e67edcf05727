"""The pixel store: every image of a data set decoded once, kept on disk, read at memory speed."""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl import identity
from leukemia_dl.atomic import new_folder, sha256_of_file, write_file
from leukemia_dl.datasets.cache import cache_dir, in_use, make_room, user_path
from leukemia_dl.datasets.hashes import array_hash
from leukemia_dl.errors import DataError, ImageError, SettingsError, StoreError
from leukemia_dl.preprocess import Pipeline, Step
from leukemia_dl.progress import parallel_map, process_map

__all__ = ["PixelStore", "decode_all"]

_PIXELS, _INDEX = "pixels.npy", "index.json"
_CHUNK = 32
_FEW = 1_000  # below this, starting processes takes longer than it saves
_NAMED = 10
_log = logging.getLogger(__name__)
_Job = tuple[int, str, str]  # place in the store, path, expected SHA-256


class Images(Protocol):
    """The part of a `Dataset` that knows its images."""

    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def content_hashes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def decode(self, row: int) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False, repr=False)
class PixelStore:
    """The pixels of a data set after a pipeline, in its row order: `store[3]`, `store[rows]`, `len(store)`.

    The pixels lie in a file (`.npy`, uint8) that is mapped into memory: only the parts that are read take memory, and
    other processes share them. Files with the same bytes are kept once.

    Attributes:
        folder: The folder of the store.
        images: uint8, (different contents, size, size, 3), read-only, in the order of their hashes.
        rows: int64, (n,): the index in `images` of each row of the data set.
    """

    folder: Path
    images: NDArray[np.uint8]
    rows: NDArray[np.int64]

    @classmethod
    def open(
        cls, dataset: Images, pipeline: Pipeline, folder: str | Path | None = None, show_progress: bool = True
    ) -> PixelStore:
        """Return the store of a data set and a pipeline; build it if it is not there.

        It is found by the contents of the files and the pipeline: a file that changes, or another parameter, makes
        another store. It is built aside and moved in place, so at any moment it is absent or complete.

        Args:
            dataset: The data set.
            pipeline: All its steps fitted, its result of one size.
            folder: The folder of all stores; None for the folder `pixels` in the cache folder (`LEUKEMIA_DL_CACHE`).
            show_progress: Whether to show progress.

        Raises:
            ImageError: If files cannot be decoded; one error names up to ten of them.
            SettingsError: If the pipeline has to be fitted, or gives images of different sizes.
            StoreError: If the folder cannot be written. Nothing is left behind.
            DataError: If a file or array has changed since the data set was made.
        """
        size = pipeline.output_size
        if size is None or not pipeline.is_fitted:
            why = "be fitted first" if size is not None else "end in Resize(size), so that all images get one size"
            raise SettingsError(f"For a pixel store a pipeline must {why}. Received: {pipeline!r}.")
        base = cache_dir() / "pixels" if folder is None else user_path(folder)
        contents, first, rows = np.unique(np.array(dataset.content_hashes), return_index=True, return_inverse=True)
        index = {
            "format": 1,
            "pipeline": pipeline.to_dict(),
            # Another version may decode or resize otherwise.
            "versions": {name: metadata.version(name) for name in ("leukemia-dl", "pillow", "numpy")},
            "code": [_code(step) for step in pipeline.steps],
            "shape": [len(contents), size, size, 3],
            "contents": contents.tolist(),
        }
        place = base / identity.digest(index)[:24]
        images = _mapped(place, index)
        if images is None:
            needed = int(np.prod(index["shape"]))
            make_room(place, needed)
            with _clear_disk_errors(base, needed), new_folder(place) as aside:
                _reserve(aside / _PIXELS, (len(contents), size, size, 3))
                _fill(aside / _PIXELS, dataset, first, pipeline, show_progress)
                with (aside / _PIXELS).open("r+b") as file:
                    os.fsync(file.fileno())
                write_file(aside / _INDEX, json.dumps(index).encode())
            images = _mapped(place, index)
        if images is None:
            raise StoreError(f"The pixel store {place} was changed or removed while it was opened. Try again.")
        in_use(place)
        return cls(place, images, rows.astype(np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the same file, instead of being sent its content.
        return _reopened, (self.folder, self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, size, size, 3)."""
        return (len(self), *self.images.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return self.images.dtype

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """Return the pixels of `rows` of the data set, as numpy indexing does: uint8, in memory and writable."""
        return np.array(self.images[self.rows[rows]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def __repr__(self) -> str:
        size = self.images.shape[1]
        return f"<PixelStore of {len(self):,} images of {size} x {size} pixels in {self.folder}>"


def _reopened(folder: Path, rows: NDArray[np.int64]) -> PixelStore:
    in_use(folder)
    try:
        return PixelStore(folder, np.load(folder / _PIXELS, mmap_mode="r", allow_pickle=False), rows)
    except OSError as error:
        raise StoreError(
            f"The pixel store {folder} is not to be seen here ({error.strerror or error}): processes on other machines "
            "need the same folders, or the pixels sent to them."
        ) from error


def decode_all(dataset: Images, pipeline: Pipeline, show_progress: bool = True) -> NDArray[np.uint8]:
    """Return the images of a data set after a pipeline, in memory: uint8 (n, height, width, 3), in row order."""
    size = pipeline.output_size
    shape = pipeline(dataset.decode(0)).shape if size is None else (size, size, 3)
    pixels = np.empty((len(dataset), *shape), np.uint8)

    def load(row: int) -> str:
        try:
            pixels[row] = _fitting(pipeline(dataset.decode(row)), pixels)
        except ImageError as error:
            return str(error)
        return ""

    found = parallel_map(load, range(len(dataset)), "Reading images", show=show_progress)
    _refuse([text for text in found if text], len(dataset))
    return pixels


def _mapped(place: Path, index: dict[str, Any]) -> NDArray[np.uint8] | None:
    """Return the pixels of a complete store; None if there is none, or a damaged one."""
    if not place.is_dir():
        return None
    try:
        if json.loads((place / _INDEX).read_text(encoding="utf-8")) == index:
            images: NDArray[np.uint8] = np.load(place / _PIXELS, mmap_mode="r", allow_pickle=False)
            if images.dtype == np.uint8 and images.shape == tuple(index["shape"]):
                return images
    except Exception as error:  # of damaged files: numpy's reader of headers raises MemoryError and TokenError too
        _log.debug("%s: %s", place, error)
    _log.warning("The pixel store %s is damaged, and is built again", place)
    return None


@contextlib.contextmanager
def _clear_disk_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turn errors of the disk into one StoreError that says what to do."""
    cure = "Free some space (`leukemia-dl cache clear`), or set LEUKEMIA_DL_CACHE to a folder on another disk"
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = f"there is no room for {needed / 1e9:.2f} GB" if full else error.strerror or str(error)
        raise StoreError(f"The decoded pixels cannot be written to {folder}: {reason}. {cure}.") from error


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Create the file at its full size: writing into a mapped file that finds the disk full kills the process."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start, length = file.tell(), int(np.prod(shape))
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), start, length)
        else:
            for done in range(0, length, 1 << 24):
                file.write(b"\0" * min(1 << 24, length - done))


def _fill(path: Path, dataset: Images, first: NDArray[np.int64], pipeline: Pipeline, show_progress: bool) -> None:
    """Write the pixels of the rows `first` into the file, in order."""
    paths = dataset.table["path"]
    target = np.load(path, mmap_mode="r+")
    jobs: list[_Job] = []
    for place, row in enumerate(map(int, first)):
        content = dataset.content_hashes[row]
        if isinstance(paths[row], str):
            jobs.append((place, paths[row], content))
        elif array_hash(image := dataset.decode(row)) == content:
            target[place] = _fitting(pipeline(image), target)
        else:
            raise DataError("An array has changed since the data set was made of it. Make the data set again.")
    target.flush()
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    run = process_map if len(jobs) >= _FEW else parallel_map
    # Not by np.load: numpy parses the header as Python, which Python 3.11 gets wrong in several threads, now and then.
    opened = partial(np.memmap, path, np.uint8, "r+", target.offset, target.shape)
    found = run(
        partial(_write_pixels, opened, pipeline), chunks, f"Reading images, {_CHUNK} at a time", show=show_progress
    )
    problems = {content: (bad, text) for part in found for bad, content, text in part}
    # Copies of a bad file are bad too, and named.
    bad = [(row, *problems[c]) for row, c in enumerate(dataset.content_hashes) if c in problems]
    _refuse([text.replace(named, str(paths[row])) for row, named, text in bad], len(dataset))


def _write_pixels(
    opened: Callable[[], NDArray[np.uint8]], pipeline: Pipeline, jobs: Sequence[_Job]
) -> list[tuple[str, str, str]]:
    """Write the pixels of some files; return (path, content, reason) of those that cannot be decoded."""
    target = opened()
    problems = []
    for place, path, content in jobs:
        try:
            target[place] = _fitting(pipeline.load(path), target)
            found = sha256_of_file(Path(path))
        except (ImageError, OSError) as error:
            problems.append((path, content, str(error)))
            continue
        if found != content:
            raise DataError(f"{path} has changed since the data set was loaded. Load the data set again.")
    return problems


def _fitting(image: NDArray[np.uint8], target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image if it has the expected size; numpy would stretch one of a single pixel."""
    if image.shape != target.shape[1:]:
        found, wanted = (f"{shape[0]} x {shape[1]}" for shape in (image.shape, target.shape[1:]))
        raise SettingsError(
            f"The pipeline gives images of {found} and {wanted} pixels: let it end in Resize(size), or let the steps "
            "after it state their size by size_after()."
        )
    return image


def _code(step: Step) -> str | None:
    """Return a digest of the code of a custom step: an edited one makes other pixels under the same name."""
    kind = type(step)
    if kind.__module__.startswith("leukemia_dl."):
        return None
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt
        codes = [value.__code__ for value in vars(kind).values() if hasattr(value, "__code__")]
        source = repr([(code.co_code, code.co_consts, code.co_names) for code in codes])
    return identity.digest(source)


def _refuse(problems: list[str], total: int) -> None:
    if problems:
        named = "\n  ".join(problems[:_NAMED])
        more = f"\n  and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
        raise ImageError(
            f"{len(problems):,} of {total:,} images cannot be read. Replace these files or leave them out "
            f"with Dataset.subset:\n  {named}{more}"
        )
