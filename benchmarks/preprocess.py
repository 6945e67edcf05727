"""Preprocessing beside what a user would do otherwise: interleaved in one run, as ratios.

Images are synthetic cells, 450 x 450 BMP files in C-NMC's layout. Each way is timed once per round, all ways of a round
in turn; a ratio is taken inside a round: many rounds, since the speed of a shared machine changes within seconds. Ways
that are not installed (torchstain, opencv-python-headless) are left out. Linux only: the processes are kept to one and
to two cores. On two cores ours and Pillow are timed by two threads and by two processes (as `Dataset.pixel_store` reads
from 1,000 images on), whose start is not counted, as the building of TensorFlow's graph is not.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib import util
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from harness import Row, compared
from PIL import Image

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


POOLS: dict[int, ProcessPoolExecutor] = {}


def by_processes(one: Callable[[Path], object]) -> Way:
    def run(paths: list[Path], cores: int) -> None:
        if cores not in POOLS:
            POOLS[cores] = ProcessPoolExecutor(cores, get_context("spawn"))
        list(POOLS[cores].map(functools.partial(each, one), [paths[start::cores] for start in range(cores)]))

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
    default = Pipeline.default(SIZE, canvas=450)
    ways = {
        "ours: on a canvas, 224": threaded(default.load),
        "ours: decode alone": threaded(decode_image),
    }
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
    try:
        return rates(reading(cores), paths, cores, rounds)
    finally:  # a process of multiprocessing waits for its children before its pools end them
        for pool in POOLS.values():
            pool.shutdown()


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
        fitted, name = step.fit([target], [whole[paths[0]]]), type(step).__name__
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


def rows_of(title: str, found: dict[str, list[float]], ours: str) -> Iterable[Row]:
    """Return a row for each way that is not ours."""
    for name, rates in found.items():
        if not name.startswith("ours"):
            mine = [1 / rate for rate in found[ours]]
            yield compared(f"{title}: beside {name}", mine, [1 / rate for rate in rates], 1, "images/s")


def augmentation(rounds: int, name: str, size: int, batch: int = 16) -> Row:
    """Time full augmentation beside a training step of a small net, as Keras runs both."""
    from leukemia_dl.models import build_model, get_backbone
    from leukemia_dl.training import Augmentation
    from leukemia_dl.training.augmentation import augment, background_colour
    from leukemia_dl.training.backends import prepare, xla_jit

    device = prepare()
    import keras
    import tensorflow as tf

    settings = Augmentation(rotation=15, shift=0.05, brightness=0.1, contrast=0.1, stain=0.1)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    labels = np.arange(batch, dtype=np.int32) % 2
    model = build_model(get_backbone(name), size, 2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adamw", loss, jit_compile=device.jit_compile)
    parameters = tf.constant(settings.draw(background_colour(images), 0, 0))
    pixels = tf.constant(images)
    augmenting = tf.function(lambda: augment(pixels, parameters, settings, xla_jit))
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
    what = f"augmentation, all of it, {batch} images of {size} pixels: beside a training step of {name}"
    mine = [share * step for share, step in zip(shares, steps, strict=True)]
    return compared(
        what, mine, steps, batch, "images/s", note=f"a step with it takes {statistics.median(shares):.1%} longer"
    )


def rows(short: bool) -> Iterable[Row]:
    from leukemia_dl.datasets.synthetic import SyntheticCohort, write_dataset

    count, rounds = (36, 1) if short else (60, 21)
    few = {"preliminary_images": 12, "final_images": 2} if short else {}
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        cells = write_dataset(Path(folder) / "cells", SyntheticCohort(subjects=12, images=count, **few))
        paths = sorted(cells.rglob("UID_*.bmp"))[:count]
        for cores in (1, 2):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                rates_found = process.submit(reading_on, cores, paths, rounds).result()
            title = f"file to 224 x 224, {cores} core{'s' * (cores > 1)}"
            found += rows_of(title, rates_found, next(iter(rates_found)))
            if OURS_BY_PROCESSES in rates_found:
                found += rows_of(f"{title}, ours by processes", rates_found, OURS_BY_PROCESSES)
        for name, ways in staining(paths[:12]).items():
            found += rows_of(f"{name}, 1 thread", rates(ways, paths[:12], 1, rounds), next(iter(ways)))
    if util.find_spec("tensorflow"):
        found.append(augmentation(rounds, *(("published_cnn", 32) if short else ("cnn", 96))))
    return found
