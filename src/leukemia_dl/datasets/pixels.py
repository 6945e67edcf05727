"""The pixel store: every image of a data set decoded once, kept on disk, read at memory speed."""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl import identity
from leukemia_dl.datasets.cache import cache_dir, in_use, make_room, user_path
from leukemia_dl.datasets.hashes import Stamp, array_hash, file_hashes, stamp
from leukemia_dl.errors import DataError, ImageError, SettingsError, StoreError
from leukemia_dl.preprocess import Pipeline, Step
from leukemia_dl.progress import parallel_map, process_map

if TYPE_CHECKING:
    from leukemia_dl.datasets.dataset import Dataset

__all__ = ["PixelStore", "decode_all", "stores"]

_PIXELS, _INDEX = "pixels.npy", "index.json"
_CHUNK = 32
# Below this, starting processes takes longer than it saves.
_FEW = 1_000
_NAMED = 10
# Numpy parses the header as Python, which Python 3.11 gets wrong in several threads, now and then (SystemError).
_ONE_AT_A_TIME = threading.Lock()
_log = logging.getLogger(__name__)
_Job = tuple[int, str, Stamp]
_Problem = tuple[int, str]


@dataclass(frozen=True, eq=False, repr=False)
class PixelStore:
    """The pixels of a data set after a pipeline, in its row order: `store[3]`, `store[rows]`, `len(store)`.

    The pixels lie in a file (`.npy`, uint8) that is mapped into memory: they take no memory of the process beyond what
    is read, and other processes share them. Files with the same bytes are kept once.

    Attributes:
        folder: Where it lies.
        images: uint8, (different contents, size, size, 3), read-only, in the order of their hashes.
        rows: int64, (n,): which of `images` each row of the data set is.
    """

    folder: Path
    images: NDArray[np.uint8]
    rows: NDArray[np.int64]

    @classmethod
    def open(
        cls, dataset: Dataset, pipeline: Pipeline, folder: str | Path | None = None, show_progress: bool = True
    ) -> PixelStore:
        """Return the store of a data set and a pipeline; build it if it is not there.

        It is found by the contents of the files and the pipeline: a file that changes, or another parameter, makes
        another store. It is built aside and moved in place, so at any moment it is absent or complete.

        Args:
            dataset: Whose images; its files are hashed, if they were not yet.
            pipeline: All its steps fitted, its result of one size.
            folder: Where stores lie; None for the folder `pixels` in the cache folder (`LEUKEMIA_DL_CACHE`).
            show_progress: Whether to tell how far it is.

        Raises:
            ImageError: If files cannot be decoded; one error names up to ten of them.
            SettingsError: If the pipeline has to be fitted, or gives images of different sizes.
            StoreError: If the folder cannot be written, or the disk is full. Nothing is left behind.
            DataError: If a file or array has changed since the data set was made.
        """
        size = pipeline.output_size
        if size is None or not pipeline.is_fitted:
            why = "be fitted first" if size is not None else "end in Resize(size), so that all images get one size"
            raise SettingsError(f"For a pixel store a pipeline must {why}. Received: {pipeline!r}.")
        base = cache_dir() / "pixels" if folder is None else user_path(folder)
        contents = np.array(dataset.content_hashes)
        unique, first, rows = np.unique(contents, return_index=True, return_inverse=True)
        index = {
            "format": 1,
            "pipeline": pipeline.to_dict(),
            # Another version may decode or resize otherwise.
            "versions": {name: metadata.version(name) for name in ("leukemia-dl", "pillow", "numpy")},
            "code": [_code(step) for step in pipeline.steps],
            "shape": [len(unique), size, size, 3],
            "contents": unique.tolist(),
        }
        place = base / identity.digest(index)[:24]
        images = _mapped(place, index)
        if images is None:
            _build(place, index, dataset, first, rows, pipeline, show_progress)
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


def decode_all(dataset: Dataset, pipeline: Pipeline, show_progress: bool = True) -> NDArray[np.uint8]:
    """Return the images of a data set after a pipeline, in memory: uint8 (n, height, width, 3), in row order.

    Raises:
        ImageError: If files cannot be decoded (one error names up to ten of them), or images differ in size.
    """
    size = pipeline.output_size
    pixels = None if size is None else np.empty((len(dataset), size, size, 3), np.uint8)

    def load(row: int) -> NDArray[np.uint8] | ImageError | None:
        try:
            image = pipeline(dataset.decode(row))
        except ImageError as error:
            return error
        if pixels is None:
            return image
        pixels[row] = _fitting(image, pixels)
        return None

    loaded = parallel_map(load, list(range(len(dataset))), "Reading images", show=show_progress)
    _refuse([str(result) for result in loaded if isinstance(result, ImageError)], len(dataset))
    if pixels is not None:
        return pixels
    images = [image for image in loaded if isinstance(image, np.ndarray)]
    shapes = sorted({image.shape[:2] for image in images})
    if len(shapes) > 1:
        raise ImageError(
            f"The images have {len(shapes)} sizes (height x width), such as "
            f"{' and '.join(f'{h} x {w}' for h, w in shapes[:3])}: add a step that makes them equal, "
            "as dataset.default_pipeline(size) does."
        )
    return np.stack(images)


def stores(folder: str | Path | None = None) -> list[tuple[Path, dict[str, Any] | None, int]]:
    """Return what lies in a folder of stores: path, its index (None: incomplete or damaged), bytes on disk."""
    base = cache_dir() / "pixels" if folder is None else Path(folder)
    found = []
    for place in sorted(base.iterdir()) if base.is_dir() else []:
        if place.is_dir():
            size = sum(file.lstat().st_size for file in place.iterdir())
            found.append((place, None if place.name.startswith(".") else _read_index(place), size))
    return found


def _read_index(place: Path) -> dict[str, Any] | None:
    try:
        index = json.loads((place / _INDEX).read_text(encoding="utf-8"))
        fits = isinstance(index, dict) and {"pipeline", "shape"} <= set(index)
        return index if fits and identity.digest(index)[:24] == place.name else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _mapped(place: Path, index: dict[str, Any]) -> NDArray[np.uint8] | None:
    """Return the pixels of a complete store; None if there is none, or a damaged one."""
    if not place.is_dir():
        return None
    try:
        if _read_index(place) == index:
            images: NDArray[np.uint8] = np.load(place / _PIXELS, mmap_mode="r", allow_pickle=False)
            if images.dtype == np.uint8 and images.shape == tuple(index["shape"]):
                return images
    except Exception as error:  # numpy's reader of headers raises about anything, MemoryError and TokenError included
        _log.debug("%s: %s", place, error)
    _log.warning("The pixel store %s is damaged, and is built again", place)
    return None


def _build(
    place: Path,
    index: dict[str, Any],
    dataset: Dataset,
    first: NDArray[np.int64],
    rows: NDArray[np.int64],
    pipeline: Pipeline,
    show_progress: bool,
) -> None:
    """Write a store aside, from the row that has each content `first`, and move it into place."""
    aside = place.parent / f".{place.name}-{uuid.uuid4().hex[:8]}"
    make_room(place, int(np.prod(index["shape"])))
    with _space(place.parent, int(np.prod(index["shape"]))):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.mkdir()
            _reserve(aside / _PIXELS, tuple(index["shape"]))
            problems = _fill(aside / _PIXELS, dataset, first, pipeline, show_progress)
            paths = dataset.table["path"]
            # Copies of a bad file are as bad, and named too.
            copies = [(text, first[place], row) for place, text in problems for row in np.flatnonzero(rows == place)]
            _refuse([text.replace(paths[one], paths[row]) for text, one, row in copies], len(dataset))
            (aside / _INDEX).write_text(json.dumps(index), encoding="utf-8")
            _sync(aside)
            if place.exists() and _mapped(place, index) is None:
                damaged = place.with_name(f"{aside.name}-damaged")
                with contextlib.suppress(OSError):  # another process was faster
                    place.rename(damaged)
                shutil.rmtree(damaged, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was faster: its pixels are the same
                aside.rename(place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _space(folder: Path, needed: int) -> Iterator[None]:
    """Turn what the disk answers into one error that says what to do."""
    cure = "Free some space (`leukemia-dl cache clear`), or set LEUKEMIA_DL_CACHE to a folder on another disk"
    try:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
        if free < needed:
            raise StoreError(
                f"The decoded pixels take {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left. {cure}."
            )
        yield
    except (ImageError, DataError, StoreError):
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
            for _ in range(0, length, 1 << 24):
                file.write(b"\0" * min(1 << 24, length - file.tell() + start))


def _fill(
    path: Path, dataset: Dataset, first: NDArray[np.int64], pipeline: Pipeline, show_progress: bool
) -> list[_Problem]:
    of_files = dataset.table["path"].notna().to_numpy(bool)[first]
    target = np.load(path, mmap_mode="r+")
    for place in np.flatnonzero(~of_files):
        image = dataset.decode(int(first[place]))
        if array_hash(image) != dataset.content_hashes[first[place]]:
            raise DataError("An array has changed since the data set was made of it. Make the data set again.")
        target[place] = _fitting(pipeline(image), target)
    target.flush()
    chunks = _chunks(dataset, first, np.flatnonzero(of_files))
    run = process_map if len(first) >= _FEW else parallel_map
    work, total = _Filling(str(path), pipeline), -(-int(of_files.sum()) // _CHUNK)
    done = run(work, chunks, f"Reading images, {_CHUNK} at a time", show=show_progress, total=total)
    return [problem for problems in done for problem in problems]


def _chunks(dataset: Dataset, rows: NDArray[np.int64], places: NDArray[np.int64]) -> Iterator[list[_Job]]:
    """Yield what there is to read, made as it is needed; a file that changed since it was hashed is an error."""
    paths = dataset.table["path"].to_numpy(dtype=object)
    for start in range(0, len(places), _CHUNK):
        chosen = rows[places[start : start + _CHUNK]]
        files = [str(paths[row]) for row in chosen]
        stamps = [stamp(file) for file in files]
        for file, row, content in zip(files, chosen, file_hashes(files, show=False), strict=True):
            if content != dataset.content_hashes[row]:
                raise DataError(f"{file} has changed since the data set was loaded. Load the data set again.")
        yield [(int(places[start + i]), *job) for i, job in enumerate(zip(files, stamps, strict=True))]


@dataclass(frozen=True)
class _Filling:
    """What a worker does with a chunk of files: it writes their pixels, and returns what went wrong where."""

    path: str
    pipeline: Pipeline

    def __call__(self, jobs: Sequence[_Job]) -> list[_Problem]:
        with _ONE_AT_A_TIME:
            target = np.load(self.path, mmap_mode="r+")
        problems = []
        for place, path, expected in jobs:
            try:
                target[place] = _fitting(self.pipeline.load(path), target)
                if stamp(path) != expected:
                    raise DataError(f"{path} changes while it is read. Wait until it is complete.")
            except DataError as error:
                problems.append((place, str(error)))
        return problems


def _fitting(image: NDArray[np.uint8], target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image that has the size that the pipeline promised; numpy would stretch one of a single pixel."""
    if image.shape != target.shape[1:]:
        raise SettingsError(
            f"The pipeline gives {image.shape} where {target.shape[1:]} is expected: a step after Resize changes the "
            "size. Let it say so by size_after(), or put it before."
        )
    return image


def _code(step: Step) -> str | None:
    """Return a digest of the code of a step that is not ours: an edited one makes other pixels under the same name."""
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


def _sync(folder: Path) -> None:
    """Let what was written reach the disk before the name does."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
