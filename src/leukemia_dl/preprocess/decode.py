"""Image files to RGB arrays. A file is hostile until it is decoded: formats are listed, sizes bounded beforehand."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from leukemia_dl.errors import DataError, ImageError
from leukemia_dl.text import counted

FORMATS = ("BMP", "PNG", "TIFF", "JPEG", "WEBP")
IMAGE_SUFFIXES = frozenset({".bmp", ".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"})
"""Suffixes, in lower case, of the files that the readers of `leukemia_dl.datasets` take for images."""
MAX_PIXELS = 20_000_000
"""Images with more pixels than this are refused before any of them is decoded."""
_SYSTEM_NAMES = {
    "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "__pycache__", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip
_DOCUMENTS = {".csv", ".db", ".docx", ".html", ".ini", ".json", ".log", ".md", ".pdf", ".py", ".txt", ".xlsx", ".xml"}
_MOST_BYTES = 16 * MAX_PIXELS
_MOST_SCANS, _MOST_REPEATS = 30, 500  # of a JPEG of `MAX_PIXELS`, and of a smaller one
_MOST_TILES, _MOST_LAYERS = 100_000, 5  # of a TIFF: a layer of tiles per channel
_DEEP, _DEPTHS = 0xFFFF, frozenset(2**bits - 1 for bits in range(9, 16))
_BLOCK = 1 << 20  # bytes per call of a decoder: with Pillow's 64 KiB, threads wait for each other at every block
_log = logging.getLogger(__name__)
warned: set[str] = set()


def warn_once(kind: str, text: str) -> None:
    """Log the first text of a kind as a warning, further ones at level DEBUG: there may be thousands."""
    _log.log(logging.DEBUG if kind in warned else logging.WARNING, "%s", text)
    warned.add(kind)


def decode_image(source: str | Path | bytes) -> NDArray[np.uint8]:
    """Return the RGB pixels 0..255 of an image, uint8 (height, width, 3), a new array that may be written to.

    Grey, palette and CMYK images become RGB, 16-bit ones are scaled (not clipped) to 8 bits, an alpha channel is laid
    over black (the background of segmented cells), an EXIF orientation is applied. The first of several frames counts.

    `source` is the path of a BMP, PNG, TIFF, JPEG or WebP file, or the bytes of one. Raises ImageError if it is missing
    or damaged, has another format, more than `MAX_PIXELS` pixels or 320 MB, or would take too long (a JPEG of thousands
    of scans, a TIFF whose strips overlap).
    """
    name = f"<{len(source):,} bytes>" if isinstance(source, bytes) else str(source)
    try:
        if not isinstance(source, bytes):
            path = Path(source)
            if not path.is_file():  # asked first, since reading a pipe or a device would wait for ever
                raise _Refused("it is not a regular file" if path.exists() else "there is no such file")
            if path.stat().st_size > _MOST_BYTES:
                raise _Refused(f"it has more than the {_MOST_BYTES // 10**6:,} MB allowed")
        data = source if isinstance(source, bytes) else path.read_bytes()
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
            with contextlib.suppress(Exception):  # broken metadata do not make the pixels worse
                ImageOps.exif_transpose(image, in_place=True)  # in place: otherwise it copies an image that is upright
            return _to_rgb(_to_8_bits(image, data, name) if deep else image)
    except _Refused as error:
        reason = str(error)
    except UnidentifiedImageError:
        reason = f"it is none of {', '.join(FORMATS)}, or of a kind that cannot be read"
    except Exception as error:  # a damaged file makes Pillow's decoders raise about anything
        reason = f"it is damaged, cut off or too large ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
    raise ImageError(f"Cannot read the image {name}: {reason}.")


def check_image(image: Any, batch: bool = False) -> NDArray[np.uint8]:
    """Return `image` if it is uint8 (height, width, 3), or with `batch` also (n, height, width, 3); else ImageError."""
    dtype: Any = getattr(image, "dtype", type(image).__name__)
    shape: tuple[int, ...] = getattr(image, "shape", ())
    if dtype != np.uint8 or len(shape) not in ((3, 4) if batch else (3,)) or shape[-1] != 3 or 0 in shape[-3:]:
        wanted = f"uint8 and shape (height, width, 3){' or (n, height, width, 3)' if batch else ''}"
        given = f"Received: {dtype} {shape}. decode_image() returns one from a file."
        raise ImageError(f"Expected a numpy array of dtype {wanted}, RGB 0..255. {given}")
    return cast(NDArray[np.uint8], image)


class _Refused(Exception):
    """A file that is not decoded, for the reason in the text."""


def _bound_work(image: ImageFile.ImageFile, repeats: int) -> None:
    """Refuse images that take long to decode although their file is small, and images that Pillow misreads."""
    area, tiles, tags = image.width * image.height, list[Any](image.tile), getattr(image, "tag_v2", {})
    covered = sum((right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in tiles)
    if area > MAX_PIXELS:
        raise _Refused(f"it has {area:,} pixels, more than the {MAX_PIXELS:,} allowed: cut it")
    if repeats * area > _MOST_SCANS * MAX_PIXELS:
        raise _Refused(f"it has {repeats:,} scans, too many for its size: save it anew")
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
        dark = f"has 16 bits per channel and no level above {largest} of 65,535, as 12-bit cameras write"
        cure = "Save it with 8 bits, or as TIFF with the tag MaxSampleValue=4095. Further ones: at level DEBUG."
        warn_once("dark", f"{name} {dark}: it comes out nearly black. {cure}")
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
    return name in _SYSTEM_NAMES or name.startswith(".")


def image_files(root: Path, follow: bool = False) -> list[str]:
    """Return the images below a folder, by suffix, as relative paths with `/`, in order; warn of other files, links."""

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot list the folder {error.filename}: {error.strerror}. Check its permissions.") from error

    found, links, seen = list[str](), list[str](), set[str]()
    # Path.walk takes seconds for a hundred thousand files.
    for parent, inner, names in os.walk(root, onerror=refuse, followlinks=follow):
        if (real := os.path.realpath(parent)) in seen:  # links lead round in a circle
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not is_system_file(name))
        links += [name for name in inner if not follow and os.path.islink(f"{parent}/{name}")]  # noqa: PTH114
        below = parent.removeprefix(str(root)).replace(os.sep, "/").strip("/")
        found += [f"{below}/{name}".lstrip("/") for name in sorted(names) if not is_system_file(name)]
    images = [name for name in found if PurePath(name).suffix.lower() in IMAGE_SUFFIXES]
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    warn_left_out(root, sorted(set(found) - set(images)), f"only these suffixes are read: {suffixes}")
    warn_left_out(root, links, "links to folders are not followed; copy their images", "link")
    return images


def warn_left_out(root: Path, names: Sequence[str], why: str, kind: str = "file") -> None:
    """Log one warning of the files, except documents, that a reader leaves out: their number, and a name."""
    if names := [name for name in names if PurePath(name).suffix.lower() not in _DOCUMENTS]:
        _log.warning("%s: left out %s, such as %r: %s", root, counted(len(names), kind), names[0], why)
