"""Image files to RGB arrays. A file is hostile until it is decoded: formats are listed, sizes bounded beforehand."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from leukemia_dl.errors import DataError, ImageError
from leukemia_dl.text import counted

__all__ = [
    "FORMATS", "IMAGE_SUFFIXES", "MAX_PIXELS", "check_image", "decode_image", "image_files", "is_system_file",
    "warn_left_out",
]  # fmt: skip

FORMATS = ("BMP", "PNG", "TIFF", "JPEG", "WEBP")
IMAGE_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"})
"""Suffixes, in lower case, of the files that the readers of `leukemia_dl.datasets` take for images."""
MAX_PIXELS = 20_000_000
"""Images with more pixels than this are refused before any of them is decoded."""

_SYSTEM_NAMES = frozenset({
    "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "__pycache__", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",
})  # fmt: skip
_DOCUMENTS = frozenset({
    ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".json", ".log", ".md", ".pdf", ".py", ".rst",
    ".toml", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml",
})  # fmt: skip
_MOST_BYTES = 16 * MAX_PIXELS
_MOST_SCANS, _MOST_REPEATS = 30, 500  # of a JPEG of `MAX_PIXELS`, and of a smaller one
_MOST_TILES, _MOST_LAYERS = 100_000, 5  # of a TIFF: a layer of tiles per channel
_DEEP = 0xFFFF
_DEPTHS = frozenset(2**bits - 1 for bits in range(9, 16))
_BLOCK = 1 << 20
"""Bytes that a decoder is given at a time. Pillow's 64 KiB make two threads wait for each other at every block."""
_log = logging.getLogger(__name__)
_warned: set[str] = set()  # a data set may have thousands of such files


def decode_image(source: str | Path | bytes) -> NDArray[np.uint8]:
    """Decode one image.

    Grey, palette and CMYK images become RGB, 16-bit ones are scaled (not clipped) to 8 bits, an alpha channel is laid
    over black (the background of segmented cells), an EXIF orientation is applied. The first of several frames counts.
    Levels of 9 to 15 bits in a 16-bit TIFF are scaled by the range that its tags state (4095 for 12 bits). Without such
    a tag, the first image in the lowest sixteenth of 16 bits is logged as a warning.

    Args:
        source: Path of a BMP, PNG, TIFF, JPEG or WebP file, or the bytes of one.

    Returns:
        uint8, (height, width, 3), RGB, 0..255; a new array that may be written to.

    Raises:
        ImageError: If the file is missing, has another format, more than `MAX_PIXELS` pixels or 320 MB, is cut off, or
            would take too long (a JPEG of thousands of scans, a TIFF whose strips overlap).
    """
    name = f"<{len(source):,} bytes>" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else _content(Path(source))
        # Scans of a JPEG, or colour profiles of a PNG: each takes time, even in a small file.
        marker = {b"\xff\xd8": b"\xff\xda", b"\x89P": b"iCCP"}.get(data[:2])
        repeats = data.count(marker) if marker else 0
        if repeats > _MOST_REPEATS:
            raise _Refused(f"it has {repeats:,} scans or colour profiles, more than {_MOST_REPEATS}: save it anew")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _bound_work(image, repeats)
            deep = image.format != "BMP" and any(part in str(image.tile) for part in (";16", ";12"))
            image.decodermaxblock = _BLOCK
            image.load()
            try:
                ImageOps.exif_transpose(image, in_place=True)  # in place: otherwise it copies an image that is upright
            except Exception as error:  # broken metadata do not make the pixels worse
                _log.info("Ignored the unreadable EXIF data of %s: %s", name, error)
            return _to_rgb(_to_8_bits(image, data, name) if deep else image)
    except _Refused as error:
        reason = str(error)
    except UnidentifiedImageError:
        reason = f"it is none of {', '.join(FORMATS)}, or of a kind that cannot be read"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"it has more than the {MAX_PIXELS:,} pixels allowed"
    except Exception as error:  # a damaged file makes Pillow's decoders raise about anything
        reason = f"it is damaged or cut off ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
    raise ImageError(f"Cannot read the image {name}: {reason}.")


def check_image(image: Any, batch: bool = False) -> NDArray[np.uint8]:
    """Return `image` if it is uint8 (height, width, 3), or with `batch` also (n, height, width, 3); else ImageError."""
    dtype: Any = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
    shape: tuple[int, ...] = image.shape if isinstance(image, np.ndarray) else ()
    if dtype != np.uint8 or len(shape) not in ((3, 4) if batch else (3,)) or shape[-1] != 3 or 0 in shape[-3:]:
        more = " or (n, height, width, 3)" if batch else ""
        raise ImageError(
            f"Expected a numpy array of dtype uint8 and shape (height, width, 3){more}, RGB 0..255. Received: {dtype} "
            f"{shape}. decode_image() returns one from a file."
        )
    return cast(NDArray[np.uint8], image)


class _Refused(Exception):
    """A file that is not decoded, for the reason in the text."""


def _content(path: Path) -> bytes:
    if not path.is_file():  # asked first, since reading a pipe or a device would wait for ever
        raise _Refused("it is not a regular file" if path.exists() else "there is no such file")
    if path.stat().st_size > _MOST_BYTES:
        raise _Refused(f"it has more than the {_MOST_BYTES // 10**6:,} MB allowed")
    return path.read_bytes()


def _bound_work(image: ImageFile.ImageFile, repeats: int) -> None:
    """Refuse images that take long to decode although their file is small, and images that Pillow misreads."""
    area, tiles, tags = image.width * image.height, list[Any](image.tile), getattr(image, "tag_v2", {})
    if area > MAX_PIXELS:
        size = f"{image.width:,} x {image.height:,}"
        raise _Refused(f"it has {size} pixels, more than the {MAX_PIXELS:,} allowed: cut it")
    if repeats * area > _MOST_SCANS * MAX_PIXELS:
        raise _Refused(f"it has {repeats:,} scans, too many for its size: save it anew")
    covered = sum((right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in tiles)
    if len(tiles) > _MOST_TILES or covered > _MOST_LAYERS * area:
        raise _Refused(f"it has {len(tiles):,} strips or tiles, too many for its size: save it anew")
    if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8 and tiles[0].codec_name == "raw":
        raise _Refused("it keeps each 16-bit channel apart, which Pillow misreads: save it with interleaved channels")


def _to_8_bits(image: Image.Image, data: bytes, name: str) -> Image.Image:
    """Return a 16-bit image as one of 8 bits: scaled by the range that its tags state, otherwise by all 16 bits."""
    tags = getattr(image, "tag_v2", {})
    stated = {2**bits - 1 for bits in tags.get(258, ())} | set(tags.get(281, ())) | set(tags.get(341, ()))
    top = int(max(stated & _DEPTHS, default=_DEEP))
    grey = image.mode.startswith("I;16")
    levels = np.asarray(image if grey else image.convert("RGB"))
    if not grey:  # Pillow gives only the upper bytes of coloured images
        levels = levels.astype(np.uint16) << 8
        levels |= _lower_bytes(data) if top < _DEEP and image.mode == "RGB" else 0
    largest = int(levels.max())
    if not grey and image.mode != "RGB" and top < _DEEP:
        raise _Refused("it has 16 bits per channel, a smaller range in its tags and more than three channels: save RGB")
    if largest > top or (not grey and tags.get(284) == 2):
        top = _DEEP
    if top == _DEEP and 0 < largest <= _DEEP // 16:
        _log.log(
            logging.DEBUG if _warned else logging.WARNING,
            "%s has 16 bits per channel and no level above %d of 65,535, as 12-bit cameras write: it comes out nearly "
            "black. Save it with 8 bits, or as TIFF with the tag MaxSampleValue=4095. Further ones: at level DEBUG.",
            name, largest,
        )  # fmt: skip
        _warned.add("dark")
    if not grey and top == _DEEP:
        return image
    scaled = (np.minimum(np.arange(_DEEP + 1), top) * 255 + top // 2) // top
    if grey and tags.get(262) == 0:  # white is zero; Pillow inverts images of 8 bits itself
        scaled = 255 - scaled
    return Image.fromarray(scaled.astype(np.uint8)[levels])


def _lower_bytes(data: bytes) -> NDArray[np.uint8]:
    """Return the lower bytes of 16-bit RGB samples: Pillow returns them if the byte order is swapped."""
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        tiles: list[Any] = image.tile
        image.tile = [t._replace(args=(t.args[0][:-1] + other[t.args[0][-1]], *t.args[1:])) for t in tiles]
        image.load()
        return np.asarray(image)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("I", "F", "I;32L", "I;32B", "F;32F"):
        raise _Refused("it has 32 bits per pixel in one channel: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def is_system_file(path: str | Path) -> bool:
    """Return whether the last part of a path starts with a dot, or is a name that operating systems make."""
    name = os.path.basename(path).lower()  # noqa: PTH119 - faster, and called for a hundred thousand files
    return name.startswith(".") or name in _SYSTEM_NAMES


def image_files(root: Path, follow: bool = False) -> list[str]:
    """Return the images below a folder, by their suffix, as paths relative to it with `/`, in order.

    A warning counts other files but documents and those of systems, since they may be images too, and links to folders,
    unless these are to be followed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot list the folder {error.filename}: {error.strerror}. Check its permissions.") from error

    images, others, links, seen = list[str](), list[str](), list[str](), set[str]()
    # Path.walk takes seconds for a hundred thousand files.
    for parent, inner, names in os.walk(root, onerror=refuse, followlinks=follow):
        if follow and (real := os.path.realpath(parent)) in seen:  # links lead round in a circle
            inner.clear()
            continue
        if follow:
            seen.add(real)
        inner[:] = sorted(name for name in inner if not is_system_file(name))
        links += [name for name in inner if not follow and os.path.islink(f"{parent}/{name}")]  # noqa: PTH114
        below = parent.removeprefix(str(root)).replace(os.sep, "/").strip("/")
        for name in sorted(name for name in names if not is_system_file(name)):
            (images if _suffix(name) in IMAGE_SUFFIXES else others).append(f"{below}/{name}" if below else name)
    warn_left_out(root, others, f"only these suffixes are read: {', '.join(sorted(IMAGE_SUFFIXES))}")
    if links:
        _log.warning("%s: left out %s, such as %s; copy their images", root, counted(len(links), "link"), links[0])
    return images


def warn_left_out(root: Path, names: Sequence[str], why: str) -> None:
    """Log one warning of the files, except documents, that a reader leaves out: how many of each suffix, and a name."""
    if names := [name for name in names if _suffix(name) not in _DOCUMENTS]:
        counts = Counter(_suffix(name) or "without a suffix" for name in names)
        kinds = ", ".join(f"{count:,} {ascii(kind)[1:-1]}" for kind, count in counts.most_common())
        _log.warning("%s: left out %s (%s; such as %r): %s", root, counted(len(names), "file"), kinds, names[0], why)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122
