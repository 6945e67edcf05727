"""Running one trial, in this process: from a split and pixels to a Record."""

from __future__ import annotations

import logging
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.benchmark.baselines import CellMeasures, measure_cells, predict_baseline
from leukemia_dl.benchmark.progress import GridProgress
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.datasets import Dataset, PixelStore, Split
from leukemia_dl.errors import StoreError
from leukemia_dl.evaluation import apply_temperature, fit_temperature, score
from leukemia_dl.models.classifier import Classifier, logits_over_symmetries, predict_logits, softmax
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.callbacks import CallbackFactory
from leukemia_dl.training.fit import FitResult, fit
from leukemia_dl.training.phases import predict_batch_size
from leukemia_dl.training.recipe import Recipe

__all__ = ["Job", "Pixels", "run_trial"]

_log = logging.getLogger(__name__)


class Pixels:
    """The pixels and cell measures of a data set, read once and only when a trial needs them."""

    def __init__(self, dataset: Dataset, used: NDArray[np.int64], pipeline: Pipeline, show_progress: bool) -> None:
        """Take the rows that any split uses, sorted."""
        self._dataset, self._used, self._show = dataset, used, show_progress
        self._stored, self._per_split = pipeline.partition()
        self._fitted: tuple[str, Pipeline] = ("", Pipeline())
        self._position = np.full(len(dataset), -1)
        self._position[used] = np.arange(len(used))

    @cached_property
    def _images(self) -> PixelStore | NDArray[np.uint8]:
        return _stored(self._dataset.subset(self._used), self._stored, self._show)

    @cached_property
    def _measures(self) -> CellMeasures:
        return measure_cells(self._dataset.subset(self._used), self._show)

    def read(self) -> None:
        """Decode all files now."""
        _ = self._images

    def pipeline(self, split: Split) -> Pipeline:
        """Return the whole pipeline, its steps that learn fitted to the training images of a split and no others."""
        if self._per_split.steps and self._fitted[0] != split.digest:
            images = self._images[self._position[split.train]]
            self._fitted = (split.digest, self._per_split.fit(images))
        return self._stored.then(*self._fitted[1].steps)

    def images(self, split: Split, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8 (len(rows), size, size, 3), as a net sees them that is trained on a split."""
        chosen: NDArray[np.uint8] = self._images[self._position[rows]]
        steps = self.pipeline(split).steps[len(self._stored.steps) :]
        return Pipeline(steps)(chosen) if steps else chosen

    def measures(self) -> CellMeasures:
        """Return the measures of every row of the data set; rows that no split uses are marked as no cell."""
        found, count = self._measures, len(self._dataset)

        def spread(values: NDArray[Any]) -> NDArray[Any]:
            full = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
            full[self._used] = values
            return full

        return CellMeasures(spread(found.single_cell), spread(found.size), spread(found.colour))


@dataclass(frozen=True)
class Job:
    """What a backbone's trial needs beside its data.

    Attributes:
        spec: The backbone.
        recipe: As it was asked for, for all backbones.
        device: "auto", "cpu", "gpu" or "gpu:1".
        checkpoints: Folder for the state of the unfinished fit.
        logs: Folder where callbacks may write.
        callbacks: Makes them; or None.
    """

    spec: BackboneSpec
    recipe: Recipe
    device: str
    checkpoints: Path
    logs: Path
    callbacks: CallbackFactory | None


@dataclass(frozen=True)
class _Outcome:
    probabilities: NDArray[np.float64]
    row: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    views: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    temperature: float | None = None
    stopped: bool = False
    model: Any = None
    reason: str = ""


def _stored(dataset: Dataset, pipeline: Pipeline, show_progress: bool) -> PixelStore | NDArray[np.uint8]:
    """Return the pixels from a store; from memory where none can be kept, since a full disk should not stop a run."""
    if pipeline.output_size is None:
        return dataset.to_numpy(pipeline, show_progress)
    try:
        return dataset.pixel_store(pipeline, show_progress=show_progress)
    except StoreError as error:
        _log.warning("Decoded images are held in memory. %s", error)
        return dataset.to_numpy(pipeline, show_progress)


def run_trial(
    trial: Trial,
    dataset: Dataset,
    split: Split,
    pixels: Pixels,
    job: Job | None,
    progress: GridProgress,
) -> tuple[Record, Callable[[Any], Any] | None]:
    """Run a trial and return its record and, for a trained net, a function that saves its model to a path.

    Without a job it is that of a baseline.

    A trial that raises becomes a record with status "failed"; KeyboardInterrupt passes through.
    """
    started = time.perf_counter()
    predict = np.concatenate([split.val, split.test])
    sides = np.array(["val"] * len(split.val) + ["test"] * len(split.test), dtype=np.str_)
    labels = dataset.labels[predict]
    record = Record(
        trial,
        "ok",
        row=_row(trial, dataset, split, job.recipe.for_backbone(job.spec) if job else None),
        sides=sides,
        samples=dataset.table["sample"].to_numpy(dtype=np.str_)[predict],
        labels=labels,
    )
    try:
        if job is None:
            outcome = _baseline(trial, dataset, split, predict, pixels)
        else:
            outcome = _backbone(trial, dataset, split, predict, pixels, job, progress)
        metrics, metrics_averaged, averaged = {}, {}, np.empty((0, 0))
        if not outcome.reason:
            plain, temperature = outcome.probabilities, outcome.temperature
            if temperature is None:
                temperature = _temperature_of_val(labels, plain, sides, split, outcome)
            calibrated = None if temperature is None else apply_temperature(plain, temperature)
            metrics = _metrics(labels, plain, sides, temperature, calibrated)
            if outcome.views is not None:
                # The temperature is that of the net, as it travels in the saved model.
                averaged = softmax(outcome.views).mean(axis=0)
                calibrated = None if temperature is None else softmax(outcome.views / temperature).mean(axis=0)
                metrics_averaged = _metrics(labels, averaged, sides, temperature, calibrated)
    except Exception as error:
        return replace(
            record,
            status="failed",
            timings=_environment(started),
            error=" ".join(f"{type(error).__name__}: {error}".split()),
            traceback=traceback.format_exc(),
        ), None
    record = replace(
        record,
        status="not_applicable" if outcome.reason else "ok",
        row={**record.row, **outcome.row, "flags": _joined([record.row["flags"], *outcome.notes])},
        metrics=metrics,
        metrics_averaged=metrics_averaged,
        timings={**_environment(started), **outcome.timings},
        history=outcome.history,
        probabilities=outcome.probabilities,
        averaged=averaged,
        error=outcome.reason,
    )
    if outcome.model is None:
        return record, None
    provenance = {"trial": trial.to_dict(), "digest": trial.digest, "metrics": metrics, "dataset": dataset.info.name}
    temperature = metrics.get("temperature", 1.0)
    classifier = Classifier(outcome.model, dataset.class_names, pixels.pipeline(split), provenance, temperature)
    return record, classifier.save


def _baseline(trial: Trial, dataset: Dataset, split: Split, predict: NDArray[np.int64], pixels: Pixels) -> _Outcome:
    probabilities, reason = predict_baseline(
        trial.backbone, dataset.labels, split.train, predict, len(dataset.class_names), pixels.measures
    )
    return _Outcome(probabilities, reason=reason)


def _backbone(
    trial: Trial,
    dataset: Dataset,
    split: Split,
    predict: NDArray[np.int64],
    pixels: Pixels,
    job: Job,
    progress: GridProgress,
) -> _Outcome:
    import keras

    # Models of earlier trials would otherwise stay in memory for as long as the process lives.
    keras.utils.clear_session(free_memory=True)
    labels, epochs = dataset.labels, job.recipe.for_backbone(job.spec).total_epochs
    groups = pd.factorize(dataset.table["group"].iloc[split.train])[0] if dataset.has_subjects else None
    result: FitResult = fit(
        job.spec,
        pixels.images(split, split.train),
        labels[split.train],
        len(dataset.class_names),
        job.recipe,
        seed=trial.seed or 0,
        groups=groups,
        validation=(pixels.images(split, split.val), labels[split.val]),
        device=job.device,
        checkpoints=job.checkpoints,
        callbacks=job.callbacks,
        folder=job.logs,
        on_step=lambda epoch, step, steps: progress.step(epoch, step, steps, epochs),
        on_epoch=lambda epoch, row: progress.epoch(epoch, epochs, row),
    )
    images, batch = pixels.images(split, predict), predict_batch_size(result.recipe)
    clock = time.perf_counter()
    logits = predict_logits(result.model, images, batch)
    seconds = time.perf_counter() - clock
    views = logits_over_symmetries(result.model, images, batch) if result.recipe.symmetry_average else None
    temperature = None
    if result.out_of_fold is not None:
        temperature = fit_temperature(labels[split.train], softmax(result.out_of_fold))
    device, history = result.device, result.history
    last_phase = history[history["phase"] == history["phase"].iloc[-1]]
    named = getattr(job.callbacks, "__qualname__", type(job.callbacks).__name__)
    notes = result.notes if job.callbacks is None else (*result.notes, f"callbacks: {named}")
    row = {
        "epochs": len(result.history),
        "batch_size": result.recipe.batch_size,
        "parameters": int(result.model.count_params()),
        "backend": device.backend,
        "device": device.kind,
        "precision": device.dtype_policy,
        "deterministic": device.kind == "cpu",
    }
    timings = {
        # After an interruption the epochs before it count too.
        "fit_seconds": max(result.seconds, float(result.history["seconds"].sum())),
        "seconds_per_epoch": float(last_phase["seconds"].min()),
        "predict_seconds": seconds,
        "predict_images_per_second": len(predict) / seconds,
        "device_name": device.name,
    }
    return _Outcome(
        softmax(logits), row, timings, history, views, notes, temperature, stopped=result.stopped, model=result.model
    )


def _temperature_of_val(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    sides: NDArray[np.str_],
    split: Split,
    outcome: _Outcome,
) -> float | None:
    """Return the temperature that fits the val side best; None if val is the test side, or was used to choose."""
    val = sides == "val"
    if np.intersect1d(split.val, split.test).size or outcome.stopped:
        return None
    return fit_temperature(labels[val], probabilities[val])


def _metrics(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    sides: NDArray[np.str_],
    temperature: float | None,
    calibrated: NDArray[np.float64] | None,
) -> dict[str, float]:
    """Return the metrics of the test side, those that are watched of val, and those of calibrated probabilities."""
    test, val = sides == "test", sides == "val"
    metrics = score(labels[test], probabilities[test])
    watched = score(labels[val], probabilities[val])
    metrics |= {f"val_{name}": watched[name] for name in ("accuracy", "loss", "balanced_accuracy")}
    if temperature is not None and calibrated is not None:
        after = score(labels[test], calibrated[test])
        metrics |= {"temperature": temperature}
        metrics |= {f"{name}_calibrated": after[name] for name in ("loss", "brier", "ece")}
    return metrics


def _row(trial: Trial, dataset: Dataset, split: Split, recipe: Recipe | None) -> dict[str, Any]:
    group = dataset.table["group"]
    row: dict[str, Any] = {
        "dataset": dataset.info.name,
        "synthetic": dataset.info.synthetic,
        "protocol": split.protocol,
        "fold": split.fold,
        "seed": trial.seed,
        "recipe": recipe.name if recipe else None,
        "image_size": recipe.image_size if recipe else None,
        "epochs": recipe.total_epochs if recipe else None,
        "batch_size": recipe.batch_size if recipe else None,
        "weights": (trial.weights or "random") if recipe else None,
        "averaging": "none" if recipe else None,
    }
    for side in ("train", "val", "test"):
        index = getattr(split, side)
        row[f"n_{side}"] = len(index)
        row[f"groups_{side}"] = int(group.iloc[index].nunique()) if dataset.has_subjects else None
    row["dropped"] = split.dropped
    row |= {f"crossing_{what}": count for what, count in split.crossing.items()}
    row["guarantees"] = "; ".join(sorted(split.guarantees))
    kept = Pipeline.from_dict(dict(trial.pipeline)).keeps_scale
    row["flags"] = _joined([*split.flags, "" if kept else "cells are cropped to: their size is not seen"])
    row |= {"parameters": None, "backend": None, "device": None, "precision": None, "deterministic": True}
    return row | {"plugin": trial.plugin, "plugin_version": trial.plugin_version}


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(part for part in parts if part)


def _environment(started: float) -> dict[str, Any]:
    versions = {}
    for name in ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory_gib": _peak_memory(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": "; ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _peak_memory() -> float | None:
    """Return the peak of this process so far in GiB, None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
