"""Data sets beside what a user would do otherwise: scan, audit, pixel store, an epoch, and memory.

Images are synthetic cells, 450 x 450 BMP files in C-NMC's layout. Memory is what fresh processes hold more after an
epoch over trees of small files (16 x 16 pixels) than after their imports: RssAnon of Linux. Files are read from the
page cache, where both ways find them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from harness import Row, compared, in_turn

from leukemia_dl import Dataset, Pipeline
from leukemia_dl.datasets.synthetic import SyntheticCohort, write_dataset

SIZE, BATCH = 224, 32


def keras_dataset(folder: Path) -> object:
    import keras

    return keras.utils.image_dataset_from_directory(
        folder, image_size=(SIZE, SIZE), batch_size=BATCH, shuffle=False, interpolation="lanczos3", verbose=False
    )


def epoch_of_files(folder: Path) -> int:
    """Read one epoch as Keras users do: decoded from files, resized (antialiased is not offered)."""
    count = 0
    for images, _ in keras_dataset(folder):  # type: ignore[attr-defined]
        count += len(images.numpy())
    return count


def speed(subjects: int, count: int, rounds: int, folder: Path) -> list[Row]:
    import keras  # noqa: F401 - not counted

    root = write_dataset(folder / "cells", SyntheticCohort(subjects, count, preliminary_images=12, final_images=2))
    plain = folder / "plain"  # a folder per class, which is all that Keras knows
    loaded = Dataset.load("c_nmc_2019", root)
    loaded = loaded.subset(loaded.labels >= 0)
    count, pipeline = len(loaded), Pipeline.default(SIZE, canvas=450)
    for label in loaded.class_names:
        (plain / label).mkdir(parents=True)
    for path, label in zip(loaded.paths, loaded.table["label"], strict=True):
        os.link(path, plain / str(label) / path.name)
    os.environ["LEUKEMIA_DL_CACHE"] = str(folder / "cache")
    keras_dataset(plain)
    store = loaded.pixel_store(pipeline, show_progress=False)

    def built() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            loaded.pixel_store(pipeline, folder=place, show_progress=False)

    def epoch_of_store() -> None:
        order = np.random.default_rng(0).permutation(count)
        for start in range(0, count, BATCH):
            store[order[start : start + BATCH]]

    ways = {
        "scan": lambda: Dataset.load("c_nmc_2019", root),
        "keras scan": lambda: keras_dataset(plain),
        "audit": lambda: loaded.audit(show_progress=False),
        "store": built,
        "epoch": epoch_of_store,
        "keras epoch": lambda: epoch_of_files(plain),
    }
    taken = in_turn(ways, rounds, warm=int(rounds > 1))
    where = f"{count:,} files of 450 x 450, to {SIZE}"
    by = "image_dataset_from_directory"
    return [
        compared(f"{where}: scan, beside {by}", taken["scan"], taken["keras scan"], count, "images/s"),
        compared(f"{where}: audit, beside one epoch of {by}", taken["audit"], taken["keras epoch"], count, "images/s"),
        compared(
            f"{where}: building the store, beside one epoch", taken["store"], taken["keras epoch"], count, "images/s"
        ),
        compared(f"{where}: an epoch of the store, shuffled", taken["epoch"], taken["keras epoch"], count, "images/s"),
    ]


_HELD = """
import json, os, sys
from pathlib import Path
def held():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024
"""
_OURS = (
    _HELD
    + """
import numpy as np
from leukemia_dl import Dataset, Pipeline
base = held()
dataset = Dataset.from_folder(sys.argv[1])
store = dataset.pixel_store(Pipeline.default(16), show_progress=False)
order = np.random.default_rng(0).permutation(len(store))
for start in range(0, len(store), 32):
    store[order[start:start + 32]]
print(held() - base)
"""
)
_KERAS = (
    _HELD
    + """
import keras
import tensorflow as tf
tf.zeros(()).numpy()
base = held()
for _ in keras.utils.image_dataset_from_directory(sys.argv[1], image_size=(16, 16), verbose=False):
    pass
print(held() - base)
"""
)


def memory(count: int, folder: Path) -> Row:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for label in ("all", "hem"):
        (folder / label).mkdir(parents=True)
    for number in range(count):
        noise[0, 0] = number % 256, number // 256 % 256, number // 65536
        Image.fromarray(noise).save(folder / ("all", "hem")[number % 2] / f"{number}.bmp")
    found = []
    for program in (_OURS, _KERAS):
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "LEUKEMIA_DL_CACHE": cache}
            command = [sys.executable, "-c", program, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append(float(done.stdout.splitlines()[-1]))
    ratio = found[1] / found[0]
    return Row(f"memory of an epoch over {count:,} small files", *found, "MiB", ratio, ratio, ratio)


def rows(short: bool) -> Iterable[Row]:
    with tempfile.TemporaryDirectory() as folder:
        found = speed(*((12, 36, 1) if short else (73, 2_000, 3)), Path(folder))
        for count in (100,) if short else (10_000, 100_000):
            found.append(memory(count, Path(folder) / str(count)))
    return found
