"""The pixel store: every image of a data set decoded once, kept in one file, read at memory speed."""

from __future__ import annotations

import inspect
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
from leukemia_dl.datasets.cache import array_hash, cache_dir, in_use, is_whole, make_room, user_path
from leukemia_dl.datasets.table import DatasetInfo
from leukemia_dl.errors import DataError, ImageError, SettingsError, StoreError
from leukemia_dl.preprocess import Pipeline, Step
from leukemia_dl.progress import parallel_map, process_map

__all__ = ["PixelStore", "decode_all"]

_FEW = 1_000  # below this, starting processes takes longer than it saves
_NAMED = 10


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
        """Return the store of a `dataset` and a `pipeline`; build it if it is not there. It is absent or complete.

        The pipeline is fitted and its results have one size. `folder` is that of all stores, None for `pixels` in the
        cache folder. `show_progress` shows a bar. Raises ImageError with up to ten files that cannot be decoded, and
        StoreError if the folder cannot be written. Raises DataError if a file or array has changed since the data set
        was made, SettingsError for another pipeline.
        """
        size = pipeline.output_size
        if size is None or not pipeline.is_fitted:
            raise SettingsError(f"A pixel store takes a fitted pipeline that ends in Resize. Received: {pipeline}.")
        contents, first, rows = np.unique(np.array(dataset.content_hashes), return_index=True, return_inverse=True)
        # Another version may decode or resize otherwise.
        versions = [metadata.version(name) for name in ("leukemia-dl", "pillow", "numpy")]
        key = identity.digest(
            [pipeline.to_dict(), [_code(step) for step in pipeline.steps], versions, size, contents.tolist()]
        )
        path = (cache_dir() / "pixels" if folder is None else user_path(folder)) / f"{key[:24]}.npy"
        shape = (len(contents), size, size, 3)
        if not is_whole(path, shape, "|u1"):
            try:
                make_room(path, int(np.prod(shape)))
                with new_file(path) as file:
                    _fill(file, shape, dataset, first, pipeline, show_progress)
            except OSError as error:
                reason = f"{error.strerror or error}. Free some space, or set LEUKEMIA_DL_CACHE"
                raise StoreError(f"The decoded pixels cannot be written to {path.parent}: {reason}.") from error
        return _opened(path, rows.astype(np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the same file, instead of being sent its content.
        return _opened, (self.path, self.rows)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """Return the pixels of `rows` of the data set, as numpy indexing does: uint8, in memory and writable."""
        return np.array(self.images[self.rows[rows]])


def _opened(path: Path, rows: NDArray[np.int64]) -> PixelStore:
    in_use(path)
    return PixelStore(path, np.load(path, mmap_mode="r"), rows)


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


def _fill(
    file: BinaryIO, shape: tuple[int, ...], dataset: Images, first: NDArray[np.int64], pipeline: Pipeline, show: bool
) -> None:
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
    run = process_map if len(jobs) >= _FEW else parallel_map
    texts = run(partial(_write_pixels, file.name, shape[1:], pipeline), jobs, "Reading images", show=show)
    problems = {content: (path, text) for (_, path, content), text in zip(jobs, texts, strict=True)}
    each = [problems.get(content, ("", "")) for content in dataset.content_hashes]
    # Copies of a bad file are bad too, and named.
    _refuse([text and text.replace(named, str(path)) for (named, text), path in zip(each, paths, strict=True)])


def _write_pixels(name: str, shape: tuple[int, ...], pipeline: Pipeline, job: tuple[int, str, str]) -> str:
    """Write the pixels of a file at their position in the file `name`; return why they cannot be read, or ""."""
    position, path, content = job
    try:
        image, found = pipeline.load(path), sha256_of_file(Path(path))
    except (ImageError, OSError) as error:
        return str(error)
    if found != content:
        raise DataError(f"{path} has changed since the data set was loaded. Load the data set again.")
    with Path(name).open("r+b") as file:
        file.seek(position)
        file.write(_fitting(image, shape).tobytes())
    return ""


def _fitting(image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an image if it has the expected shape; numpy would stretch one of a single pixel."""
    if image.shape != shape:
        found, wanted = (f"{height} x {width}" for height, width, _ in (image.shape, shape))
        raise SettingsError(f"The pipeline gives images of {found} and {wanted} pixels: let it end in Resize(size).")
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
    if problems := [text for text in found if text]:
        more = f"\n  and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
        raise ImageError(
            f"{len(problems):,} of {len(found):,} images cannot be read. Replace these files or leave them out "
            "with Dataset.subset:\n  " + "\n  ".join(problems[:_NAMED]) + more
        )
