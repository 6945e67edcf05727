"""Run one trial in this process: pipeline, fit, predictions and scores, as a Record."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from leukemia_dl.benchmark import records
from leukemia_dl.benchmark.baselines import CellMeasures, predict_baseline
from leukemia_dl.benchmark.inputs import Images, Samples
from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.datasets import Split, cache_dir
from leukemia_dl.errors import TimeLimitError, TrainingError, WorkerError
from leukemia_dl.evaluation.calibration import choose_temperature
from leukemia_dl.models.build import most_readers
from leukemia_dl.models.classifier import Classifier, predict_logits, softmax
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training import ComputeConfig, FeatureCache, FitResult, ModelCache, Recipe, Subset, fit
from leukemia_dl.training.loop import predict_batch_size

__all__ = ["OnProgress", "RunContext", "TrialOutput", "run_baseline", "run_trial"]

_TIMED_BATCHES = 4
# Folds and seeds of one backbone share a net, compiled once, for as long as this process lives.
_models = ModelCache()
_features = lru_cache(maxsize=1)(FeatureCache)
# Called with the trial, the epoch (0 as it begins, then from 1), the number of epochs and the row of the history.
OnProgress = Callable[[Trial, int, int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class RunContext:
    """Settings and data that all trials of backbones in a run share."""

    samples: Samples
    images: Mapping[int, Images]  # by size in pixels
    recipe: Recipe  # before it is adapted to a backbone
    compute: ComputeConfig
    callbacks: Any  # makes Keras callbacks, or None
    save_models: bool
    time_limit: float | None  # seconds of a trial, compared after every epoch
    store: Store | None  # with the folders of logs and checkpoints; None where the trials do not see one
    scratch: Path | None  # folder in the store for files of this run

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called, maybe by another process: fits end after their epoch, and none begins."""
        return self.scratch is not None and (self.scratch / "stop").exists()

    def stop(self) -> None:
        """Ask every process of the run to stop."""
        if self.scratch is not None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            (self.scratch / "stop").touch()


@dataclass(frozen=True)
class TrialOutput:
    """The record of a trial and the file of its net, if that is kept; no record if the trial was stopped."""

    trial: Trial
    record: Record | None
    model: bytes | None = None


def run_baseline(planned: PlannedTrial, samples: Samples, measures: Callable[[], CellMeasures]) -> Record:
    """Run the trial of a baseline and return its record; one that raises has status "failed"."""
    name, split, started = planned.trial.backbone, planned.split, time.perf_counter()
    record = records.blank_record(planned, samples)
    try:
        found, reason = predict_baseline(name, samples.labels, split, len(samples.class_names), measures)
        if reason:
            record = replace(record, status="not_applicable", probabilities=found, message=reason)
        else:
            fitted = records.temperature_of_val(record, split, samples, found)
            record = records.scored_record(record, found, None, fitted)
    except Exception as error:
        return records.failed_record(record, error, started)
    return replace(record, timings=records.environment(started))


def run_trial(planned: PlannedTrial, context: RunContext, on_progress: OnProgress) -> TrialOutput:
    """Run the trial of a backbone, write its log, and return its record and the file of the trained net.

    A trial that raises becomes a record with status "failed".

    Raises:
        KeyboardInterrupt: If it is interrupted, unless the run is being stopped.
    """
    trial, split, started = planned.trial, planned.split, time.perf_counter()
    if context.stopped:
        return TrialOutput(trial, None)
    blank = records.blank_record(planned, context.samples)
    logs = context.store.logs(trial) if context.store else None
    _log(logs, f"{trial.folder} begins in process {os.getpid()}")

    def on_epoch(epoch: int, row: Mapping[str, Any]) -> None:
        _log(logs, ", ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        on_progress(trial, epoch, blank.row["epochs"], row)
        # The checkpoint of this epoch has just been written.
        if context.stopped:
            raise KeyboardInterrupt
        if context.time_limit is not None and time.perf_counter() - started > context.time_limit:
            raise TimeLimitError(f"It took longer than the limit of {context.time_limit:g} s.")

    try:
        pipeline = context.images[planned.size].pipeline(split)
        used = np.unique(np.concatenate([split.train, split.val, split.test]))
        images = context.images[planned.size].after(pipeline, used)
        result = _fit(planned, context, images, on_epoch)
        record = _predicted(blank, result, split, context, images.subset(np.concatenate([split.val, split.test])))
        record = replace(record, timings={**records.environment(started), **record.timings})
        output = TrialOutput(trial, record, _saved(result.model, record, context, pipeline))
    except KeyboardInterrupt:
        _log(logs, "stops: KeyboardInterrupt")
        if not context.stopped:
            raise
        return TrialOutput(trial, None)
    except (Exception, SystemExit) as error:
        output = TrialOutput(trial, records.failed_record(blank, error, started))
    _log(logs, "ends")
    return output


def _log(folder: Path | None, text: str) -> None:
    """Append a line with the time (UTC) to a trial's log; a log that cannot be written stops no trial."""
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.txt").open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")


def _fit(planned: PlannedTrial, context: RunContext, images: Images, on_epoch: Callable[..., None]) -> FitResult:
    trial, split, samples, store = planned.trial, planned.split, context.samples, context.store
    assert planned.spec is not None
    return fit(
        planned.spec,
        images.subset(split.train),
        samples.labels[split.train],
        len(samples.class_names),
        context.recipe,
        seed=trial.seed or 0,
        groups=samples.groups_of(split.train),
        validation=(images.subset(split.val), samples.labels[split.val]),
        compute=context.compute,
        checkpoints=store.checkpoints(trial) if store else None,
        callbacks=context.callbacks,
        folder=store.logs(trial) if store else None,
        features=_features(cache_dir() / "features") if trial.weights else None,
        models=_models,
        on_epoch=on_epoch,
    )


def _predicted(blank: Record, result: FitResult, split: Split, context: RunContext, images: Subset) -> Record:
    """Return the scored record of a fit, with predictions of the val and test sides."""
    samples, device, history, clock = context.samples, result.device, result.history, time.perf_counter()
    probabilities = softmax(result.logits(images))
    timed, seconds = len(images), time.perf_counter() - clock
    if not result.recipe.epochs:
        # The features may have come from a cache: time some images through the whole net, after one batch to warm up.
        batch = predict_batch_size(result.recipe)
        predict_logits(result.model, images[:batch], batch)
        pixels, clock = images[: _TIMED_BATCHES * batch], time.perf_counter()
        predict_logits(result.model, pixels, batch)
        timed, seconds = len(pixels), time.perf_counter() - clock
    fitted: tuple[float, str] | None = None
    if result.out_of_fold is not None:
        train, groups = samples.labels[split.train], samples.groups_of(split.train)
        fitted = choose_temperature(train, softmax(result.out_of_fold), groups)
    elif not result.stopped:
        fitted = records.temperature_of_val(blank, split, samples, probabilities)
    row = {
        "epochs": len(history),
        "batch_size": result.recipe.batch_size,
        "parameters": int(result.model.count_params()),
        "backend": device.backend,
        "device": device.kind,
        "precision": device.dtype_policy,
        "threads": device.threads,
        "deterministic": _repeatable(result),
        "flags": records.joined_flags([blank.row["flags"], *result.notes, _names_of(context.callbacks)]),
    }
    timings = {
        "prepare_seconds": result.prepare_seconds,
        # After an interruption the epochs before it count too.
        "fit_seconds": max(result.seconds, float(history["seconds"].sum())) - result.prepare_seconds,
        "predict_seconds": seconds * len(images) / timed,
        "predict_images_per_second": timed / seconds,
        "device_name": device.name,
    }
    record = replace(blank, row={**blank.row, **row}, timings=timings, history=history)
    views = result.logits_over_symmetries(images) if result.recipe.tta else None
    return records.scored_record(record, probabilities, views, fitted)


def _saved(model: Any, record: Record, context: RunContext, pipeline: Pipeline) -> bytes | None:
    """Return the file of a trained net; None if nets are not kept."""
    if not context.save_models:
        return None
    samples = context.samples
    provenance = {"trial": record.trial.to_dict(), "digest": record.trial.digest, "dataset": samples.name}
    provenance |= {"metrics": dict(record.metrics), "images": dict(samples.appearances)}
    temperature = record.metrics.get("temperature", 1.0)
    classifier = Classifier(model, samples.class_names, pipeline, provenance, temperature)
    try:
        scratch = context.scratch if context.scratch and context.scratch.is_dir() else None
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return Path(classifier.save(Path(folder) / "model.keras")).read_bytes()
    except OSError as error:  # the fit is kept: the next run saves its net
        raise WorkerError(f"The net was trained but cannot be written: {error}. Free space.") from error
    except Exception as error:  # a layer of a plugin without a usable get_config
        raise TrainingError(
            f"The net was trained but cannot be saved: {error}. Correct its layers, or run with save_models=False."
        ) from error


def _repeatable(result: FitResult) -> bool:
    """Return whether equal fits give equal bits: TensorFlow adds three gradients or more in an order of its own."""
    sums = result.device.backend == "tensorflow" and result.recipe.epochs > 0 and most_readers(result.model) > 2
    return result.device.kind == "cpu" and not sums


def _names_of(callbacks: Any) -> str:
    if callbacks is None:
        return ""
    found = [type(item) for item in callbacks] if isinstance(callbacks, list) else [callbacks]
    return f"callbacks: {', '.join(getattr(item, '__name__', type(item).__name__) for item in found)}"
