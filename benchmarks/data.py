"""Data sets beside what a user would do otherwise: scan, hash, audit, pixel store, an epoch, and memory.

    python benchmarks/data.py [--images 2000] [--json FILE] [--memory 10000,100000]

Images are synthetic cells, 450 x 450 BMP files in C-NMC's layout. Times are of one run, ways in turn, as ratios. Memory
is that of fresh processes on trees of small files (16 x 16 pixels): RssAnon of Linux, what the process itself holds.
Files are read from the page cache, where both ways find them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

from leukemia_dl import Dataset, Pipeline
from leukemia_dl.datasets.synthetic import SyntheticCohort, write_dataset

SIZE, BATCH = 224, 32


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def show(what: str, images: int, taken: float, note: str = "") -> float:
    print(f"  {what:<58}{images / taken:>12,.0f} images/s  {note}")
    return images / taken


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


def speed(count: int, folder: Path) -> dict[str, float]:
    import keras  # noqa: F401 - not counted

    root = write_dataset(folder / "cells", SyntheticCohort(images=count, preliminary_images=12, final_images=2))
    plain = folder / "plain"  # a folder per class, which is all that Keras knows
    loaded = Dataset.load("c_nmc_2019", root)
    loaded = loaded.subset(loaded.labels >= 0)
    count = len(loaded)
    for label in loaded.class_names:
        (plain / label).mkdir(parents=True)
    for path, label in zip(loaded.paths, loaded.table["label"], strict=True):
        os.link(path, plain / str(label) / path.name)
    os.environ["LEUKEMIA_DL_CACHE"] = str(folder / "cache")
    found: dict[str, float] = {}
    keras_dataset(plain)

    print(f"\n{count:,} images of 450 x 450 pixels, to {SIZE} x {SIZE}")
    found["scan"] = show("scan: Dataset.load", count, seconds(lambda: Dataset.load("c_nmc_2019", root)))
    found["keras_scan"] = show(
        "scan: keras.utils.image_dataset_from_directory", count, seconds(lambda: keras_dataset(plain))
    )
    time.sleep(3)  # the hashes of files that are younger than two seconds are not remembered
    found["hash"] = show("hash all files, first time", count, seconds(lambda: loaded.content_hashes))
    again = Dataset(loaded.table, loaded.class_names, loaded.info)
    found["hash_again"] = show("hash all files, remembered", count, seconds(lambda: again.content_hashes))
    found["audit"] = show("audit", count, seconds(lambda: loaded.audit(show_progress=False)))

    pipeline = Pipeline.default(SIZE)
    found["store"] = show(
        "pixel store: build", count, seconds(lambda: loaded.pixel_store(pipeline, show_progress=False))
    )
    found["keras_epoch"] = show("one epoch from files: Keras", count, seconds(lambda: epoch_of_files(plain)))
    store = loaded.pixel_store(pipeline)
    found["open"] = show("pixel store: open", count, seconds(lambda: loaded.pixel_store(pipeline)))

    def epoch_of_store() -> None:
        order = np.random.default_rng(0).permutation(count)
        for start in range(0, count, BATCH):
            store[order[start : start + BATCH]]

    def epoch_of_files_ours() -> None:
        for path in loaded.paths:
            pipeline.load(path)

    rounds = [
        (seconds(epoch_of_store), seconds(lambda: epoch_of_files(plain)), seconds(epoch_of_files_ours))
        for _ in range(3)
    ]
    for name, position, what in (
        ("store_epoch", 0, "one epoch from the store, shuffled, batches of 32"),
        ("files_epoch", 1, "one epoch from files, Keras, in order"),
        ("files_epoch_ours", 2, "one epoch from files, Pipeline.load, one thread"),
    ):
        found[name] = show(what, count, statistics.median(taken[position] for taken in rounds))
    found["epoch_ratio"] = statistics.median(files / stored for stored, files, _ in rounds)
    found["store_build_ratio"] = found["store"] / found["keras_epoch"]
    print(f"  an epoch from the store is faster than one from files by {found['epoch_ratio']:,.0f}")
    print(f"  building the store takes {1 / found['store_build_ratio']:.2f} of the time of one Keras epoch from files")
    return found


_CHILD = """
import json, os, sys
from pathlib import Path
import numpy as np
from leukemia_dl import Dataset, Pipeline
def held():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024
base = held()
dataset = Dataset.from_folder(sys.argv[1])
table = held()
_ = dataset.content_hashes
hashed = held()
store = dataset.pixel_store(Pipeline.default(16, canvas=None), show_progress=False)
built = held()
order = np.random.default_rng(0).permutation(len(store))
for start in range(0, len(store), 32):
    store[order[start:start + 32]]
print(json.dumps({"start": base, "loaded": table, "hashed": hashed, "built": built, "epoch": held(),
    "table": (dataset.table.memory_usage(deep=True).sum() + sum(map(sys.getsizeof, dataset.content_hashes))) / 2**20}))
"""


def memory(count: int, folder: Path) -> dict[str, float]:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for label in ("all", "hem"):
        (folder / label).mkdir(parents=True)
    for number in range(count):
        noise[0, 0] = number % 256, number // 256 % 256, number // 65536
        Image.fromarray(noise).save(folder / ("all", "hem")[number % 2] / f"{number}.bmp")
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "LEUKEMIA_DL_CACHE": cache}
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(folder)], capture_output=True, text=True, check=True, env=environment
        )
    found: dict[str, float] = json.loads(done.stdout)
    print(f"\n{count:,} small images: RssAnon in MiB")
    for name in ("start", "loaded", "hashed", "built", "epoch"):
        print(f"  {name:<10}{found[name]:>8.0f}")
    grown = found["epoch"] - found["start"]
    print(f"  grown by {grown:.0f}; the table and the hashes alone are {found['table']:.0f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--memory", default="10000,100000", help="numbers of images, empty for none")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    packages = ("numpy", "pandas", "pillow", "keras", "tensorflow")
    versions = {name: metadata.version(name) for name in packages}
    print(f"{os.cpu_count()} cores, synthetic cells, {versions}")
    result: dict[str, object] = {"versions": versions, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        if options.images:
            result["speed"] = speed(options.images, Path(folder))
        for count in map(int, filter(None, options.memory.split(","))):
            result[f"memory_{count}"] = memory(count, Path(folder) / str(count))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
