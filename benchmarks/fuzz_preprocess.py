"""Hostile files against the decoder and the pipeline: no crash, no hang, bounded memory.

    python benchmarks/fuzz_preprocess.py --inputs 100000

Each input is a valid file of some format (12-bit, 16-bit and multi-page TIFF and progressive JPEG among them), damaged
(bits flipped, cut off, header fields overwritten, two files spliced), a bomb (a header that promises far too many
pixels), a progressive JPEG whose scans are repeated, or noise. It must end in pixels or in an `ImageError` within two
seconds of processor time. Memory is the peak of this process above its start. Exit status 1 if any of that does not
hold.
"""

from __future__ import annotations

import argparse
import collections
import io
import logging
import resource
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from leukemia_dl.errors import ImageError
from leukemia_dl.preprocess import (
    CenterOnCanvas,
    CropToCell,
    Macenko,
    PadToSquare,
    Pipeline,
    Reinhard,
    Resize,
    decode_image,
    measure_quality,
)

SLOWEST_SECONDS = 2.0
MOST_MEMORY_MB = 1_000  # 20 million pixels, in Pillow, in numpy and as a mask with its parts numbered
PIPELINES = (
    Pipeline((CenterOnCanvas(48), Resize(32))),
    Pipeline((CropToCell(), Resize(16))),
    Pipeline((PadToSquare(), Resize(24))),
    Pipeline((CenterOnCanvas(40), Reinhard((45.0, 25.0, -30.0), (12.0, 8.0, 6.0)), Resize(24, "bilinear"))),
    Pipeline(
        (
            CenterOnCanvas(64),
            Macenko(((0.65, 0.7, 0.29), (0.2, 0.9, 0.38)), (1.9, 1.0)),
        )
    ),
)


def seeds() -> list[bytes]:
    """Return one valid file per format, mode and compression."""
    rng = np.random.default_rng(0)
    rgb = np.zeros((40, 36, 3), np.uint8)
    rgb[8:30, 6:28] = rng.integers(40, 200, (22, 22, 3))
    picture = Image.fromarray(rgb)
    deep = Image.fromarray(rng.integers(0, 65536, (30, 30)).astype(np.uint16))
    alpha = picture.convert("RGBA")
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, rgb.shape[:2], dtype=np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    variants: list[tuple[Image.Image, str, dict[str, object]]] = [
        *((picture.convert(mode), "BMP", {}) for mode in ("RGB", "RGBA", "L", "P", "1")),
        *((image, "PNG", {}) for image in (picture, alpha, picture.convert("P"), picture.convert("LA"), deep)),
        *((picture, "TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        *((image, "TIFF", {}) for image in (deep, alpha, picture.convert("CMYK"), picture.convert("P"))),
        *((picture.convert(mode), "JPEG", {}) for mode in ("RGB", "L", "CMYK")),
        (picture, "JPEG", {"progressive": True, "exif": exif}),
        *((image, "WEBP", options) for image in (picture, alpha) for options in ({}, {"lossless": True})),
        (picture, "TIFF", {"save_all": True, "append_images": [deep, alpha]}),
        (deep, "TIFF", {"compression": "tiff_lzw", "tiffinfo": {262: 0}}),
        (deep, "TIFF", {"tiffinfo": {262: 0}}),
        (Image.fromarray(np.asarray(deep) // 16), "TIFF", {"tiffinfo": {281: 4095}}),
        (Image.fromarray(np.asarray(deep) // 16), "PNG", {}),
    ]
    files = []
    for image, format_, options in variants:
        buffer = io.BytesIO()
        image.save(buffer, format=format_, **options)
        files.append(buffer.getvalue())
    return [*files, *(twelve_bits(order, channels) for order in "<>" for channels in (1, 3))]


def twelve_bits(order: str, channels: int) -> bytes:
    """Return a TIFF of 30 x 30 pixels with 12-bit levels in 16 bits, and the tag that says so."""
    levels = np.random.default_rng(1).integers(0, 4096, (30, 30, channels)).astype(f"{order}u2").tobytes()
    tags = {256: 30, 257: 30, 258: 16, 259: 1, 262: 1 + channels // 3, 273: 8, 277: channels, 278: 30}
    tags |= {279: len(levels), 281: 4095}
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = struct.pack(order + "I", 8 + len(levels))
    return (b"II*\0" if order == "<" else b"MM\0*") + start + levels + struct.pack(order + "H", len(tags)) + entries


def scans(rng: np.random.Generator) -> bytes:
    """Return a progressive JPEG of up to 1,500 pixels a side, some of whose scans come up to 3,000 times."""
    buffer = io.BytesIO()
    width, height = (int(side) for side in 10 ** rng.uniform(0.5, 3.2, 2))
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    mode = str(rng.choice(["RGB", "L", "CMYK"]))
    small.resize((width, height)).convert(mode).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    starts = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    first = starts[int(rng.integers(len(starts)))]
    again = data[first : first + min(len(data) - 2 - first, 20_000)]
    return data[:-2] + again * int(10 ** rng.uniform(0, 3.5) if len(again) < 2_000 else 20) + data[-2:]


def bombs() -> list[bytes]:
    """Return small files whose headers promise gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    files = []
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (7_100, 7_100), (100_000, 600)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        packed = chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000))
        files.append(b"\x89PNG\r\n\x1a\n" + header + packed + chunk(b"IEND", b""))
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        files.append(b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info)
        tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height), (279, width))
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        files.append(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4)
    return files


def damage(rng: np.random.Generator, files: list[bytes], hostile: list[bytes]) -> tuple[str, bytes]:
    """Return what was done, and the bytes."""
    kinds = ["flips", "cut", "header", "splice", "bomb", "noise", "scans"]
    kind = str(rng.choice(kinds, p=[0.34, 0.2, 0.25, 0.1, 0.05, 0.05, 0.01]))
    if kind == "scans":
        return kind, scans(rng)
    if kind == "bomb":
        data = bytearray(hostile[rng.integers(len(hostile))])
        if rng.random() < 0.5:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        return kind, bytes(data)
    if kind == "noise":
        return kind, files[rng.integers(len(files))][:4] + rng.bytes(int(rng.integers(0, 400)))
    data = bytearray(files[rng.integers(len(files))])
    if kind == "flips":
        for place in rng.integers(0, len(data), int(rng.integers(1, 12))):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[int(rng.integers(0, len(data))) :]
    elif kind == "header":
        place = int(rng.integers(0, min(len(data) - 4, 120)))
        value = int(rng.choice([0, 1, 255, 65535, 2**31 - 1, 2**32 - 1, int(rng.integers(2**32))]))
        data[place : place + 4] = struct.pack(str(rng.choice(["<I", ">I"])), value)
    else:
        other = files[rng.integers(len(files))]
        data = data[: int(rng.integers(len(data)))] + bytearray(other[int(rng.integers(len(other))) :])
    return kind, bytes(data)


def fuzz(inputs: int, seed: int = 0, tell: Callable[[int], None] = lambda done: None) -> dict[str, object]:
    """Return counts per outcome, unexpected exceptions, the slowest input in seconds, and memory in MB."""
    rng = np.random.default_rng(seed)
    files, hostile = seeds(), bombs()
    counts: collections.Counter[str] = collections.Counter()
    crashes: list[str] = []
    slowest, slow = 0.0, ""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(inputs):
        kind, data = damage(rng, files, hostile)
        pipeline = PIPELINES[number % len(PIPELINES)]
        started = time.process_time()
        outcome = "pixels"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = decode_image(data)
                result = pipeline(image)
                measure_quality(result)
            if result.dtype != np.uint8 or result.ndim != 3 or result.shape[2] != 3:
                crashes.append(f"{kind}: {result.dtype} {result.shape}")
        except ImageError:
            outcome = "ImageError"
        except Exception as error:
            outcome = "crash"
            crashes.append(f"{kind}: {type(error).__name__}: {error} ({data[:200].hex()})")
        seconds = time.process_time() - started
        if seconds > slowest:
            slowest, slow = seconds, f"{kind}, {outcome}, pipeline {number % len(PIPELINES)}, {data[:40].hex()}"
        counts[f"{kind}: {outcome}"] += 1
        tell(number + 1)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "counts": dict(sorted(counts.items())),
        "crashes": crashes,
        "slowest": slowest,
        "slow": slow,
        "memory_mb": memory,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("leukemia_dl").setLevel(logging.ERROR)
    started = time.monotonic()

    def tell(done: int) -> None:
        if done % 10_000 == 0:
            print(f"{done:,} of {options.inputs:,}, {time.monotonic() - started:.0f} s", file=sys.stderr)

    found = fuzz(options.inputs, options.seed, tell)
    print(f"{options.inputs:,} inputs, seed {options.seed}, in {time.monotonic() - started:.0f} s")
    for name, count in found["counts"].items():
        print(f"  {name:<22}{count:>9,}")
    print(f"crashes            {len(found['crashes'])}")
    print(f"slowest {found['slowest']:.3f} s of processor time (at most {SLOWEST_SECONDS:g}): {found['slow']}")
    print(f"peak memory above the start {found['memory_mb']:.0f} MB (at most {MOST_MEMORY_MB:,})")
    for crash in found["crashes"][:10]:
        print(f"  {crash}")
    fine = not found["crashes"] and found["slowest"] <= SLOWEST_SECONDS and found["memory_mb"] <= MOST_MEMORY_MB
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
