"""One fit: from a backbone, training images, a recipe and a seed to a trained model and its learning curves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import DataError, OutOfMemoryError, SettingsError
from leukemia_dl.models.classifier import logits_over_symmetries, predict_logits
from leukemia_dl.models.heads import split_at_features
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.training.backends import ComputeConfig, Device, prepare
from leukemia_dl.training.batches import Subset
from leukemia_dl.training.batchnorm import batchnorm_layers
from leukemia_dl.training.callbacks import CallbackFactory, FitContext, load_factory, make_callbacks
from leukemia_dl.training.features import FeatureCache
from leukemia_dl.training.folds import inner_folds
from leukemia_dl.training.loop import Stopwatch
from leukemia_dl.training.model_cache import ModelCache
from leukemia_dl.training.phases import HEAD_BATCH, FitJob, Images, Side, Training, predict_batch_size
from leukemia_dl.training.recipe import Recipe

__all__ = ["FitResult", "fit"]

# As shares of the loss of guessing: a net with a final training loss above the first has learned nothing; a fall over
# the last two epochs of more than the second is no convergence.
_GUESSING, _FALLING = 0.97, 0.05


@dataclass(frozen=True, eq=False)
class FitResult:
    """The outcome of a fit.

    Attributes:
        model: Trained `keras.Model`, raw RGB to logits.
        recipe: The settings for this backbone, with the batch size that memory allowed.
        history: A row per epoch: `epoch` (from 1), `phase` ("head" or "full"), `loss` and `accuracy` (running, on
            training images as augmented, the loss as smoothed and weighted), `val_loss` and `val_accuracy` if there is
            a val side (plain), `seconds`; if an epoch was selected, `inner_val_loss`, the curve it was chosen by.
        device: Device that it ran on.
        batchnorm_layers: Number of layers with re-estimated statistics.
        notes: Differences from the request, in words.
        seconds: Build, training and validation together.
        prepare_seconds: Part of them for building and compiling, up to the end of the first step, and for features.
        stopped: Whether a callback ended it early.
        out_of_fold: Logits (n, classes) of the training images, each by a head that did not see its group; None unless
            the recipe trains a pooled head alone.
        features: Cache of the features, for `logits`.
    """

    model: Any
    recipe: Recipe
    history: pd.DataFrame
    device: Device
    batchnorm_layers: int
    notes: tuple[str, ...]
    seconds: float
    prepare_seconds: float = 0.0
    stopped: bool = False
    out_of_fold: NDArray[np.float64] | None = None
    features: FeatureCache | None = None

    def logits(self, images: Images) -> NDArray[np.float64]:
        """Return logits (n, classes) of uint8 `images` (n, size, size, 3), from cached features if there are any."""
        if self.features is None or self.recipe.epochs:
            return predict_logits(self.model, images, predict_batch_size(self.recipe))
        features, forms, head = self._frozen(self.features, images)
        return predict_logits(head, Subset.of(features, np.arange(len(images)) * forms), HEAD_BATCH)

    def logits_over_symmetries(self, images: Images) -> NDArray[np.float64]:
        """Return the logits (8, n, classes) of the eight symmetries of each of the `images`."""
        if self.features is None or self.recipe.epochs or not self.recipe.head_symmetries:
            return logits_over_symmetries(self.model, images, predict_batch_size(self.recipe))
        features, forms, head = self._frozen(self.features, images)
        return predict_logits(head, features, HEAD_BATCH).reshape(len(images), forms, -1).swapaxes(0, 1)

    def _frozen(self, cache: FeatureCache, images: Images) -> tuple[Subset, int, Any]:
        extractor, head = split_at_features(self.model)
        forms = 8 if self.recipe.head_symmetries else 1
        return cache.read(extractor, images, self.device, predict_batch_size(self.recipe), forms), forms, head


def fit(
    spec: BackboneSpec,
    images: Images,
    labels: NDArray[np.int64],
    classes: int,
    recipe: Recipe,
    *,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    validation: Side | None = None,
    compute: ComputeConfig | None = None,
    checkpoints: Path | None = None,
    callbacks: CallbackFactory | Sequence[Any] | None = None,
    folder: Path | None = None,
    features: FeatureCache | None = None,
    models: ModelCache | None = None,
    on_epoch: Callable[[int, dict[str, Any]], None] | None = None,
) -> FitResult:
    """Train a backbone with a new head, and return the net with its learning curves.

    Args:
        spec: The backbone.
        images: Training images, uint8 (n, size, size, 3), RGB, or a `Subset` of such; never changed.
        labels: Class indices (n,), 0 <= label < classes.
        classes: Number of classes.
        recipe: The settings.
        seed: Seed of weights, order, augmentation and dropout. On one CPU model the result is bitwise repeatable.
        groups: A number per image (n,): images of one group stay together in inner folds.
        validation: Images and labels that are watched after each epoch, and never used.
        compute: Device and threads.
        checkpoints: Folder for the state after each epoch, from which a fit of the same settings, data and seed
            continues, to the same bits on a CPU. The caller removes it when the result is safe.
        callbacks: Keras callbacks, or a function of a `FitContext` that makes them; None for `recipe.callbacks`.
        folder: Folder that callbacks may write to.
        features: Cache of features, shared with other fits.
        models: Cache of the built and compiled net. The next fit of the same backbone and recipe uses the net again, so
            that the model of this result changes then.
        on_epoch: Called with the epoch, from 1, and its row of the history; while an epoch is being selected the row
            has the key `inner_fold`, such as "2/5".

    Raises:
        DataError: If images and labels do not fit together or to the recipe.
        SettingsError: If the image size is below the backbone's minimum, or an epoch cannot be selected.
        WeightsError, PluginError: As `leukemia_dl.models.build_model`.
        OutOfMemoryError: If memory runs out; it names the batch size.
        BackendError: If there is no such device.
        TrainingError: If the loss stops being a number.
    """
    asked, recipe = recipe, recipe.for_backbone(spec)
    _check((images, labels), classes, recipe, groups)
    _check(validation or (images, labels), classes, recipe)
    started, preparing = time.perf_counter(), Stopwatch()
    with preparing:
        device = prepare(recipe.precision, compute)
    factory, notes = load_factory(recipe.callbacks if callbacks is None else callbacks), list[str]()
    models, features = models or ModelCache(), features or FeatureCache()
    job = FitJob(
        spec, recipe, classes, seed, device, models, features, checkpoints, {}, on_epoch, preparing
    )  # fmt: skip
    while True:
        job = dataclasses.replace(job, recipe=recipe, callbacks=_made_callbacks(factory, spec, recipe, seed, folder))
        try:
            training, curves, out_of_fold = _trained(job, (images, labels), groups, validation)
            break
        except Exception as error:
            models.clear()
            if not _is_out_of_memory(error):
                raise
            if not recipe.halve_batch or recipe.batch_size == 1:
                raise _out_of_memory(device.name, spec.name, recipe) from error
            notes.append(f"out of memory with batches of {recipe.batch_size}: {recipe.batch_size // 2}")
            recipe = dataclasses.replace(recipe, batch_size=recipe.batch_size // 2)
        except BaseException:
            models.clear()  # its variables may be gone, if a step was interrupted
            raise
    history, stop, model = pd.DataFrame(training.progress.rows), training.stop, training.model
    if curves is not None:
        history["inner_val_loss"] = curves.mean(axis=0)[history["epoch"] - 1]
        notes.append(f"epoch {stop} of {recipe.total_epochs} selected on {len(curves)} inner folds")
    restored = any(getattr(one, "restore_best_weights", False) for made in job.callbacks.values() for one in made)
    stopped = len(history) < stop or restored
    notes += _stop_notes(len(history), stop) if stopped else []
    last_phase = history["loss"][history["phase"] == history["phase"].iloc[-1]].to_numpy()
    notes += _unconverged(last_phase, recipe, np.bincount(labels, minlength=classes) / len(labels))
    return FitResult(
        model, recipe, history, device, len(batchnorm_layers(model)) if recipe.epochs else 0,
        (*_weights_notes(asked, spec, recipe), *notes), time.perf_counter() - started, preparing.seconds, stopped,
        out_of_fold, features,
    )  # fmt: skip


def _out_of_memory(device: str, backbone: str, recipe: Recipe) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"{device} ran out of memory training {backbone} with batch_size={recipe.batch_size} at {recipe.image_size} "
        f"pixels. Try batch_size={max(recipe.batch_size // 2, 1)}, or halve_batch=True to have that done."
    )


def _stop_notes(epochs: int, stop: int) -> list[str]:
    return [f"{'stopped' if epochs < stop else 'weights chosen'} by a callback: {epochs} of {stop} epochs"]


def _trained(
    job: FitJob, train: Side, groups: NDArray[np.int64] | None, validation: Side | None
) -> tuple[Training, NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Return the training, the validation losses of inner folds (folds, epochs) or None, and out-of-fold logits."""
    recipe, labels = job.recipe, train[1]
    stop, curves = recipe.total_epochs, None
    if recipe.select_epoch:
        curves = _inner_losses(job, train, groups)
        first = recipe.head_epochs if recipe.epochs else 0
        stop = first + int(curves.mean(axis=0)[first:].argmin()) + 1
    training = Training(job, train, validation, stop)
    training.run()
    out_of_fold = None
    if not recipe.epochs and recipe.head == "pooled" and (folds := inner_folds(labels, groups, job.seed)):
        out_of_fold = training.out_of_fold(folds)
    return training, curves, out_of_fold


def _inner_losses(job: FitJob, train: Side, groups: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Return the validation losses (folds, epochs) of inner folds, of all epochs of both phases."""
    images, labels = train
    folds = inner_folds(labels, groups, job.seed)
    if not folds:
        raise SettingsError(
            "select_epoch needs two groups (subjects) of each class in the training side at least, to hold one out."
        )
    curves = []
    for number, (rows, held) in enumerate(folds, 1):
        inner, other = ((Subset.of(images, part), labels[part]) for part in (rows, held))
        training = Training(job, inner, other, job.recipe.total_epochs, inner_fold=f"{number}/{len(folds)}")
        training.run()
        curves.append([row["val_loss"] for row in training.progress.rows])
    return np.array(curves)


def _made_callbacks(
    factory: CallbackFactory | None, spec: BackboneSpec, recipe: Recipe, seed: int, folder: Path | None
) -> dict[str, list[Any]]:
    """Return the user's Keras callbacks by phase."""
    phases = [name for name, epochs in (("head", recipe.head_epochs), ("full", recipe.epochs)) if epochs]
    contexts = [FitContext(spec.name, recipe, seed, phase, folder) for phase in phases]
    return {} if factory is None else {context.phase: make_callbacks(factory, context) for context in contexts}


def _weights_notes(asked: Recipe, spec: BackboneSpec, recipe: Recipe) -> list[str]:
    wanted = asked.weights_for(spec)
    notes = [f"no {wanted} weights: from random ones"] if wanted and not recipe.weights else []
    return notes if recipe.weights or recipe.epochs else [*notes, "a head on features of random weights"]


def _unconverged(losses: NDArray[np.float64], recipe: Recipe, shares: NDArray[np.float64]) -> list[str]:
    """Return a note if the training losses of the last phase end at those of guessing, or still fall; else none."""
    shares = shares[shares > 0] if recipe.class_balance == "none" else np.full(np.count_nonzero(shares), 1.0)
    guessing = -float((shares / shares.sum() * np.log(shares / shares.sum())).sum())
    last = [f"{loss:.3f}" for loss in losses[-3:]]
    if losses[-1] > _GUESSING * guessing:
        return [f"not converged: the training loss ({last[-1]}) is no better than guessing ({guessing:.3f})"]
    falls = len(losses) > 2 and losses[-3] > losses[-2] > losses[-1] and losses[-3] - losses[-1] > _FALLING * guessing
    return [f"not converged: the training loss still fell ({', '.join(last)})"] if falls else []


def _is_out_of_memory(error: BaseException) -> bool:
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(
        sign in text for sign in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")
    )


def _check(side: Side, classes: int, recipe: Recipe, groups: NDArray[np.int64] | None = None) -> None:
    images, labels = side
    size, found = recipe.image_size, f"{images.dtype} {images.shape}"
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or not len(images):
        raise DataError(f"Images must be uint8 (n, {size}, {size}, 3), at least one. Received: {found}.")
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"Labels must be {len(images)} class indices from 0 to {classes - 1}. Received: shape {labels.shape}, "
            f"values {np.unique(labels)}."
        )
    if groups is not None and np.shape(groups) != labels.shape:
        raise DataError(f"groups must be a number for each of {len(images)} images. Received: {np.shape(groups)}.")
