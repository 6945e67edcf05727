"""One fit: a backbone, training images, a recipe and a seed in; a trained model and its learning curves out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import DataError, OutOfMemoryError, SettingsError
from leukemia_dl.identity import digest, named_seed
from leukemia_dl.models.build import build_model, weights_identity
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.training.backends import Device, prepare
from leukemia_dl.training.batchnorm import batchnorm_layers
from leukemia_dl.training.callbacks import CallbackFactory, FitContext, load_factory, make_callbacks
from leukemia_dl.training.folds import inner_folds
from leukemia_dl.training.phases import Side, Training, predict_batch_size
from leukemia_dl.training.recipe import Recipe

__all__ = ["FitResult", "fit"]

OnStep = Callable[[int, int, int], None]
OnEpoch = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit leaves.

    Attributes:
        model: Trained `keras.Model`, raw RGB to logits.
        recipe: The settings as they were for this backbone, with the batch size that memory allowed.
        history: A row per epoch: `epoch` (from 1), `phase` ("head" or "all"), `loss` and `accuracy` (running, on
            training images as augmented, the loss as smoothed and weighted), `val_loss` and `val_accuracy` where there
            is a val side (plain), `seconds`; where an epoch was selected, `inner_val_loss`, the curve it was chosen by.
        device: Where it ran.
        batchnorm_layers: How many had their statistics re-estimated.
        notes: What differs from what was asked for, in words.
        seconds: Build, training and validation together; the first step, with its compilation, is in it.
        stopped: Whether a callback ended it early.
        out_of_fold: Logits (n, classes) of the training images, each by a head that did not see its group; None unless
            the recipe trains a pooled head alone.
    """

    model: Any
    recipe: Recipe
    history: pd.DataFrame
    device: Device
    batchnorm_layers: int
    notes: tuple[str, ...]
    seconds: float
    stopped: bool = False
    out_of_fold: NDArray[np.float64] | None = None


def fit(
    spec: BackboneSpec,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: int,
    recipe: Recipe,
    *,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    validation: Side | None = None,
    device: str = "auto",
    threads: int | None = None,
    checkpoints: Path | None = None,
    callbacks: CallbackFactory | None = None,
    folder: Path | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> FitResult:
    """Train a backbone with a fresh head.

    Args:
        spec: The backbone.
        images: Training images, uint8 (n, size, size, 3), RGB; never changed.
        labels: Class indices (n,), 0 <= label < classes.
        classes: Number of classes.
        recipe: The settings.
        seed: Of weights, order, augmentation and dropout. On one CPU model the result is bitwise repeatable.
        groups: A number per image (n,): images of one group stay together in inner folds. None if nothing is known.
        validation: Images and labels that are watched after each epoch, and never used.
        device: "auto", "cpu", "gpu" or "gpu:1"; one per process on TensorFlow.
        threads: That one operation on the CPU may use; None for as many as there are cores. Equal results to the bit
            need equal threads. A backend that has already started keeps what it has.
        checkpoints: Folder for the state after each epoch. A fit of the same settings, data and seed goes on from what
            it finds there, to the same bits on a CPU. The folder is left; the caller removes it when the result is
            safe.
        callbacks: Makes further Keras callbacks for each phase, see `FitContext`; None for `recipe.callbacks`.
        folder: Where these may write.
        on_step: Called with (epoch, step, steps), from 0, as a batch is handed out; maybe from another thread.
        on_epoch: Called with the epoch, from 1, and its row of the history; while an epoch is being selected the row
            has the key `inner_fold`, such as "2/5".

    Raises:
        DataError: If images and labels do not fit together or to the recipe.
        SettingsError: If the image size is below the backbone's minimum, or an epoch cannot be selected.
        OutOfMemoryError: If memory runs out; it names the batch size.
        BackendError: If there is no such device.
        TrainingError: If the loss stops being a number.
    """
    asked, recipe = recipe, recipe.for_backbone(spec)
    notes = [f"no {asked.weights} weights: from random ones"] if asked.weights and not recipe.weights else []
    if not recipe.weights and not recipe.epochs:
        notes.append("a head on features of random weights")
    _check((images, labels), classes, recipe, groups)
    if validation is not None:
        _check(validation, classes, recipe)
    started = time.perf_counter()
    found = prepare(recipe.precision, device, threads)
    factory = load_factory(recipe.callbacks if callbacks is None else callbacks)
    once = _Fit(spec, classes, seed, found, checkpoints, factory, folder, on_step, on_epoch)
    while True:
        try:
            stop, curves = once.select_epoch(recipe, (images, labels), groups)
            training = once.train(recipe, (images, labels), validation, stop)
            break
        except OutOfMemoryError:
            if not recipe.halve_batch or recipe.batch_size == 1:
                raise
            half = recipe.batch_size // 2
            notes.append(f"out of memory with batches of {recipe.batch_size}: {half}")
            recipe = dataclasses.replace(recipe, batch_size=half)
    history = pd.DataFrame(training.rows)
    if curves is not None:
        history["inner_val_loss"] = curves.mean(axis=0)[history["epoch"] - 1]
        notes.append(f"epoch {stop} of {recipe.total_epochs} selected on {len(curves)} inner folds")
    stopped = bool(history["epoch"].iloc[-1] < stop)
    if stopped:
        notes.append(f"stopped by a callback after epoch {history['epoch'].iloc[-1]} of {stop}")
    out_of_fold = None
    if not recipe.epochs and recipe.head == "pooled":
        out_of_fold = once.out_of_fold(recipe, training, labels, groups)
    count = len(batchnorm_layers(training.model)) if recipe.epochs else 0
    seconds = time.perf_counter() - started
    return FitResult(training.model, recipe, history, found, count, tuple(notes), seconds, stopped, out_of_fold)


@dataclass(frozen=True, eq=False)
class _Fit:
    """What stays the same in the one or several trainings of a fit."""

    spec: BackboneSpec
    classes: int
    seed: int
    device: Device
    checkpoints: Path | None
    callbacks: CallbackFactory | None
    folder: Path | None
    on_step: OnStep | None
    on_epoch: OnEpoch | None

    def train(self, recipe: Recipe, train: Side, validation: Side | None, stop: int, inner: str = "") -> Training:
        """Build and train a net; `inner` names the fold, "2/5", of a training that only helps to choose."""
        import keras

        keras.utils.set_random_seed(named_seed(self.seed, "fit"))
        model = build_model(
            self.spec,
            int(recipe.image_size),
            self.classes,
            weights=recipe.weights,
            head=recipe.head_settings,
            scaling=None if recipe.scaling == "backbone" else recipe.scaling,
            dtype_policy=self.device.dtype_policy,
        )
        checkpoint = None
        if self.checkpoints is not None:
            name = f"inner-{inner.split('/')[0]}" if inner else "fit"
            checkpoint = (self.checkpoints / f"{name}.npz", self._identity(model, recipe, train, validation, stop))
        training = Training(
            model,
            recipe,
            train,
            validation,
            self.classes,
            self.seed,
            self.device,
            stop,
            inner=bool(inner),
            checkpoint=checkpoint,
            on_step=self.on_step,
            on_epoch=self._told(inner),
            callbacks=None if inner else self._callbacks(recipe),
        )
        training.run()
        return training

    def select_epoch(
        self, recipe: Recipe, train: Side, groups: NDArray[np.int64] | None
    ) -> tuple[int, NDArray[np.float64] | None]:
        """Return how many epochs to train, and, if that was selected, the validation losses (folds, epochs)."""
        if not recipe.select_epoch:
            return recipe.total_epochs, None
        images, labels = train
        folds = inner_folds(labels, groups, self.seed)
        if not folds:
            raise SettingsError(
                "select_epoch needs two groups (subjects) of each class in the training side at least, to hold one out."
            )
        curves = []
        for number, (rows, held) in enumerate(folds, 1):
            sides = ((images[rows], labels[rows]), (images[held], labels[held]))
            training = self.train(recipe, *sides, recipe.total_epochs, inner=f"{number}/{len(folds)}")
            curves.append([row["val_loss"] for row in training.rows])
        losses = np.array(curves)
        first = recipe.head_epochs if recipe.epochs else 0
        return first + int(losses.mean(axis=0)[first:].argmin()) + 1, losses

    def out_of_fold(
        self, recipe: Recipe, training: Training, labels: NDArray[np.int64], groups: NDArray[np.int64] | None
    ) -> NDArray[np.float64] | None:
        """Return the logits of heads that did not see an image's group; None where no group can be left out."""
        folds = inner_folds(labels, groups, self.seed)
        if not folds:
            return None
        logits = np.empty((len(labels), self.classes))
        for rows, held in folds:
            part = training.head_trained_on(rows)
            logits[held] = predict_logits(part, training.head_features()[held], predict_batch_size(recipe))
        return logits

    def _identity(self, model: Any, recipe: Recipe, train: Side, validation: Side | None, stop: int) -> str:
        """Return what two fits have in common that may go on from each other's checkpoints."""
        import keras

        versions = [installed_version(name) for name in (DISTRIBUTION, "keras", keras.backend.backend())]
        return digest(
            {
                "backbone": self.spec.name,
                "recipe": recipe.to_dict() | {"weights": weights_identity(self.spec, recipe.weights)},
                "classes": self.classes,
                "seed": self.seed,
                "stop": stop,
                "net": _layers(model),
                "sides": [_pixels(*side) for side in (train, validation) if side is not None],
                "backend": [keras.backend.backend(), self.device.kind, self.device.dtype_policy, *versions],
                "threads": self.device.threads if self.device.kind == "cpu" else None,
            }
        )

    def _told(self, inner: str) -> OnEpoch | None:
        told = self.on_epoch
        if told is None or not inner:
            return told
        return lambda epoch, row: told(epoch, row | {"inner_fold": inner})

    def _callbacks(self, recipe: Recipe) -> Callable[[str], list[Any]] | None:
        factory = self.callbacks
        if factory is None:
            return None
        return lambda phase: make_callbacks(factory, FitContext(self.spec.name, recipe, self.seed, phase, self.folder))


def _layers(model: Any) -> list[Any]:
    """Return what a net is made of, without names, which depend on how many nets this process has built before."""
    made: list[Any] = []
    for layer in model.layers:
        try:
            settings = {key: value for key, value in layer.get_config().items() if key != "name"}
            text = json.dumps(settings, sort_keys=True, default=lambda value: type(value).__name__)
        except Exception:  # a layer of a plugin that cannot say what it is
            text = ""
        made.append([type(layer).__name__, text, [[int(size) for size in weight.shape] for weight in layer.weights]])
    return made


def _pixels(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[Any]:
    said = hashlib.sha256(np.ascontiguousarray(labels).tobytes())
    for start in range(0, len(images), 1024):
        said.update(np.ascontiguousarray(images[start : start + 1024]).data)
    return [*images.shape, said.hexdigest()]


def _check(side: Side, classes: int, recipe: Recipe, groups: NDArray[np.int64] | None = None) -> None:
    images, labels = side
    shape = (recipe.image_size, recipe.image_size, 3)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise DataError(
            f"Images must be uint8 of shape (n, {recipe.image_size}, {recipe.image_size}, 3), n > 0. "
            f"Received: {images.dtype} of shape {images.shape}."
        )
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"Labels must be {len(images)} class indices from 0 to {classes - 1}. Received: shape {labels.shape}, "
            f"from {labels.min() if labels.size else 'none'} to {labels.max() if labels.size else 'none'}."
        )
    if groups is not None and np.shape(groups) != labels.shape:
        raise DataError(
            f"groups must be a number for each of {len(images)} images. Received: shape {np.shape(groups)}."
        )
