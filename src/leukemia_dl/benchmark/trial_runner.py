"""Run one trial of a backbone in this process: pixels, pipeline, fit, predictions and scores, as a Record."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl import errors
from leukemia_dl.benchmark import records
from leukemia_dl.benchmark.plan import Plan, PlannedTrial, Trial
from leukemia_dl.benchmark.records import Record
from leukemia_dl.benchmark.store import Store
from leukemia_dl.datasets import Dataset, PixelStore, Split, cache_dir
from leukemia_dl.evaluation.calibration import choose_rules, choose_temperature
from leukemia_dl.models.build import most_readers
from leukemia_dl.models.classifier import Classifier, logits_over_symmetries, predict_logits, softmax
from leukemia_dl.models.embeddings import Embeddings
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.preprocess.foreground import Appearance, appearance_of
from leukemia_dl.progress import parallel_map
from leukemia_dl.training import ComputeConfig, FeatureCache, FitResult, ModelCache, Recipe, Subset, fit
from leukemia_dl.training.backends import prepare
from leukemia_dl.training.loop import predict_batch_size

_EXAMINED, _TIMED_BATCHES = 100, 4
# Folds and seeds of one backbone share a net, compiled once, for as long as this process lives.
_models = ModelCache()
_features = lru_cache(maxsize=1)(FeatureCache)
# Called with the trial, the epoch (0 as it begins, then from 1), the number of epochs and the row of the history.
OnProgress = Callable[[Trial, int, int, Mapping[str, Any]], None]
# The record and the file of the net, if that is kept; None if the trial was stopped.
TrialOutput = tuple[Record, bytes | None] | None


@dataclass(frozen=True, eq=False)
class Images:
    """The pixels of some rows of a data set. Other processes map the same file."""

    pixels: PixelStore | NDArray[np.uint8]  # after the steps of `stored`
    rows: NDArray[np.int64]  # of the data set, sorted, in the order of `pixels`
    stored: Pipeline  # the part of a pipeline that is equal for all splits
    per_split: Pipeline  # the rest, from the first step on that is fitted to training images

    def pipeline(self, split: Split) -> Pipeline:
        """Return the whole pipeline, its fitted steps fitted to the training images of a split and no others."""
        if not self.per_split.steps:
            return self.stored
        return self.stored.then(*self.per_split.fit(self.subsets(split.train)[0][:]).steps)

    def after(self, pipeline: Pipeline, rows: NDArray[np.int64]) -> Images:
        """Return the images of sorted `rows` after a whole pipeline; a copy in memory if it goes on after `stored`."""
        steps = pipeline.steps[len(self.stored.steps) :]
        if not steps:
            return self
        return Images(Pipeline(steps)(self.subsets(rows)[0][:]), rows, pipeline, Pipeline(()))

    def subsets(self, *rows: NDArray[np.int64]) -> list[Subset]:
        """Return the pixels of each of several lists of rows, read-only: (n, height, width, 3), uint8."""
        if isinstance(self.pixels, np.ndarray):
            self.pixels.flags.writeable = False  # features of read-only pixels may be cached
        return [Subset.of(self.pixels, np.searchsorted(self.rows, listed)) for listed in rows]


def read_images(dataset: Dataset, rows: NDArray[np.int64], pipeline: Pipeline, show: bool) -> Images:
    """Decode the sorted `rows` of a data set, or find them decoded; in memory if no store of pixels can be kept."""
    stored, per_split = pipeline.partition()
    size, used = stored.output_size, dataset.subset(rows)
    if size is not None:
        try:
            return Images(used.pixel_store(stored, show_progress=show), rows, stored, per_split)
        except errors.StoreError as error:  # a full disk should not stop a run
            logging.getLogger(__name__).warning("Decoded images are held in memory. %s", error)
    return Images(used.to_numpy(stored, show), rows, stored, per_split)


def appearances_of(dataset: Dataset, rows: NDArray[np.int64]) -> list[Appearance]:
    """Return the appearance of up to 100 of `rows` of a data set, evenly spaced."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _EXAMINED)).astype(int)]

    def measured(row: int) -> Appearance | None:
        with contextlib.suppress(errors.ImageError):  # the file may be gone although its pixels are in the cache
            return appearance_of(dataset.decode(row))
        return None

    return [found for found in parallel_map(measured, chosen.tolist(), "Looking at images", show=False) if found]


def feature_frame(plan: Plan, backbone: str, show: bool) -> pd.DataFrame:
    """Return the features of the images of a plan, as its first trial of a frozen backbone computes them."""
    trials = {planned.trial.backbone: planned for planned in reversed(plan.trials) if planned.spec is not None}
    if backbone not in trials:
        raise errors.unknown_name_error("backbone", backbone, trials)
    planned, rows = trials[backbone], plan.rows
    spec: Any = planned.spec
    recipe: Any = planned.recipe
    if recipe.epochs:
        raise errors.SettingsError(f"The recipe {recipe.name} trains {backbone}: only frozen backbones have features.")
    if isinstance(spec, Embeddings):
        values = spec.features[rows]
    else:
        images = read_images(plan.dataset, rows, planned.pipeline or Pipeline(()), show)
        pixels = images.after(images.pipeline(planned.split), rows).subsets(rows)[0]
        device, seed = prepare(recipe.precision, plan.compute), planned.trial.seed or 0
        net = _models.get(spec, recipe, len(plan.dataset.class_names), seed, device)
        cache = _features(cache_dir() / "features") if planned.trial.weights else FeatureCache()
        values = cache.read(net.extractor, pixels, device, predict_batch_size(recipe))[:]
    table, names = plan.dataset.table.iloc[rows], [f"feature_{number}" for number in range(values.shape[1])]
    return table.join(pd.DataFrame(values, table.index, names)).reset_index(drop=True)


@dataclass(frozen=True, eq=False)
class RunContext:
    """Settings and data that all trials of backbones in a run share."""

    nets: Mapping[str, PlannedTrial]  # these trials by digest
    samples: records.Samples
    images: Mapping[int, Images]  # by size in pixels
    appearance: Mapping[str, Any]  # how the images look, for the record in a saved net
    recipe: Recipe  # before it is adapted to a backbone
    compute: ComputeConfig
    callbacks: Any  # makes Keras callbacks, or None
    save_models: bool
    time_limit: float | None  # seconds of a trial, compared after every epoch
    store: Store  # with the folders of logs and checkpoints
    scratch: Path  # folder in the store for files of this run

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called, maybe by another process: fits end after their epoch, and none begins."""
        return (self.scratch / "stop").exists()

    def stop(self) -> None:
        """Ask every process of the run to stop."""
        (self.scratch / "stop").touch()


def run_trial(planned: PlannedTrial, context: RunContext, on_progress: OnProgress) -> TrialOutput:
    """Run the trial of a backbone and write its log; if it raises, its record has status "failed"."""
    if context.stopped:
        return None
    trial, split, samples, started = planned.trial, planned.split, context.samples, time.perf_counter()
    blank, groups = records.blank_record(planned, samples), samples.groups_of(split.train)
    logs, checkpoints = context.store.logs(trial), context.store.checkpoints(trial)
    _log(logs, f"{trial.folder} begins in process {os.getpid()}")
    on_progress(trial, 0, 0, {})

    def on_epoch(epoch: int, row: Mapping[str, Any]) -> None:
        _log(logs, ", ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        # The checkpoint of this epoch has just been written.
        if context.stopped:
            raise KeyboardInterrupt
        on_progress(trial, epoch, blank.row["epochs"], row)
        if context.time_limit is not None and time.perf_counter() - started > context.time_limit:
            raise errors.TimeLimitError(f"It took longer than {context.time_limit:g} s.")

    try:
        rows, pipeline = (split.train, split.val, np.concatenate([split.val, split.test])), None
        assert planned.spec is not None
        if isinstance(planned.spec, Embeddings):
            train, val, predicted = (Subset(planned.spec.features, part) for part in rows)
        else:
            pipeline = context.images[planned.size].pipeline(split)
            images = context.images[planned.size].after(pipeline, np.unique(np.concatenate(rows)))
            train, val, predicted = images.subsets(*rows)
        result = fit(
            planned.spec, train, samples.labels[split.train], len(samples.class_names), context.recipe,
            seed=trial.seed or 0, groups=groups, validation=(val, samples.labels[split.val]), compute=context.compute,
            checkpoints=checkpoints, callbacks=context.callbacks, folder=logs,
            features=_features(cache_dir() / "features") if trial.weights else None, models=_models, on_epoch=on_epoch,
        )  # fmt: skip
        record = _predicted(blank, result, split, context, predicted)
        record = replace(record, timings={**records.environment(started), **record.timings})
        _log(logs, "ends")
        unsaved = pipeline is None or not context.save_models
        output = record, None if unsaved else _saved(result.model, record, context, pipeline)
    except KeyboardInterrupt:
        _log(logs, "stops: KeyboardInterrupt")
        if not context.stopped:
            raise
        return None
    except (Exception, SystemExit) as error:
        _log(logs, f"fails: {type(error).__name__}")
        output = records.failed_record(blank, error, started), None
    return output


def _log(folder: Path, text: str) -> None:
    """Append a line with the time (UTC) to a trial's log; a log that cannot be written stops no trial."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")


def _predicted(blank: Record, result: FitResult, split: Split, context: RunContext, images: Subset) -> Record:
    samples, recipe, device, history = context.samples, result.recipe, result.device, result.history
    count, clock = len(blank.labels), time.perf_counter()
    probabilities = softmax(result.logits(images))
    timed, seconds = count, time.perf_counter() - clock
    if not recipe.epochs:
        # The features may have come from a cache: time some images through the whole net, after one batch to warm up.
        batch = predict_batch_size(recipe)
        predict_logits(result.model, images[:batch], batch)
        pixels, clock = images[: _TIMED_BATCHES * batch], time.perf_counter()
        predict_logits(result.model, pixels, batch)
        timed, seconds = len(pixels), time.perf_counter() - clock
    repeatable = _repeatable(result)
    fitted: tuple[float, str] | None = None
    if result.out_of_fold is not None:
        train, groups = samples.labels[split.train], samples.groups_of(split.train)
        fitted = choose_temperature(train, softmax(result.out_of_fold), groups)
    elif not result.stopped:
        fitted = records.temperature_of_val(split, samples, probabilities)
    views = logits_over_symmetries(result.model, images[:], predict_batch_size(recipe)) if recipe.tta else None
    given = context.callbacks if isinstance(context.callbacks, list) else [context.callbacks]
    names = ", ".join(getattr(item, "__name__", type(item).__name__) for item in given if item is not None)
    flags = "; ".join(filter(None, [blank.row["flags"], *result.notes, names and f"callbacks: {names}"]))
    row: dict[str, Any] = {"epochs": len(history), "batch_size": recipe.batch_size, "threads": device.threads}
    row |= {"parameters": None if result.extractor is None else result.model.count_params()}
    row |= {"backend": device.backend, "device": device.kind}
    row |= {"precision": device.dtype_policy, "deterministic": repeatable, "flags": flags}
    timings = {
        "prepare_seconds": result.prepare_seconds,
        # After an interruption the epochs before it count too.
        "fit_seconds": max(result.seconds, float(history["seconds"].sum())) - result.prepare_seconds,
        "predict_seconds": seconds * count / timed,
        "predict_images_per_second": timed / seconds,
        "device_name": device.name,
    }
    record = replace(blank, row={**blank.row, **row}, timings=timings, history=history)
    return records.scored_record(record, probabilities, views, fitted)


def _repeatable(result: FitResult) -> bool:
    """Return whether equal fits give equal bits: TensorFlow adds three gradients or more in an order of its own."""
    sums = result.device.backend == "tensorflow" and result.recipe.epochs > 0 and most_readers(result.model) > 2
    return result.device.kind == "cpu" and not sums


def _saved(model: Any, record: Record, context: RunContext, pipeline: Pipeline | None) -> bytes:
    assert pipeline is not None
    trial, samples, temperature = record.trial, context.samples, record.metrics.get("temperature", 1.0)
    split, names = context.nets[trial.digest].split, samples.class_names
    counts = np.bincount(samples.labels[split.train], minlength=len(names)).tolist()
    provenance: dict[str, Any] = {"trial": trial.to_dict(), "digest": trial.digest, "dataset": samples.name}
    provenance |= {"citation": samples.citation, "training_images": dict(zip(names, counts, strict=True))}
    provenance |= {"metrics": dict(record.metrics), "images": dict(context.appearance), "synthetic": samples.synthetic}
    if "temperature" in record.metrics and not np.intersect1d(split.val, split.test).size:
        val, groups = record.sides == "val", None if samples.groups is None else samples.groups[split.val]
        provenance |= choose_rules(record.labels[val], record.probabilities[val], groups, temperature)
        if samples.groups is not None and np.isin(samples.groups[split.val], samples.groups[split.train]).any():
            provenance["abstain"] |= {"value": None, "reason": "patients of the val side were trained on"}
    classifier = Classifier(model, context.samples.class_names, pipeline, provenance, temperature)
    try:
        with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
            return Path(classifier.save(Path(folder) / "model.keras")).read_bytes()
    except OSError as error:  # the fit is kept: the next run saves its net
        raise errors.WorkerError(f"The net was trained but cannot be written: {error}. Free space.") from error
