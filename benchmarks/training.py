"""Training on a CPU beside the bare compiled step, and beside what Keras's tutorials show: files and `fit`.

An epoch of ours, as many bare steps on one batch that lies in memory, and an epoch of Keras's `fit` on
`image_dataset_from_directory` are timed in turn; each fit is one call of many epochs, Keras's in a process of its own,
which knows nothing of what ours sets (`plain_fit.py`). All train the same net, without augmentation and without a
validation side. Images are synthetic cells of 450 x 450 pixels, BMP files as in C-NMC 2019.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Child, Row, Stepwise, compared, in_turn

import leukemia_dl as ldl
from leukemia_dl.datasets.synthetic import SyntheticCohort, write_dataset
from leukemia_dl.training import Recipe, fit
from leukemia_dl.training.backends import prepare
from leukemia_dl.training.cache import ModelCache
from leukemia_dl.training.optimizer import build_loss, build_optimizer

BATCH = 32


def rows(short: bool) -> Iterable[Row]:
    size, steps, rounds = (32, 2, 1) if short else (128, 8, 7)
    with tempfile.TemporaryDirectory() as place:
        folder, dataset = files(Path(place), steps * BATCH, 12 if short else 73)
        found = []
        for name in ["published_cnn"] if short else ["cnn", "vgg16", "resnet50", "inception_v3", "xception"]:
            found += net(name, size, steps if name != "vgg16" else 4, rounds, folder, dataset)
        name, rounds, epochs = ("published_cnn", 1, 1) if short else ("cnn", 3, 5)
        found.append(from_files(name, size, folder, dataset, rounds, epochs))
    return found


def files(place: Path, count: int, subjects: int) -> tuple[Path, ldl.Dataset]:
    """Write synthetic cells: a folder per class, which is all that Keras reads."""
    cohort = SyntheticCohort(subjects, max(count, 3 * subjects), preliminary_images=12, final_images=2)
    dataset = ldl.Dataset.load("c_nmc_2019", write_dataset(place / "cells", cohort))
    chosen = dataset.subset(np.flatnonzero(dataset.labels >= 0)[:count])
    for path, label in zip(chosen.paths, chosen.table["label"], strict=True):
        folder = place / "plain" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).hardlink_to(path)
    return place / "plain", ldl.Dataset.from_folder(place / "plain")


def recipe(size: int, epochs: int) -> Recipe:
    return Recipe(image_size=size, epochs=epochs, batch_size=BATCH, symmetries=False, dropout=0.0)


def net(name: str, size: int, steps: int, rounds: int, folder: Path, dataset: ldl.Dataset) -> list[Row]:
    import keras

    spec, count, device = ldl.get_backbone(name), steps * BATCH, prepare()
    keras.utils.clear_session()
    images = dataset.to_numpy(ldl.Pipeline.default(size, canvas=450), show_progress=False)[:count]
    labels = dataset.labels[:count]
    epochs = rounds + 1

    def ours(pause: Callable[[float], None]) -> None:
        fit(spec, images, labels, 2, recipe(size, epochs + 1), on_epoch=lambda _, row: pause(row["seconds"]))

    mine, plain = Stepwise(ours), Child("plain_fit.py", folder, name, size, steps, epochs)
    bare = bare_step(spec, size, images, labels, steps, device)
    taken = in_turn({"ours": mine, "bare": bare, "plain": plain}, rounds)
    mine.finish(), plain.end()
    return [
        compared(f"{name}, {size} px: beside the bare step", taken["ours"], taken["bare"], count, "images/s", 0.95),
        compared(f"{name}, {size} px: beside files and fit", taken["ours"], taken["plain"], count, "images/s", 1.0),
    ]


def bare_step(spec: Any, size: int, images: Any, labels: Any, steps: int, device: Any) -> Callable[[], object]:
    """Return the very step that ours compiles, on one batch that is a tensor already."""
    import keras
    import tensorflow as tf

    settings = recipe(size, 1)
    model = ModelCache().get(spec, settings, 2, 0, device).model
    optimizer = build_optimizer(settings, 1e-3, {})
    optimizer.build(model.trainable_variables)
    optimizer.start(1000)
    metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
    model.compile(optimizer=optimizer, loss=build_loss(settings, 2), metrics=metrics, jit_compile=False)
    batch = tf.constant(images[:BATCH]), tf.constant(labels[:BATCH].astype(np.int32))
    step = tf.function(lambda: model.train_step(batch)["loss"])

    def run() -> None:
        for _ in range(steps):
            loss = step()
        loss.numpy()

    return run


def from_files(name: str, size: int, folder: Path, dataset: ldl.Dataset, rounds: int, epochs: int) -> Row:
    """Time whole fits, from files to a trained net, tracing and ours the building of the pixel store included."""
    spec = ldl.get_backbone(name)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as cache:
            data = ldl.Dataset.from_folder(folder)
            store = data.pixel_store(ldl.Pipeline.default(size, canvas=450), folder=cache, show_progress=False)
            fit(spec, store[:], data.labels, 2, recipe(size, epochs))

    plain = Child("plain_fit.py", folder, name, size, 0, epochs)
    taken = in_turn({"ours": ours, "plain": plain}, rounds, warm=int(rounds > 1))
    plain.end()
    what = f"{name}, {size} px, {epochs} epochs from files to a net"
    return compared(what, taken["ours"], taken["plain"], epochs * len(dataset), "images/s", 1.3)
