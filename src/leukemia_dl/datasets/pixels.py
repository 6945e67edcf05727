"""The pixel store: every image of a data set decoded once, kept in one file, read at memory speed."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl import identity
from leukemia_dl.atomic import new_file, sha256_of_file
from leukemia_dl.datasets.cache import array_hash, cache_dir, in_use, make_room, user_path
from leukemia_dl.datasets.table import DatasetInfo
from leukemia_dl.errors import DataError, ImageError, SettingsError, StoreError
from leukemia_dl.preprocess import Pipeline, Step
from leukemia_dl.progress import parallel_map, process_map

__all__ = ["PixelStore", "decode_all"]

_CHUNK = 32
_FEW = 1_000  # below this, starting processes takes longer than it saves
_NAMED = 10
_log = logging.getLogger(__name__)


class Images(Protocol):
    """The part of a `Dataset` that knows its images."""

    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def info(self) -> DatasetInfo: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def content_hashes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def decode(self, row: int) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False, repr=False)
class PixelStore:
    """The pixels of a data set after a pipeline, in its row order: `store[3]`, `store[rows]`, `len(store)`.

    The pixels lie in a file that is mapped into memory: only the parts that are read take memory, and other processes
    share them. Files with the same bytes are kept once.

    Attributes:
        path: The file, `.npy`.
        images: uint8, (different contents, size, size, 3), read-only, in the order of their hashes.
        rows: int64, (n,): the index in `images` of each row of the data set.
    """

    path: Path
    images: NDArray[np.uint8]
    rows: NDArray[np.int64]

    @classmethod
    def open(
        cls, dataset: Images, pipeline: Pipeline, folder: str | Path | None = None, show_progress: bool = True
    ) -> PixelStore:
        """Return the store of a data set and a pipeline; build it if it is not there.

        It is found by the contents of the files and the pipeline. It is absent or complete at any moment.

        Args:
            dataset: The data set.
            pipeline: All its steps fitted, its result of one size.
            folder: The folder of all stores; None for `pixels` in the cache folder (`LEUKEMIA_DL_CACHE`).
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
        contents, first, rows = np.unique(np.array(dataset.content_hashes), return_index=True, return_inverse=True)
        # Another version may decode or resize otherwise.
        versions = [metadata.version(name) for name in ("leukemia-dl", "pillow", "numpy")]
        key = [pipeline.to_dict(), [_code(step) for step in pipeline.steps], versions, size, contents.tolist()]
        base = cache_dir() / "pixels" if folder is None else user_path(folder)
        path, shape = base / f"{identity.digest(key)[:24]}.npy", (len(contents), size, size, 3)
        images = _mapped(path, shape)
        if images is None:
            needed = len(contents) * size * size * 3
            try:
                make_room(path, needed)
                with new_file(path) as file:
                    _fill(file, shape, dataset, first, pipeline, show_progress)
                images = np.load(path, mmap_mode="r", allow_pickle=False)
            except OSError as error:
                raise StoreError(
                    f"The decoded pixels ({needed / 1e9:.2f} GB) cannot be written to {base}: "
                    f"{error.strerror or error}. Free some space (`leukemia-dl cache clear`), or set LEUKEMIA_DL_CACHE "
                    "to a folder on another disk."
                ) from error
        in_use(path)
        return cls(path, images, rows.astype(np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the same file, instead of being sent its content.
        return _reopened, (self.path, self.rows)

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
        return f"<PixelStore of {len(self):,} images of {size} x {size} pixels in {self.path}>"


def _reopened(path: Path, rows: NDArray[np.int64]) -> PixelStore:
    in_use(path)
    try:
        return PixelStore(path, np.load(path, mmap_mode="r", allow_pickle=False), rows)
    except OSError as error:
        raise StoreError(
            f"The pixel store {path} is not to be seen here ({error.strerror or error}): processes on other machines "
            "need the same folders, or the pixels sent to them."
        ) from error


def decode_all(dataset: Images, pipeline: Pipeline, show_progress: bool = True) -> NDArray[np.uint8]:
    """Return the images of a data set after a pipeline, in memory: uint8 (n, height, width, 3), in row order."""
    size = pipeline.output_size
    shape = pipeline(dataset.decode(0)).shape if size is None else (size, size, 3)
    pixels = np.empty((len(dataset), *shape), np.uint8)

    def load(row: int) -> str:
        try:
            pixels[row] = _fitting(pipeline(dataset.decode(row)), shape)
        except ImageError as error:
            return str(error)
        return ""

    _refuse(parallel_map(load, range(len(dataset)), "Reading images", show=show_progress))
    return pixels


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return the pixels of a file; None if there is none, or a damaged one."""
    if not path.exists():
        return None
    try:
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        if images.dtype == np.uint8 and images.shape == shape:
            return images
    except Exception as error:  # of damaged files: numpy's reader of headers raises MemoryError and TokenError too
        _log.debug("%s: %s", path, error)
    _log.warning("The pixel store %s is damaged, and is built again", path)
    return None


def _fill(
    file: BinaryIO,
    shape: tuple[int, ...],
    dataset: Images,
    first: NDArray[np.int64],
    pipeline: Pipeline,
    show_progress: bool,
) -> None:
    """Write the pixels of the rows `first` into the file, in order."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    positions, paths = file.tell() + np.arange(len(first)) * int(np.prod(shape[1:])), dataset.table["path"]
    jobs: list[tuple[int, str, str]] = []
    for position, row in zip(positions.tolist(), first.tolist(), strict=True):
        content = dataset.content_hashes[row]
        if isinstance(paths[row], str):
            jobs.append((position, paths[row], content))
            continue
        image = dataset.decode(row)
        if array_hash(image) != content:
            raise DataError("An array has changed since the data set was made of it. Make the data set again.")
        file.seek(position)
        file.write(_fitting(pipeline(image), shape[1:]).tobytes())
    file.flush()
    chunks = [jobs[i : i + _CHUNK] for i in range(0, len(jobs), _CHUNK)]
    run = process_map if len(jobs) >= _FEW else parallel_map
    write = partial(_write_pixels, file.name, shape[1:], pipeline)
    found = run(write, chunks, f"Reading images, {_CHUNK} at a time", show=show_progress)
    texts = itertools.chain.from_iterable(found)
    problems = {content: (path, text) for (_, path, content), text in zip(jobs, texts, strict=True)}
    each = [problems.get(content, ("", "")) for content in dataset.content_hashes]
    # Copies of a bad file are bad too, and named.
    _refuse([text and text.replace(named, str(path)) for (named, text), path in zip(each, paths, strict=True)])


def _write_pixels(
    name: str, shape: tuple[int, ...], pipeline: Pipeline, jobs: Sequence[tuple[int, str, str]]
) -> list[str]:
    """Write the pixels of some files, each at its position; return an error or nothing for each of the files."""
    problems = []
    with Path(name).open("r+b") as file:
        for position, path, content in jobs:
            try:
                image, found, problem = pipeline.load(path), sha256_of_file(Path(path)), ""
            except (ImageError, OSError) as error:
                problem = str(error)
            problems.append(problem)
            if problem:
                continue
            if found != content:
                raise DataError(f"{path} has changed since the data set was loaded. Load the data set again.")
            file.seek(position)
            file.write(_fitting(image, shape).tobytes())
    return problems


def _fitting(image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an image if it has the expected shape; numpy would stretch one of a single pixel."""
    if image.shape != shape:
        found, wanted = (f"{height} x {width}" for height, width, _ in (image.shape, shape))
        raise SettingsError(
            f"The pipeline gives images of {found} and {wanted} pixels: let it end in Resize(size), or let the steps "
            "after it state their size by size_after()."
        )
    return image


def _code(step: Step) -> str | None:
    """Return the code of a custom step: an edited one makes other pixels under the same name."""
    kind = type(step)
    if kind.__module__.startswith("leukemia_dl."):
        return None
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt
        codes = [value.__code__ for value in vars(kind).values() if hasattr(value, "__code__")]
        return repr([(code.co_code, code.co_consts, code.co_names) for code in codes])


def _refuse(found: list[str]) -> None:
    """Raise ImageError if some of the texts, one per image, name a problem."""
    problems = [text for text in found if text]
    if problems:
        more = f"\n  and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
        raise ImageError(
            f"{len(problems):,} of {len(found):,} images cannot be read. Replace these files or leave them out "
            "with Dataset.subset:\n  " + "\n  ".join(problems[:_NAMED]) + more
        )
