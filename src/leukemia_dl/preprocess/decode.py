"""Image files to RGB arrays. A file is hostile until it is decoded: formats are listed, sizes bounded beforehand."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from leukemia_dl.errors import ImageError

__all__ = ["FORMATS", "IMAGE_SUFFIXES", "MAX_PIXELS", "check_image", "decode_image", "is_system_file"]

FORMATS = ("BMP", "PNG", "TIFF", "JPEG")
IMAGE_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff", ".jpg", ".jpeg"})
"""Suffixes, in lower case, of the files that the readers of `leukemia_dl.datasets` take for images."""
MAX_PIXELS = 20_000_000
"""Images with more pixels than this are refused before any of them is decoded."""

_SYSTEM_NAMES = frozenset({
    "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "__pycache__", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",
})  # fmt: skip
_BLOCK = 1 << 20
"""Bytes that a decoder is given at a time. Pillow's 64 KiB make two threads wait for each other at every block."""
_MODES_16 = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_MODES_32 = frozenset({"I", "F", "I;32L", "I;32B", "F;32F"})
_log = logging.getLogger(__name__)


def decode_image(source: str | Path | bytes) -> NDArray[np.uint8]:
    """Decode one image.

    Grey and palette images become RGB, 16-bit ones are scaled (not clipped) to 8 bits, an alpha channel is laid over
    black (the background of segmented cells), CMYK is converted and an EXIF orientation applied. Of a file with
    several frames the first is taken.

    Args:
        source: Path of a BMP, PNG, TIFF or JPEG file, or the bytes of one.

    Returns:
        uint8, (height, width, 3), RGB, 0..255; a new array that may be written to.

    Raises:
        ImageError: If the file is missing, is a folder, has another format, more than `MAX_PIXELS` pixels, is cut off
            or cannot be decoded. The message names the file and the reason.
    """
    return writable(decode_shared(source))


def is_system_file(path: str | Path) -> bool:
    """Return whether a file or folder is hidden or made by an operating system, by the last part of its path.

    Names that start with a dot are hidden; `@eaDir`, `#recycle`, `$RECYCLE.BIN`, `__MACOSX` and `Thumbs.db` are made by
    systems, in upper or lower case.
    """
    name = os.path.basename(path).lower()  # noqa: PTH119 - called for a hundred thousand files
    return name.startswith(".") or name in _SYSTEM_NAMES


def writable(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the array, or a copy of one that is read-only."""
    return array if array.flags.writeable else array.copy()


def decode_shared(source: str | Path | bytes) -> NDArray[np.uint8]:
    """Do what `decode_image` does, without the last copy: the array may be read-only."""
    name = f"<{len(source):,} bytes>" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(_opened(source), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _Refused(f"it has {width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} allowed: cut it")
            image.decodermaxblock = _BLOCK
            image.load()
            _orient(image, name)
            return _to_rgb(image)
    except _Refused as error:
        reason = str(error)
        cause: Exception | None = None
    except UnidentifiedImageError as error:
        reason, cause = f"it is none of {', '.join(FORMATS)}", error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason, cause = f"it has more than the {MAX_PIXELS:,} pixels allowed", error
    except Exception as error:  # a damaged file makes Pillow's decoders raise about anything
        reason, cause = f"it is damaged or cut off ({_first_line(error)})", error
    raise ImageError(f"Cannot read the image {name}: {reason}.") from cause


def check_image(image: Any, batch: bool = False) -> NDArray[np.uint8]:
    """Return `image` if it is uint8 (height, width, 3), or with `batch` also (n, height, width, 3).

    Raises:
        ImageError: If it is something else or has no pixels.
    """
    allowed = (3, 4) if batch else (3,)
    if not isinstance(image, np.ndarray):
        came = type(image).__name__
    elif image.dtype != np.uint8 or image.ndim not in allowed or image.shape[-1] != 3 or 0 in image.shape[-3:]:
        came = f"{image.dtype} {image.shape}"
    else:
        return image
    more = " or (n, height, width, 3)" if batch else ""
    raise ImageError(
        f"Expected a numpy array of dtype uint8 and shape (height, width, 3){more}, RGB 0..255. Received: {came}. "
        "decode_image() returns one from a file."
    )


class _Refused(Exception):
    """Why we do not even try."""


def _opened(source: str | Path | bytes) -> Path | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    path = Path(source)
    if not path.is_file():
        # Asked first, since opening a pipe or a device would wait for ever.
        if path.is_dir():
            raise _Refused("it is a folder, not a file")
        raise _Refused("it is not a regular file" if path.exists() else "there is no such file")
    return path


def _orient(image: Image.Image, name: str) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)  # in place: otherwise it copies an image that is upright
    except Exception as error:  # broken metadata do not make the pixels worse
        _log.info("Ignored the unreadable EXIF data of %s: %s", name, error)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _MODES_32:
        raise _Refused("it has 32 bits per pixel in one channel: convert it to 8 or 16 bits")
    if image.mode in _MODES_16:
        grey = np.asarray(image).astype(np.uint32)
        scaled = ((grey + 128) // 257).astype(np.uint8)
        return np.repeat(scaled[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
