"""Preprocessing beside what a user would do otherwise: interleaved in one run, as ratios.

    python benchmarks/preprocess.py [--images FOLDER] [--rounds 21]

Images are 450 x 450 BMP files in C-NMC's layout, synthetic unless a folder is given. Each way is timed once per round,
all ways of a round in turn; a ratio is taken inside a round, and its median over the rounds is printed: many rounds,
since the speed of a shared machine changes within seconds. Ways that are not installed (torchstain,
opencv-python-headless) are left out. Linux only: the processes are kept to one and to two cores. On two cores ours and
Pillow are timed by two threads and by two processes (as `Dataset.pixel_store` reads from 1,000 images on), whose start
is not counted, as the building of TensorFlow's graph is not.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib import metadata, util
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from leukemia_dl.memory import keep_memory
from leukemia_dl.preprocess import Macenko, Pipeline, Reinhard, decode_image, foreground_pixels

SIZE = 224
OURS_BY_PROCESSES = "ours: default(224), by processes"
Way = Callable[[list[Path], int], None]


def threaded(one: Callable[[Path], object]) -> Way:
    def run(paths: list[Path], threads: int) -> None:
        if threads == 1:
            for path in paths:
                one(path)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(one, paths))

    return run


def by_processes(one: Callable[[Path], object]) -> Way:
    pools: dict[int, ProcessPoolExecutor] = {}

    def run(paths: list[Path], cores: int) -> None:
        pool = pools.setdefault(cores, ProcessPoolExecutor(cores, get_context("spawn"), keep_memory))
        list(pool.map(functools.partial(each, one), [paths[start::cores] for start in range(cores)]))

    return run


def each(one: Callable[[Path], object], paths: list[Path]) -> None:
    for path in paths:
        one(path)


def pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def pillow_gap(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS, reducing_gap=1.0))


def opencv_area(path: Path) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    return cv2.resize(cv2.imread(str(path))[..., ::-1], (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def tensorflow_antialiased(paths: list[Path], threads: int) -> None:
    for _ in tensorflow_dataset(tuple(paths), threads):
        pass


@functools.cache  # its graph is built once, and not counted
def tensorflow_dataset(paths: tuple[Path, ...], threads: int) -> Iterable[object]:
    import tensorflow as tf

    def load(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_bmp(tf.io.read_file(path), channels=3)
        return tf.cast(tf.image.resize(image, (SIZE, SIZE), "lanczos3", antialias=True), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    files = tf.data.Dataset.from_tensor_slices([str(path) for path in paths]).map(load, num_parallel_calls=threads)
    return files.with_options(options)


def reading(cores: int) -> dict[str, Way]:
    default = Pipeline.default(SIZE)
    ways = {"ours: Pipeline.default(224)": threaded(default.load), "ours: decode alone": threaded(decode_image)}
    ways |= {"Pillow lanczos": threaded(pillow), "Pillow lanczos, reducing_gap=1": threaded(pillow_gap)}
    if util.find_spec("cv2"):
        ways["OpenCV area"] = threaded(opencv_area)
    if util.find_spec("tensorflow"):
        ways["tf.image lanczos3, antialiased"] = tensorflow_antialiased
    if cores > 1:
        ways[OURS_BY_PROCESSES] = by_processes(default.load)
        ways["Pillow lanczos, gap=1, by processes"] = by_processes(pillow_gap)
    return ways


def rates(ways: dict[str, Way], paths: list[Path], threads: int, rounds: int) -> dict[str, list[float]]:
    """Return images per second per way and round; a first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way(paths, threads)
            if turn:
                found[name].append(len(paths) / (time.perf_counter() - started))
    return found


def reading_on(cores: int, paths: list[Path], rounds: int) -> dict[str, list[float]]:
    """Time the ways of `reading` in this process, which is kept to its first `cores` cores from now on."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # asked before TensorFlow counts the cores
    return rates(reading(cores), paths, cores, rounds)


def staining(paths: list[Path]) -> dict[str, dict[str, Way]]:
    """Return ours and torchstain's, for the same pixels: those of the cells, as one unmasked tile each."""
    cells = {path: decode_image(path) for path in paths}
    tiles = {}
    for path, image in cells.items():
        pixels = image[foreground_pixels(image)]
        side = int(len(pixels) ** 0.5)
        tiles[path] = pixels[: side * side].reshape(side, side, 3)
    whole = {path: np.ones(tile.shape[:2], bool) for path, tile in tiles.items()}
    target = tiles[paths[0]]
    pairs: dict[str, dict[str, Way]] = {}
    for step in (Reinhard(), Macenko()):
        fitted, name = step.fit(target, whole[paths[0]]), type(step).__name__
        ways: dict[str, Way] = {
            "ours, the cell's pixels": threaded(lambda p, f=fitted: f(tiles[p], whole[p])),
            "ours, masked, 450 x 450": threaded(lambda p, f=fitted: f(cells[p])),
        }
        if util.find_spec("torchstain"):
            from torchstain.numpy import normalizers

            theirs = getattr(normalizers, f"Numpy{name}Normalizer")()
            theirs.fit(target)
            keywords = {"stains": False} if name == "Macenko" else {}
            ways["torchstain, the cell's pixels"] = threaded(lambda p, t=theirs, k=keywords: t.normalize(tiles[p], **k))
        pairs[name] = ways
    return pairs


def print_rates(title: str, found: dict[str, list[float]], ours: str | None = None) -> dict[str, dict[str, float]]:
    ours = ours or next(iter(found))
    print(f"\n{title}\n  {'way':<36}{'images/s':>10}{'ours is faster by':>20}")
    table = {}
    for name, values in found.items():
        ratio = statistics.median(mine / other for mine, other in zip(found[ours], values, strict=True))
        print(f"  {name:<36}{statistics.median(values):>10,.0f}{ratio:>20.2f}")
        table[name] = {"images_per_second": statistics.median(values), "ratio": ratio}
    return table


def augmentation(rounds: int, size: int = 96, batch: int = 16) -> dict[str, float]:
    """Return the share of a training step of the small CNN that full augmentation takes, as Keras runs both."""
    from leukemia_dl.models import build_model, get_backbone
    from leukemia_dl.training import Augmentation
    from leukemia_dl.training.augmentation import augment, background_colour
    from leukemia_dl.training.backends import fused, prepare

    device = prepare()
    import keras
    import tensorflow as tf

    settings = Augmentation(rotation=15, shift=0.05, brightness=0.1, contrast=0.1, stain=0.1)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    labels = np.arange(batch, dtype=np.int32) % 2
    model = build_model(get_backbone("cnn"), size, 2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adamw", loss, jit_compile=device.jit_compile)
    parameters = tf.constant(settings.draw(background_colour(images), 0, 0))
    pixels = tf.constant(images)
    augmenting = tf.function(lambda: augment(pixels, parameters, settings, fused))
    floats = images.astype(np.float32)
    shares, steps = [], []
    for turn in range(rounds + 1):
        started = time.perf_counter()
        for _ in range(10):
            model.train_on_batch(floats, labels)
        step = (time.perf_counter() - started) / 10
        started = time.perf_counter()
        for _ in range(10):
            augmenting().numpy()
        if turn:
            shares.append((time.perf_counter() - started) / 10 / step)
            steps.append(step)
    print(f"\nAugmentation, all of it, {batch} images of {size} pixels, {device.name}")
    print(f"  a training step of cnn takes {statistics.median(steps) * 1000:.0f} ms; augmentation adds", end=" ")
    print(f"{statistics.median(shares):.1%} (from {min(shares):.1%} to {max(shares):.1%})")
    return {"step_seconds": statistics.median(steps), "share": statistics.median(shares)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder with BMP files of 450 x 450 pixels")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.images:
            paths = sorted(options.images.rglob("*.bmp"))
        else:
            from leukemia_dl.datasets.synthetic import SyntheticCohort, write_dataset

            cohort = SyntheticCohort(subjects=12, images=max(options.count, 36))
            paths = sorted(write_dataset(Path(folder) / "cells", cohort).rglob("UID_*.bmp"))
        paths = paths[: options.count]
        packages = ("numpy", "pillow", "tensorflow", "torchstain", "opencv-python-headless")
        versions = {name: metadata.version(name) for name in packages if _installed(name)}
        kind = "of a folder" if options.images else "synthetic"
        print(f"{len(paths)} images ({kind}), {platform.machine()}, {os.cpu_count()} cores, {versions}")
        result: dict[str, object] = {"versions": versions, "images": kind}
        for cores in (1, 2):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                found = process.submit(reading_on, cores, paths, options.rounds).result()
            title = f"From file to 224 x 224, cores: {cores}"
            result[f"reading_{cores}"] = print_rates(f"{title}, threads: {cores}", found)
            if OURS_BY_PROCESSES in found:
                result[f"reading_{cores}_processes"] = print_rates(
                    f"{title}, ours by processes", found, OURS_BY_PROCESSES
                )
        for name, ways in staining(paths[:12]).items():
            found = rates(ways, paths[:12], 1, options.rounds)
            result[name] = print_rates(f"{name}, 1 thread", found)
        if util.find_spec("tensorflow"):
            result["augmentation"] = augmentation(options.rounds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
