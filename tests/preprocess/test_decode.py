"""Decoding: every mode comes out as RGB with the right values, every bad file as one error that names it."""

import io
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from leukemia_dl.errors import ImageError
from leukemia_dl.preprocess import IMAGE_SUFFIXES, MAX_PIXELS, decode_image
from leukemia_dl.preprocess import decode as decoding
from leukemia_dl.preprocess.decode import is_system_file

IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def a_photo(height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("format", "options"),
    [("WEBP", {"lossless": True}), ("BMP", {}), ("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
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


def tiff(levels: np.ndarray, order: str = "<", packed: bytes | None = None, **tags: int | list[int]) -> bytes:
    """Return an uncompressed TIFF of one strip, written by hand; `tags` are t<number>=value."""
    height, width = levels.shape[:2]
    channels = levels.shape[2] if levels.ndim == 3 else 1
    body = levels.astype(f"{order}u2").tobytes() if packed is None else packed
    values = {256: width, 257: height, 258: [16] * channels, 259: 1, 262: 1 if channels == 1 else 2, 273: 8}
    values |= {277: channels, 278: height, 279: len(body)} | {int(name[1:]): value for name, value in tags.items()}
    entries, more, start = b"", b"", 8 + len(body)
    for tag, value in sorted(values.items()):
        several = value if isinstance(value, list) else [value]
        kind = 4 if max(several) > 65_535 else 3
        raw = b"".join(struct.pack(order + ("I" if kind == 4 else "H"), one) for one in several)
        if len(raw) > 4:
            raw, more = struct.pack(order + "I", start + len(more)), more + raw
        entries += struct.pack(order + "HHI", tag, kind, len(several)) + raw.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start + len(more))
    return head + body + more + struct.pack(order + "H", len(values)) + entries + b"\0" * 4


TWELVE = np.array([[0, 1, 8, 9], [2048, 3000, 4094, 4095]], np.uint16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tags", [{"t281": 4095}, {"t281": [4095], "t280": [0]}, {"t341": 4095}])
def test_12_bit_levels_are_scaled_by_the_range_that_a_tag_states(order: str, tags: dict) -> None:
    """20.20: 12-bit levels in a 16-bit TIFF came out nearly black, also where a tag states the range."""
    expected = np.rint(TWELVE / 4095 * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(tiff(TWELVE, order, **tags))[:, :, 1], expected)
    colour = np.stack([TWELVE, TWELVE[::-1], TWELVE // 2], axis=2)
    wanted = np.rint(colour / 4095 * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(tiff(colour, order, **tags)), wanted)


def test_12_bit_levels_with_an_alpha_channel_are_refused() -> None:
    """20.20: the tag was ignored in RGBA images, and they came out black."""
    levels = np.stack([TWELVE, TWELVE, TWELVE, np.full_like(TWELVE, 4095)], axis=2)
    with pytest.raises(ImageError, match="more than three channels: save RGB"):
        decode_image(tiff(levels, t281=4095, t338=2))


def test_packed_12_bit_levels_are_scaled() -> None:
    """20.20: a TIFF with BitsPerSample=12, two levels in three bytes, came out nearly black."""
    pairs = TWELVE.reshape(-1, 2).astype(int)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    expected = np.rint(TWELVE / 4095 * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(tiff(TWELVE, packed=packed, t258=12))[:, :, 0], expected)


def test_a_tag_that_states_no_depth_or_is_wrong_is_not_used() -> None:
    """20.20: the largest level of one image is no range: two images would get two scales."""
    for value in (4000, 255, 65_535):
        assert decode_image(tiff(TWELVE, t281=value)).max() == 16
    assert decode_image(tiff(TWELVE * 3, t281=4095)).max() == 48


def test_levels_in_the_lowest_sixteenth_are_said(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    """20.20: without a tag, nearly black images of 16 bits are named in a warning, once, then at level DEBUG."""
    for data, said in (
        (tiff(TWELVE), True),
        (tiff(np.stack([TWELVE] * 3, axis=2)), True),
        (encoded(Image.fromarray(TWELVE), "PNG"), True),
        (tiff(TWELVE + 1), False),
        (tiff(TWELVE * 0), False),
        (tiff(TWELVE, t281=4095), False),
    ):
        monkeypatch.setattr(decoding, "warned", set())
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "leukemia_dl"):
            decode_image(data)
            decode_image(data)
        levels = [record.levelname for record in caplog.records if "MaxSampleValue=4095" in record.message]
        assert levels == (["WARNING", "DEBUG"] if said else [])


def test_white_is_zero_of_16_bits() -> None:
    """20.20: a 16-bit TIFF whose tag says that white is zero came out inverted."""
    levels = np.array([[0, 257, 65_535, 30_000]], np.uint16)
    found = decode_image(tiff(levels, t262=0))[0, :, 0]
    assert found.tolist() == [255, 254, 0, 255 - round(30_000 / 257)]
    assert decode_image(tiff(TWELVE, t262=0, t281=4095))[0, 0, 0] == 255
    with pytest.raises(ImageError, match="or of a kind that cannot be read"):  # Pillow does not know it
        decode_image(tiff(levels, ">", t262=0))
    compressed = Image.fromarray(levels)
    compressed = encoded(compressed, "TIFF", compression="tiff_lzw", tiffinfo={262: 0})
    assert decode_image(compressed)[0, :, 0].tolist() == found.tolist()


def test_16_bit_channels_kept_apart_are_refused() -> None:
    """20.20: Pillow reads 16-bit planes that are not compressed as noise."""
    levels = np.random.default_rng(0).integers(0, 65_536, (4, 4, 3)).astype(np.uint16)
    planes = np.moveaxis(levels, 2, 0).astype("<u2").tobytes()
    data = tiff(levels, packed=planes, t284=2, t273=[8, 40, 72], t279=[32] * 3)
    with pytest.raises(ImageError, match="each 16-bit channel apart"):
        decode_image(data)


def progressive(side: int, extra: int) -> bytes:
    """Return a progressive JPEG whose last scan comes `extra` times more."""
    data = encoded(Image.new("RGB", (side, side), (90, 30, 120)), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * extra + data[-2:]


def test_progressive_jpegs_of_thousands_of_scans_are_refused() -> None:
    """20.37: a small JPEG of 3,000 scans hung the decoder for minutes."""
    bomb = progressive(4_400, 3_000)
    assert len(bomb) < 250_000
    with pytest.raises(ImageError, match=r"it has 3,010 scans or colour profiles, more than 500: save it anew"):
        decode_image(bomb)
    with pytest.raises(ImageError, match="it has 60 scans, too many for its size"):
        decode_image(progressive(4_400, 50))
    for fine in (progressive(4_400, 0), progressive(450, 100)):
        assert np.ptp(decode_image(fine), axis=(0, 1)).max() == 0


def test_files_that_make_the_decoder_work_again_and_again_are_refused() -> None:
    """20.37: siblings: a PNG of many colour profiles, a TIFF whose strips cover its pixels thousands of times."""
    png = encoded(Image.new("RGB", (4, 4)), "PNG")
    packed = b"a\0\0" + zlib.compress(b"\0" * 1_000_000)
    profile = struct.pack(">I", len(packed)) + b"iCCP" + packed + struct.pack(">I", zlib.crc32(b"iCCP" + packed))
    with pytest.raises(ImageError, match="900 scans or colour profiles"):
        decode_image(png[:33] + profile * 900 + png[33:])
    assert decode_image(png[:33] + profile + png[33:]).shape == (4, 4, 3)
    levels = np.zeros((40, 40), np.uint16)
    with pytest.raises(ImageError, match="20,000 strips or tiles, too many for its size"):
        decode_image(tiff(levels, t278=39, t273=[8] * 20_000, t279=[3_120] * 20_000))
    assert decode_image(tiff(levels, t278=20, t273=[8, 1_608], t279=[1_600] * 2)).shape == (40, 40, 3)


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
    with pytest.raises(
        ImageError, match=r"Cannot read the image .*UID_1_1_1_all\.bmp: it is damaged, cut off or too large \("
    ):
        decode_image(path)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_truncated_others(format: str) -> None:
    data = encoded(Image.fromarray(a_photo(64, 64)), format)
    with pytest.raises(ImageError, match="Cannot read the image <"):
        decode_image(data[: len(data) // 2])


def test_what_is_no_image_says_why(tmp_path: Path) -> None:
    text = tmp_path / "notes.bmp"
    text.write_text("not an image")
    cases = [
        (tmp_path / "gone.bmp", "there is no such file"),
        (tmp_path, "it is not a regular file"),
        (text, "it is none of BMP, PNG, TIFF, JPEG, WEBP"),
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
    with pytest.raises(ImageError, match=r"more than the 20,000,000|too large .*exceeds limit"):
        decode_image(header)
    assert limit == Image.MAX_IMAGE_PIXELS


@given(data=st.data(), format=st.sampled_from(["BMP", "PNG", "TIFF", "JPEG", "WEBP"]))
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


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".webp", ".WEBP", ".TIF"])
def test_suffixes_of_the_same_formats_are_read(tmp_path: Path, suffix: str) -> None:
    """20.17: other names for JPEG, and WebP, are images too, in upper and lower case."""
    assert suffix.lower() in IMAGE_SUFFIXES
    format = {".webp": "WEBP", ".tif": "TIFF"}.get(suffix.lower(), "JPEG")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(Image.fromarray(a_photo()), format))
    assert decode_image(path).shape == a_photo().shape


def test_a_large_webp_is_refused_from_its_header() -> None:
    """20.17: 34 bytes that claim 16,383 x 16,383 pixels."""
    size = 16_382
    bits = (0x2F | size << 8 | size << 22).to_bytes(5, "little")
    data = b"WEBPVP8L" + (22).to_bytes(4, "little") + bits + bytes(17)
    with pytest.raises(ImageError, match=r"more than the 20,000,000|too large .*exceeds limit"):
        decode_image(b"RIFF" + len(data).to_bytes(4, "little") + data)


def test_links_to_folders_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """20.17: images behind links to folders were left out without a word."""
    (tmp_path / "root" / "all").mkdir(parents=True)
    (tmp_path / "root" / "all" / "1.png").write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "all" / "pat7").symlink_to(tmp_path / "elsewhere")
    assert decoding.image_files(tmp_path / "root") == ["all/1.png"]
    assert "left out 1 link, such as 'pat7': links to folders are not followed" in caplog.text
