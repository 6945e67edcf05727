"""Running one trial, in this process: from a split and pixels to a Record."""

from __future__ import annotations

import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.benchmark.baselines import CellMeasures, predict_baseline
from leukemia_dl.benchmark.environment import environment, temporary_prefix
from leukemia_dl.benchmark.frames import metrics_of
from leukemia_dl.benchmark.inputs import Images, Samples
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.datasets import Split, cache_dir
from leukemia_dl.errors import TimeLimitError
from leukemia_dl.evaluation.calibration import choose_temperature
from leukemia_dl.models.build import most_readers
from leukemia_dl.models.classifier import Classifier, predict_logits, softmax
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import installed_version
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.backends import ComputeConfig
from leukemia_dl.training.callbacks import CallbackFactory
from leukemia_dl.training.features import FeatureCache
from leukemia_dl.training.fit import FitResult, fit
from leukemia_dl.training.model_cache import ModelCache
from leukemia_dl.training.phases import predict_batch_size
from leukemia_dl.training.recipe import Recipe

__all__ = ["Listener", "Shared", "Task", "failed_record", "run_baseline", "run_task"]

_TIMED_BATCHES = 4
# Folds and seeds of one backbone share a net, compiled once, for as long as this process lives.
_models = ModelCache()
_features = lru_cache(maxsize=1)(FeatureCache)


class Listener(Protocol):
    """Who is told how far a fit is."""

    def step(self, epoch: int, step: int, steps: int, epochs: int) -> None:
        """Hear of a batch; all count from 0."""

    def epoch(self, epoch: int, epochs: int, row: Mapping[str, Any]) -> None:
        """Hear of an epoch's end, from 1, with its row of the history."""


@dataclass(frozen=True)
class Shared:
    """What all trials of backbones in a grid have in common.

    Attributes:
        samples: The data set's table.
        images: By size in pixels.
        recipe: As it was asked for, for all backbones.
        compute: What each trial may use of its machine.
        callbacks: Makes Keras callbacks, or None.
    """

    samples: Samples
    images: Mapping[int, Images]
    recipe: Recipe
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    callbacks: CallbackFactory | None = None


@dataclass(frozen=True)
class Task:
    """A backbone's trial, with what is needed to run it in any process.

    Attributes:
        size: Side of the images in pixels.
        checkpoints: Folder for the state of the unfinished fit; None for none.
        logs: Folder of its log, where callbacks may write; None for none.
        save_model: Whether the trained net is wanted.
        time_limit: Seconds, or None; looked at after every epoch.
        stop_file: Where this file is, the fit stops after the epoch, with KeyboardInterrupt; or None.
    """

    trial: Trial
    split: Split
    spec: BackboneSpec
    size: int
    checkpoints: Path | None = None
    logs: Path | None = None
    save_model: bool = True
    time_limit: float | None = None
    stop_file: Path | None = None


@dataclass(frozen=True)
class _Outcome:
    probabilities: NDArray[np.float64]
    row: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    views: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    temperature: tuple[float, str] | None = None
    stopped: bool = False
    model: Any = None
    reason: str = ""


def run_baseline(trial: Trial, split: Split, samples: Samples, measures: Callable[[], CellMeasures]) -> Record:
    """Run the trial of a baseline and return its record; one that raises has status "failed"."""

    def run() -> _Outcome:
        found, reason = predict_baseline(trial.backbone, samples.labels, split, len(samples.class_names), measures)
        return _Outcome(found, reason=reason)

    return _recorded(_blank(trial, split, samples, None), split, samples, run)[0]


def run_task(task: Task, shared: Shared, listener: Listener) -> tuple[Record, bytes | None]:
    """Run the trial of a backbone and return its record and, if it is wanted, the file of the trained net.

    A trial that raises becomes a record with status "failed"; KeyboardInterrupt passes through.
    """
    if task.stop_file is not None and task.stop_file.exists():
        raise KeyboardInterrupt
    images = shared.images[task.size]
    blank = _blank(task.trial, task.split, shared.samples, shared.recipe.for_backbone(task.spec))
    fitted, started = list[Pipeline](), time.perf_counter()

    def run() -> _Outcome:
        fitted.append(images.pipeline(task.split))
        return _backbone(task, shared, images, fitted[0], listener)

    record, outcome = _recorded(blank, task.split, shared.samples, run)
    if outcome is None or not task.save_model:
        return record, None
    provenance = {"trial": task.trial.to_dict(), "digest": task.trial.digest, "dataset": shared.samples.name}
    provenance |= {"metrics": dict(record.metrics), "images": dict(shared.samples.looks)}
    temperature = record.metrics.get("temperature", 1.0)
    classifier = Classifier(outcome.model, shared.samples.class_names, fitted[0], provenance, temperature)
    try:
        with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
            return record, Path(classifier.save(Path(folder) / "model.keras")).read_bytes()
    except Exception as error:  # a layer of a plugin that cannot say what it is
        message = f"The net was trained but cannot be saved: {error}. Mend its layers, or run with save_models=False."
        return _failed(blank, type(error).__name__, message, traceback.format_exc(), started), None


def failed_record(task: Task, shared: Shared, failure: tuple[str, str, str], started: float) -> Record:
    """Return the record of a trial that failed outside `run_task`: `failure` is exception, message and traceback."""
    blank = _blank(task.trial, task.split, shared.samples, shared.recipe.for_backbone(task.spec))
    failed = _failed(blank, *failure, started)
    # That of this process says nothing of the one that ran it.
    return replace(failed, timings={**failed.timings, "peak_memory_gib": None})


def _failed(blank: Record, exception: str, message: str, trace: str, started: float) -> Record:
    return replace(
        blank,
        status="failed",
        timings=environment(started),
        exception=exception,
        message=" ".join(_printable(message).split()),
        traceback=_printable(trace or message),
    )


def _printable(text: str) -> str:
    """Return a text that every file and terminal takes: no colours, and halves of characters written as such."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).encode("utf-8", "backslashreplace").decode("utf-8")


def _recorded(
    blank: Record, split: Split, samples: Samples, run: Callable[[], _Outcome]
) -> tuple[Record, _Outcome | None]:
    """Run, score, and return the full record; without an outcome if that failed."""
    started = time.perf_counter()
    try:
        outcome, scores, notes = run(), dict[str, Any](), list[str]()
        if not outcome.reason:
            fitted = outcome.temperature or _temperature_of_val(blank, split, samples, outcome)
            temperature, why = fitted or (None, "")
            notes += [f"temperature stays 1: {why}"] if why else []
            scores = metrics_of(blank.labels, blank.sides, outcome.probabilities, outcome.views, temperature)
    except (Exception, SystemExit) as error:
        return _failed(blank, type(error).__name__, str(error), traceback.format_exc(), started), None
    return replace(
        blank,
        status="not_applicable" if outcome.reason else "ok",
        row={**blank.row, **outcome.row, "flags": _joined([blank.row["flags"], *outcome.notes, *notes])},
        timings={**environment(started), **outcome.timings},
        history=outcome.history,
        probabilities=outcome.probabilities,
        message=outcome.reason,
        **scores,
    ), outcome


def _backbone(task: Task, shared: Shared, images: Images, pipeline: Pipeline, listener: Listener) -> _Outcome:
    split, labels, groups = task.split, shared.samples.labels, shared.samples.groups
    epochs = shared.recipe.for_backbone(task.spec).total_epochs
    deadline = None if task.time_limit is None else time.monotonic() + task.time_limit

    def on_epoch(epoch: int, row: dict[str, Any]) -> None:
        listener.epoch(epoch, epochs, row)
        # Here the state of this epoch has just been written down.
        if task.stop_file is not None and task.stop_file.exists():
            raise KeyboardInterrupt
        if deadline is not None and time.monotonic() > deadline:
            raise TimeLimitError(f"It took longer than the limit of {task.time_limit:g} s.")

    train, val, predict = images.sides(pipeline, split.train, split.val, np.concatenate([split.val, split.test]))
    groups = None if groups is None else groups[split.train]
    features = _features(cache_dir() / "features") if shared.recipe.for_backbone(task.spec).weights else None
    result = fit(
        task.spec, train, labels[split.train], len(shared.samples.class_names), shared.recipe,
        seed=task.trial.seed or 0, groups=groups, validation=(val, labels[split.val]), compute=shared.compute,
        checkpoints=task.checkpoints, callbacks=shared.callbacks, folder=task.logs, features=features, models=_models,
        on_step=lambda epoch, step, steps: listener.step(epoch, step, steps, epochs), on_epoch=on_epoch,
    )  # fmt: skip
    clock = time.perf_counter()
    logits = result.logits(predict)
    timed, seconds = len(predict), time.perf_counter() - clock
    if not result.recipe.epochs:
        # Those came from features that were there: a few images are sent all the way, after one batch to warm up.
        batch = predict_batch_size(result.recipe)
        predict_logits(result.model, predict[:batch], batch)
        pixels, clock = predict[: _TIMED_BATCHES * batch], time.perf_counter()
        predict_logits(result.model, pixels, batch)
        timed, seconds = len(pixels), time.perf_counter() - clock
    views = result.logits_over_symmetries(predict) if result.recipe.tta else None
    temperature = None
    if result.out_of_fold is not None:
        temperature = choose_temperature(labels[split.train], softmax(result.out_of_fold), groups)
    device, history = result.device, result.history
    given = shared.callbacks
    named = [type(item).__name__ for item in given] if isinstance(given, list) else [getattr(given, "__qualname__", "")]
    notes = result.notes if given is None else (*result.notes, f"callbacks: {', '.join(named) or type(given).__name__}")
    row = {
        "epochs": len(history), "batch_size": result.recipe.batch_size, "parameters": int(result.model.count_params()),
        "backend": device.backend, "device": device.kind, "precision": device.dtype_policy, "threads": device.threads,
        "deterministic": _repeatable(result),
    }  # fmt: skip
    timings = {
        "prepare_seconds": result.prepare_seconds,
        # After an interruption the epochs before it count too.
        "fit_seconds": max(result.seconds, float(result.history["seconds"].sum())) - result.prepare_seconds,
        "predict_seconds": seconds * len(predict) / timed,
        "predict_images_per_second": timed / seconds,
        "device_name": device.name,
    }
    return _Outcome(
        softmax(logits), row, timings, history, views, notes, temperature, stopped=result.stopped, model=result.model
    )


def _repeatable(result: FitResult) -> bool:
    """Return whether equal fits give equal bits: TensorFlow adds three gradients or more in an order of its own."""
    sums = result.device.backend == "tensorflow" and result.recipe.epochs > 0 and most_readers(result.model) > 2
    return result.device.kind == "cpu" and not sums


def _temperature_of_val(blank: Record, split: Split, samples: Samples, outcome: _Outcome) -> tuple[float, str] | None:
    """Return the temperature that fits the val side best; None if val is the test side, or was used to choose."""
    if np.intersect1d(split.val, split.test).size or outcome.stopped:
        return None
    groups = None if samples.groups is None else samples.groups[split.val]
    val = blank.sides == "val"
    return choose_temperature(blank.labels[val], outcome.probabilities[val], groups)


def _blank(trial: Trial, split: Split, samples: Samples, recipe: Recipe | None) -> Record:
    """Return what is known of a trial before it runs."""
    predict = np.concatenate([split.val, split.test])
    sides = np.array(["val"] * len(split.val) + ["test"] * len(split.test), dtype=np.str_)
    row = _row(trial, split, samples, recipe)
    return Record(trial, "ok", row=row, sides=sides, samples=samples.ids[predict], labels=samples.labels[predict])


def _row(trial: Trial, split: Split, samples: Samples, recipe: Recipe | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "dataset": samples.name,
        "synthetic": samples.synthetic,
        "protocol": split.protocol,
        "fold": split.fold,
        "seed": trial.seed,
        "recipe": recipe.name if recipe else None,
        "image_size": recipe.image_size if recipe else None,
        "epochs": recipe.total_epochs if recipe else None,
        "batch_size": recipe.batch_size if recipe else None,
        "weights": (trial.weights or "random") if recipe else None,
        "tta": "none" if recipe else None,
    }
    for side in ("train", "val", "test"):
        index = getattr(split, side)
        row[f"n_{side}"] = len(index)
        row[f"groups_{side}"] = None if samples.groups is None else len(np.unique(samples.groups[index]))
    row["dropped"] = split.dropped
    row |= {f"leaked_{what}": count for what, count in split.leaked.items()}
    row["guarantees"] = "; ".join(sorted(split.guarantees))
    kept = trial.pipeline is None or Pipeline.from_dict(dict(trial.pipeline)).keeps_scale
    row["flags"] = _joined([*split.flags, "" if kept else "cells are cropped to: their size is not seen"])
    row |= dict.fromkeys(("parameters", "backend", "device", "precision", "threads"))
    row["deterministic"] = True
    return row | {"plugin": trial.plugin, "plugin_version": trial.plugin_version or installed_version(trial.plugin)}


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(part for part in parts if part)
