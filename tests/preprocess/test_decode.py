"""Decoding: every mode comes out as RGB with the right values, every bad file as one error that names it."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from leukemia_dl.errors import ImageError
from leukemia_dl.preprocess import IMAGE_SUFFIXES, MAX_PIXELS, decode_image
from leukemia_dl.preprocess.decode import is_system_file

IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def a_photo(height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("format", "options"), [("BMP", {}), ("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]
)
@given(pixels=IMAGES)
def test_lossless_files_give_the_pixels_back(format: str, options: dict, pixels: np.ndarray) -> None:
    decoded = decode_image(encoded(Image.fromarray(pixels), format, **options))
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, pixels)


def test_path_str_and_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "cell.bmp"
    path.write_bytes(encoded(Image.fromarray(a_photo()), "BMP"))
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(decode_image(source), a_photo())


def test_jpeg_stays_close() -> None:
    smooth = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (1, 64, 3))
    decoded = decode_image(encoded(Image.fromarray(smooth), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - smooth).max() <= 4


def test_grey_bilevel_and_palette() -> None:
    grey = a_photo()[:, :, 0]
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=2))
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert decode_image(encoded(bits, "PNG"))[:, :, 1].tolist() == [[0, 255], [255, 0]]
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 200, 0, 100, 1, 2, 3])
    for format in ("BMP", "PNG", "TIFF"):
        assert decode_image(encoded(palette, format))[0, 1].tolist() == [200, 0, 100], format


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_is_scaled_not_clipped(format: str) -> None:
    levels = np.array([[0, 255, 256, 257], [32_768, 40_000, 65_279, 65_535]], np.uint16)
    decoded = decode_image(encoded(Image.fromarray(levels), format))
    np.testing.assert_array_equal(decoded[:, :, 0], np.rint(levels / 257).astype(np.uint8))
    assert decoded[0, 0].tolist() == [0, 0, 0]
    assert decoded[1, 3].tolist() == [255, 255, 255]


def test_32_bit_is_refused_since_its_range_is_unknown() -> None:
    data = encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(ImageError, match="32 bits per pixel in one channel: convert it"):
        decode_image(data)


def test_alpha_lies_over_black() -> None:
    rgba = np.full((1, 3, 4), 200, np.uint8)
    rgba[0, :, 3] = (0, 128, 255)
    decoded = decode_image(encoded(Image.fromarray(rgba), "PNG"))
    assert decoded[0, 0].tolist() == [0, 0, 0]
    assert abs(int(decoded[0, 1, 0]) - 100) <= 1
    assert decoded[0, 2].tolist() == [200, 200, 200]


def test_transparent_palette_entry_becomes_black() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([255, 255, 255, 9, 8, 7])
    assert decode_image(encoded(palette, "PNG", transparency=0))[0].tolist() == [[0, 0, 0], [9, 8, 7]]


def test_cmyk() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    colour = decode_image(encoded(red, "JPEG", quality=100))[8, 8]
    assert colour[0] > 240
    assert colour[1:].max() < 15


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(format: str) -> None:
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    decoded = decode_image(encoded(image, format, exif=exif))
    assert decoded.shape == (16, 8, 3)
    assert decoded[:7].min() > 240
    assert decoded[9:].max() < 15


def test_first_frame_of_several() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


def test_truncated_bmp_is_named(tmp_path: Path) -> None:
    path = tmp_path / "UID_1_1_1_all.bmp"
    path.write_bytes(encoded(Image.fromarray(a_photo(40, 40)), "BMP")[:2000])
    with pytest.raises(ImageError, match=r"Cannot read the image .*UID_1_1_1_all\.bmp: it is damaged or cut off \("):
        decode_image(path)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_truncated_others(format: str) -> None:
    data = encoded(Image.fromarray(a_photo(64, 64)), format)
    with pytest.raises(ImageError, match="Cannot read the image <"):
        decode_image(data[: len(data) // 2])


def test_what_is_no_image_says_why(tmp_path: Path) -> None:
    text = tmp_path / "notes.bmp"
    text.write_text("not an image")
    cases = [
        (tmp_path / "gone.bmp", "there is no such file"),
        (tmp_path, "it is a folder, not a file"),
        (text, "it is none of BMP, PNG, TIFF, JPEG"),
        (b"", "it is none of BMP"),
        (encoded(Image.fromarray(a_photo()), "GIF"), "it is none of BMP"),
    ]
    for source, reason in cases:
        with pytest.raises(ImageError, match=reason):
            decode_image(source)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    os.mkfifo(tmp_path / "pipe.bmp")
    with pytest.raises(ImageError, match="not a regular file"):
        decode_image(tmp_path / "pipe.bmp")


@pytest.mark.parametrize("side", [4_473, 15_000, 60_000])
def test_bombs_are_refused_by_their_header(side: int) -> None:
    """A BMP of 54 bytes that claims to be huge; from 15,000 on, Pillow's own check speaks up too."""
    assert side * side > MAX_PIXELS
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="more than the 20,000,000"):
        decode_image(header)
    assert limit == Image.MAX_IMAGE_PIXELS


@given(data=st.data(), format=st.sampled_from(["BMP", "PNG", "TIFF", "JPEG"]))
def test_damaged_bytes_give_an_image_or_our_error(data: st.DataObject, format: str) -> None:
    damaged = bytearray(encoded(Image.fromarray(a_photo(16, 16)), format))
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=6)):
        damaged[position] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
    except ImageError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3


def test_real_files_decode(c_nmc_sample: Path, aria_sample: Path, wbc_sample: Path) -> None:
    files = (
        sorted(c_nmc_sample.rglob("*.bmp")) + sorted(aria_sample.rglob("*.jpg"))[::40] + sorted(wbc_sample.glob("*"))
    )
    images = [path for path in files if path.suffix in IMAGE_SUFFIXES]
    assert len(images) > 300
    shapes = {decode_image(path).shape for path in images}
    assert {(450, 450, 3), (600, 600, 3), (224, 224, 3), (120, 120, 3)} <= shapes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(name, True) for name in ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".ipynb_checkpoints", "._a.png")],
        *[(name, True) for name in ("Thumbs.db", "data/THUMBS.DB", "System Volume Information", Path("x/.hidden/.a"))],
        *[(name, False) for name in ("a.png", ".hidden/a.png", Path("@eaDir/a.png"), "recycle", "MACOSX")],
    ],
)
def test_hidden_files_and_those_of_systems_are_known_by_their_name(name: str | Path, expected: bool) -> None:
    """20.18: only the last part of a path counts, since callers leave out whole folders on their way."""
    assert is_system_file(name) is expected
