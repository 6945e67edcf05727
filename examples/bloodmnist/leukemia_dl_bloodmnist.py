"""BloodMNIST (MedMNIST v2) for leukemia_dl: blood cells of eight classes in one npz file, with the authors' sides.

The file holds `train_images`, `train_labels` and the same for `val` and `test`: uint8 images (n, size, size, 3) and
labels (n, 1). A file from the internet is hostile until it is read: nothing in it is unpickled, and what it claims to
hold is checked, from the few bytes of each array's header, before memory is taken for it.
"""

from __future__ import annotations

import logging
import math
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from leukemia_dl import Dataset, DatasetInfo, DatasetSource, hookimpl
from leukemia_dl.errors import DataError, SettingsError

CLASS_NAMES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
SIDES = ("train", "val", "test")
SIZES = (28, 64, 128, 224)
DECLARED = {"train": 11_959, "val": 1_712, "test": 3_421}
INFO = DatasetInfo(
    name="bloodmnist",
    title="BloodMNIST (MedMNIST v2)",
    licence="CC BY 4.0",
    citation=(
        "Yang, J., et al. (2023). MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image "
        "classification. Scientific Data, 10, 41. https://doi.org/10.1038/s41597-022-01721-8; and, for the images, "
        "Acevedo, A., et al. (2020). A dataset of microscopic peripheral blood cell images for development of "
        "automatic recognition systems. Data in Brief, 30, 105474."
    ),
    url="https://medmnist.com",
    class_names=CLASS_NAMES,
    declared=(("images", sum(DECLARED.values())), *DECLARED.items()),
)
_WANTED = "bloodmnist.npz, bloodmnist_64.npz, bloodmnist_128.npz or bloodmnist_224.npz from https://medmnist.com"
# What numpy and zipfile raise on a damaged file.
_DAMAGED = (OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
_FORM = "images (n, size, size, 3) and labels (n, 1)"
_log = logging.getLogger(__name__)


def read_bloodmnist(root: Path, size: int | str | None = None) -> Dataset:
    """Load BloodMNIST from its npz file.

    Args:
        root: The file, or the folder that holds it.
        size: Side of the images in pixels, 28, 64, 128 or 224; None for the one that is there. With 224 the images
            take 2.6 GB of memory.

    Returns:
        The data set; `sample` is like `train/00017`, `split` the authors' side, for protocol "fixed". `subject` is NA.

    Raises:
        SettingsError: If there is no such size.
        DataError: If the file is missing, no npz file, damaged, or holds something else.
    """
    if size is not None and (isinstance(size, bool) or str(size) not in map(str, SIZES)):
        raise SettingsError(f"size must be one of {', '.join(map(str, SIZES))}. Received: {size!r}.")
    path = _find(Path(root).expanduser().absolute(), None if size is None else int(size))
    try:
        with path.open("rb") as file:
            images, labels, counts = _read(path, file, None if size is None else int(size))
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(f"{path} cannot be read as an npz file: {error}. Wanted: {_WANTED}.") from error
    for side, count in counts.items():
        if count != DECLARED[side]:
            _log.info("%s: %d of the %d images of the side %s are there", path, count, DECLARED[side], side)
    return Dataset.from_arrays(
        images,
        labels,
        CLASS_NAMES,
        INFO,
        samples=[f"{side}/{i:05d}" for side, count in counts.items() for i in range(count)],
        splits=[side for side, count in counts.items() for _ in range(count)],
    )


def _find(root: Path, size: int | None) -> Path:
    """Return the npz file: the root itself, or the one in it that has the wanted size in its name."""
    if root.is_file():
        return root
    if not root.is_dir():
        raise DataError(f"There is no file or folder {root}. Wanted: {_WANTED}.")
    names = {side: "bloodmnist.npz" if side == SIZES[0] else f"bloodmnist_{side}.npz" for side in SIZES}
    found = [root / name for side, name in names.items() if size in (None, side) and (root / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{root} holds {', '.join(path.name for path in found)}: pass size=28 or another of them.")
    if not found:
        wanted = _WANTED if size is None else names[size]
        raise DataError(f"{root} does not hold {wanted}.")
    return found[0]


def _read(
    path: Path, file: IO[bytes], size: int | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], dict[str, int]]:
    """Return images uint8 (n, size, size, 3), labels int64 (n,) and how many there are per side."""
    with zipfile.ZipFile(file) as archive:
        shapes = {key: _shape(path, archive, key) for side in SIDES for key in (f"{side}_images", f"{side}_labels")}
    counts = {side: shapes[f"{side}_images"][0] for side in SIDES}
    pixels = shapes["train_images"][1:]
    for side, count in counts.items():
        shape = shapes[f"{side}_images"]
        if not 1 <= count <= DECLARED[side] or shape[1:] not in [(s, s, 3) for s in SIZES] or shape[1:] != pixels:
            raise DataError(
                f"{path}: {side}_images must be (n, size, size, 3), with n from 1 to {DECLARED[side]:,} and one size "
                f"of {', '.join(map(str, SIZES))} for all sides. Received: {shape}."
            )
        if shapes[f"{side}_labels"] != (count, 1):
            raise DataError(
                f"{path}: {side}_labels must be ({count}, 1), one class per image. "
                f"Received: {shapes[f'{side}_labels']}."
            )
    if size not in (None, pixels[0]):
        raise DataError(f"{path} holds images of {pixels[0]} pixels, and size is {size}. Leave size out.")
    images = np.empty((sum(counts.values()), *pixels), np.uint8)
    labels = np.empty(len(images), np.int64)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        start = 0
        for side, count in counts.items():
            # With the suffix: without it, numpy would prefer a member "train_images" that nobody has checked.
            images[start : start + count] = arrays[f"{side}_images.npy"]
            labels[start : start + count] = arrays[f"{side}_labels.npy"][:, 0]
            start += count
    if not 0 <= labels.min() <= labels.max() < len(CLASS_NAMES):
        raise DataError(
            f"{path}: labels must be from 0 to {len(CLASS_NAMES) - 1}. Received: {labels.min()} to {labels.max()}."
        )
    return images, labels, counts


def _shape(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[int, ...]:
    """Return the shape that a member claims, if its type is allowed and it is just as long as it has to be."""
    try:
        member = archive.getinfo(f"{key}.npy")
    except KeyError:
        there = ", ".join(archive.namelist()[:8]) or "nothing"
        raise DataError(f"{path} has no {key}. Found in it: {there}. Wanted: {_WANTED}.") from None
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {key} is compressed in a way that numpy does not write. Wanted: {_WANTED}.")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version != (1, 0):  # what numpy writes for plain arrays; a header of later ones may take gigabytes
            raise DataError(f"{path}: {key} has the format version {version}, not (1, 0). Wanted: {_WANTED}.")
        # A plain array's header is shorter; one made to be long can exhaust the parser that numpy reads it with.
        try:
            shape, _, dtype = npy.read_array_header_1_0(stream, max_header_size=500)
        except Exception as error:  # the header is parsed as Python, and each part of that parser has its own errors
            raise DataError(f"{path}: the header of {key} cannot be read: {error}. Wanted: {_WANTED}.") from error
        header = stream.tell()
    # Objects are refused here too: they would have to be unpickled, which can run anything.
    if dtype.hasobject or (dtype != np.uint8 if key.endswith("images") else dtype.kind not in "iu"):
        wanted = "uint8" if key.endswith("images") else "whole numbers"
        raise DataError(f"{path}: {key} must be {wanted}. Received: {dtype}. Wanted: {_WANTED}.")
    if member.file_size != header + math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path}: {key} claims the shape {shape}, which its {member.file_size:,} bytes do not hold.")
    if len(shape) != (4 if key.endswith("images") else 2):
        raise DataError(f"{path}: {key} must be {_FORM}. Received: {shape}.")
    return tuple(shape)


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source. leukemia_dl calls this for each look-up, so nothing is read here."""
    options = {"size": "28, 64, 128 or 224 pixels, where several files are there"}
    yield DatasetSource("bloodmnist", read_bloodmnist, INFO, options=options)
