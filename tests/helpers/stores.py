"""Stores of benchmarks whose trials were not run but made up: any grid, any outcome, in seconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import leukemia_dl as ldl
from leukemia_dl.benchmark.records import (
    Samples,
    blank_record,
    environment,
    failed_record,
    scored_record,
    temperature_of_val,
)
from leukemia_dl.benchmark.run_files import write_run

RECIPE = ldl.Recipe(name="made-up", image_size=32, epochs=3, batch_size=8)


def cells(count=120, subjects=24, classes=("hem", "all"), size=16, seed=0, title="Made-up cells", name="made_up"):
    """Return a data set of arrays: discs whose radius tells a part of the classes apart, each subject of one class."""
    random = np.random.default_rng(seed)
    owner = np.arange(count) % subjects if subjects else np.arange(count)
    labels = owner % len(classes)
    radius = size * (0.2 + 0.2 * (labels + random.random(count)) / len(classes))
    y, x = np.ogrid[:size, :size]
    inside = (y - size / 2) ** 2 + (x - size / 2) ** 2 < radius[:, None, None] ** 2
    images = np.where(inside[..., None], random.integers(60, 200, (count, 1, 1, 3)), 0).astype(np.uint8)
    info = ldl.DatasetInfo(
        name=name, title=title, licence="none needed", citation="Drawn by a test.", synthetic=True, canvas=size
    )
    names = [f"{title[:4]}-{i}" for i in range(count)]
    who = [f"P{one}" for one in owner] if subjects else None
    return ldl.Dataset.from_arrays(images, labels, list(classes), info, samples=names, subjects=who)


def run_folder(store):
    """Return the folder of the only benchmark in a store."""
    (folder,) = (Path(store) / "grids").iterdir()
    return folder


def made_up(store, dataset, backbones=("cnn", "vgg16"), *, failed=(), missing=(), learned=1.5, **settings):
    """Write a store as a benchmark leaves it, with probabilities drawn at random around the labels.

    `failed` and `missing` hold numbers of trials.
    """
    settings = {"recipe": RECIPE, "protocol": "holdout", **settings}
    bench = ldl.Benchmark(dataset, backbones, store=store, **settings)
    bench.store.create()
    write_run(bench.planned, bench.store)
    samples, random = Samples.of(bench.dataset), np.random.default_rng(0)
    for number, planned in enumerate(bench.planned.trials):
        if number in missing:
            continue
        record = blank_record(planned, samples)
        if number in failed:
            record = failed_record(record, MemoryError("no memory for <b>this</b> one"), 0.0)
        else:
            record = _made_up(record, planned, samples, random, learned)
        bench.store.write(record)
    return bench


def _made_up(record, planned, samples, random, learned):
    classes = len(samples.class_names)
    odds = random.normal(size=(len(record.labels), classes))
    odds[np.arange(len(record.labels)), record.labels] += learned if planned.spec else learned / 2
    shares = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    timings = environment(0.0)
    if planned.spec is not None:
        curve = np.linspace(0.5, 0.9, RECIPE.epochs)
        history = pd.DataFrame(
            {
                "epoch": range(1, RECIPE.epochs + 1), "phase": "full", "loss": 1 - curve / 2, "accuracy": curve,
                "val_loss": 1.1 - curve / 2, "val_accuracy": curve - 0.1, "seconds": 1.0,
            }
        )  # fmt: skip
        row = {"parameters": 1000 * (1 + len(planned.trial.backbone)), "backend": "tensorflow", "device": "cpu"}
        row |= {"precision": "float32", "threads": 1}
        timings |= {"fit_seconds": 3.0 * len(planned.trial.backbone), "predict_images_per_second": 100.0}
        timings["device_name"] = "none"
        record = replace(record, row={**record.row, **row}, history=history)
    fitted = temperature_of_val(planned.split, samples, shares)
    return replace(scored_record(record, shares, None, fitted), timings=timings)
